"""Amounts of what is leased: whole cores, MiB, thousandths of a GPU."""

from typing import NamedTuple

NO_LIMIT = -1
"""As a limit: none. As a quota: none is set. Such a queue competes by its weight alone, and its work that is not
preemptible is not bounded by it; a queue of queues without a quota has what theirs add up to."""


class Amount(NamedTuple):
    """What one member of a lease uses, or what a device has."""

    cores: int = 0
    memory_mib: int = 0
    milli_gpu: int = 0
    gpu_mib: int = 0


class Counted(NamedTuple):
    """What queues share: memory is a bound on where a member fits, not a share."""

    cores: int = 0
    milli_gpu: int = 0


AMOUNTS = Amount._fields
COUNTED = Counted._fields
UNLIMITED = Counted(NO_LIMIT, NO_LIMIT)
