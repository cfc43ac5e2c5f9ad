"""How a job lives: standard library and distributed only."""
