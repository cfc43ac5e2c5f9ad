"""How a job lives: standard library and distributed only; a job itself loads more (context, checkpoints, threads)."""
