"""Threads and memory that a job may use."""

from dataclasses import dataclass, field
from pathlib import Path

LEAST_MIB, MOST_MIB = 256, 1024
SHARE = 32
"""Without a word from its lease, what a job buffers is this part of the machine's memory, within the two above."""
LEASE_SHARE, SMALLEST_MIB = 4, 32
"""And never more than this part of what the lease allows: the libraries and the rows need the rest."""


def _share_mib() -> int:
    with Path("/proc/meminfo").open() as told:
        total = int(next(line for line in told if line.startswith("MemTotal:")).split()[1]) >> 10
    return min(MOST_MIB, max(LEAST_MIB, total // SHARE))


@dataclass(frozen=True)
class Resources:
    """What a job may use. The result is the same with any."""

    threads: int = 1
    memory_mib: int = field(default_factory=_share_mib)
    """For what can also be spilled or done one after the other; the least that a stage needs is beside it."""

    @classmethod
    def of(cls, job: object) -> "Resources":
        """Those of *job*'s lease, where it says so; else one thread, and a share of the machine's memory."""
        threads, lease = getattr(job, "cores", 1), getattr(job, "lease", None)
        allowed = lease.members[0].memory_mib if lease is not None else 0
        buffered = _share_mib()
        return cls(threads, min(buffered, max(SMALLEST_MIB, allowed // LEASE_SHARE)) if allowed else buffered)
