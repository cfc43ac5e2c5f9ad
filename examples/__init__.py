"""What `everloop demo` runs."""
