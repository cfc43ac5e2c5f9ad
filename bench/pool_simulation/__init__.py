"""A pool simulated event by event: the product's own `decide()` beside other ways to share the same GPUs.

`python -m bench.pool_simulation [--jobs 12000] [--seeds 3] [--loads 0.9] [--workloads W1 W3 W4 W6]` prints a table for
each workload and the goals. Everything follows from the seeds; there is no clock in it.

One resource (GPUs, whole or in thousandths), no topology, no failures. A job that is told to let go writes a checkpoint
within `SAVE_MS` and loses nothing but that and its restart; the rivals' jobs let go at once and restart alike.
"""
