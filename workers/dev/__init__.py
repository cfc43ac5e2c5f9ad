"""What `everloop up` runs: `launcher` starts the stack, `children` are its processes, `checks` come before."""
