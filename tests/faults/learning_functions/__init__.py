"""Compute functions of the tests that learn: LightGBM's own chain of segments on a table of random numbers."""

import contextlib

with contextlib.suppress(ModuleNotFoundError):  # a fault in the machinery itself, see proof_compute.py
    import planted  # noqa: F401
