"""Jobs of gangs, as the compute worker runs them; in a package of their own, since they load torch."""

import contextlib

with contextlib.suppress(ModuleNotFoundError):  # a fault in the machinery itself, see proof_gangs.py
    import planted  # noqa: F401
