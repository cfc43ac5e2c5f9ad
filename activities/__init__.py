"""What is done: I/O, safe to run twice."""
