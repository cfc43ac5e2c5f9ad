"""Threads of a job: its lease's, set by call. The process that it is forked from has one of each."""

import os
import sys

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS", "ARROW_NUM_THREADS")
"""What libraries read when they are loaded."""


def allow(cores: int) -> None:
    """Let what is loaded, and what this process loads later, use *cores* threads."""
    os.environ.update(dict.fromkeys(THREADS, str(cores)))
    if "pyarrow" in sys.modules:
        import pyarrow as pa

        pa.set_cpu_count(cores)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(cores)
    if cores > 1 and "numpy" in sys.modules:  # one is what they were loaded with
        from threadpoolctl import threadpool_limits

        threadpool_limits(cores)
