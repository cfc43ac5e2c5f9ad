"""Where it runs: the processes."""
