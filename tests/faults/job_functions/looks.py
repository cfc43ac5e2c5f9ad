"""Looks into Dask's own processes."""

import gc


def groups() -> int:
    """Groups of tasks that the scheduler remembers."""
    gc.collect()
    return sum(type(each).__name__ == "TaskGroup" for each in gc.get_objects())
