"""What is decided: deterministic, no I/O."""
