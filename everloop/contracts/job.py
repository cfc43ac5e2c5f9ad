"""The input of a job: one child process on the slot of a lease."""

from everloop.records import Lease, Record, Slot


class JobRequest(Record):
    """The input of a job; `slot` is filled in when the lease is held (workflows/stage.py)."""

    slot: Slot = Slot(device="", token=0, holder="")
    lease: Lease | None = None
    """The slot and what may be used of it. None: asked by a workflow that knew slots alone."""
