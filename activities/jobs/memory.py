"""A job's memory: how much its processes hold, how much they may, and who ended them when it ran out.

No RLIMIT_AS, which counts addresses: CUDA reserves more of those than any machine has memory. What counts is what the
kernel cannot drop: private and shared memory without a file behind it, and what was swapped out. Pages of mapped files
do not count, nor what a fork still shares with the process it came from.
"""

import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

MIB = 1 << 20
LOOK_SECONDS = 0.5
RESERVED_BYTES = 1 << 30
"""Of the machine, for the stack and everybody else."""
LEAST_BYTES = 512 * MIB
"""A job gets this much on the smallest machine: less does not even load the libraries."""
UNLIMITED = 1 << 60
"""A control group says so by a number beyond any machine."""
KILLS_SECONDS = 3.0
"""A kill by the kernel and the end of the job are the same event when they are no further apart."""
FIRST_NAMESPACE = "pid:[4026531836]"
"""Of pids, on every Linux: PROC_PID_INIT_INO of the kernel's proc_ns.h."""
KILLED = re.compile(rb"Killed process (\d+) ")
SHRINKS = "shrinks"


class Memory:
    """What the processes of one job hold: looked at again and again while it runs."""

    def __init__(self, limit: int) -> None:
        """*limit*: in bytes."""
        self.limit = limit
        self.reaper = 0
        """Pid of the job's reaper, once there is one: everything of the job is below it."""
        self.used = 0
        """At the last look, in bytes."""
        self.peak = 0
        self.over = False
        """More than the limit: the job must end."""
        self.cpu_ms = 0
        """Processor time of all that has run so far, at the last look."""
        self._pids: set[int] = set()
        """All that were seen of the job."""
        self._looked = 0.0
        self._kills = _kills()
        self._killed_at = -KILLS_SECONDS

    def look(self) -> bool:
        """Look, when it is time to. True when the job has just been found over its limit."""
        now = time.monotonic()
        if self.over or not self.reaper or (self._pids and now - self._looked < LOOK_SECONDS):
            return False
        self._looked = now
        self._notice(now)
        pids = below(self.reaper)
        self._pids.update(pids)
        self.cpu_ms = max(self.cpu_ms, sum(_cpu_ms(str(pid)) for pid in [self.reaper, *pids]))
        self.used = held(pids, self.limit)
        self.peak = max(self.peak, self.used)
        self.over = self.used > self.limit
        return self.over

    def measured(self) -> dict[str, int]:
        """What the job has used; what it did since the last look is not in it."""
        return {"cpu_ms": self.cpu_ms, "peak_mib": -(-self.peak // MIB)}

    def killed_by_kernel(self) -> bool:
        """Has the kernel just ended a process because memory ran out: one of the job's, where its log can be read?

        Elsewhere one of this machine, which may have been another's while somebody killed this job.
        """
        now = time.monotonic()
        self._notice(now)
        if now - self._killed_at >= KILLS_SECONDS:
            return False
        named = _named_by_kernel()
        return named is None or not self._pids.isdisjoint(named)

    def figures(self) -> str:
        """For people."""
        return f"it held {self.peak // MIB:,} MiB, and its lease allows {self.limit // MIB:,} MiB"

    def _notice(self, now: float) -> None:
        kills = _kills()
        if kills > self._kills:
            self._kills, self._killed_at = kills, now


HINT = (
    "give the stage more (`resources: memory` in the spec, or EVERLOOP_JOB_MEMORY_MIB for all), run fewer at one time "
    "(EVERLOOP_SLOTS), use a machine with more memory, or ask for less: fewer rows or columns, a smaller model or batch"
)


def share(slots: int) -> int:
    """Bytes that each of *slots* jobs on this machine may hold where nobody says it."""
    return max(LEAST_BYTES, (machine() - RESERVED_BYTES) // max(1, slots))


def machine() -> int:
    """Bytes of this machine, or of the container where that has less."""
    limits = [UNLIMITED]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # the other version of control groups, or `max`
            continue
    return min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits)


def below(pid: int) -> list[int]:
    """Pids of all descendants of *pid*."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208  # twice a second: no object for each
        if entry.isdigit():
            children.setdefault(_parent(entry), []).append(int(entry))
    found, left = [], [pid]
    while left:
        born = children.get(left.pop(), [])
        found += born
        left += born
    return found


def held(pids: Iterable[int], enough: int) -> int:
    """Bytes that *pids* hold together.

    Shared pages are counted once by asking the kernel for the proportional size, which walks all pages: only where
    the plain sum, which counts them for each process, is more than *enough*.
    """
    pids = list(pids)
    plain = sum(_kilobytes(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:", "VmSwap:")) for pid in pids)
    if plain * 1024 <= enough:
        return plain * 1024
    return 1024 * sum(_kilobytes(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")) for pid in pids)


def _kilobytes(path: str, names: tuple[str, ...]) -> int:
    try:
        with open(path) as lines:  # noqa: PTH123
            return sum(int(line.split()[1]) for line in lines if line.startswith(names))
    except OSError:  # it has ended
        return 0


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return int(stat.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


TICKS = os.sysconf("SC_CLK_TCK")
OWN_TIME, WAITED_TIME = slice(11, 13), slice(13, 15)
"""In /proc/<pid>/stat after the name: user and system time, and those of ended children that were waited for."""


def _cpu_ms(pid: str) -> int:
    """Of the process and of its children that have ended."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, (*fields[OWN_TIME], *fields[WAITED_TIME]))) * 1000 // TICKS


def _kills() -> int:
    """How many processes the kernel has ended for want of memory since it was started: in all control groups."""
    try:
        with open("/proc/vmstat") as lines:  # noqa: PTH123
            return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except OSError:
        return 0


def _named_by_kernel() -> set[int] | None:
    """Pids of which the kernel's log says that it ended them for want of memory. None: we may not read it.

    Also None in a container, where the log calls processes by other pids than we do.
    """
    try:
        if str(Path("/proc/self/ns/pid").readlink()) != FIRST_NAMESPACE:
            return None
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    named: set[int] = set()
    try:
        while True:
            try:
                record = os.read(log, 8192)  # one at a time; nothing is left: BlockingIOError
            except BrokenPipeError:  # it was overwritten before we came to it
                continue
            named.update(int(pid) for pid in KILLED.findall(record))
    except BlockingIOError:
        return named
    except OSError:
        return None
    finally:
        os.close(log)


def shrink(folder: Path, most: int) -> int:
    """How often the job of *folder* has run out of memory; who asks can do with less and is run again, *most* times."""
    (folder / SHRINKS).write_text(str(most))
    return int(json.loads((folder / "request.json").read_text()).get("shrink", 0))


def may_shrink(folder: Path, times: int) -> bool:
    """Is the job of *folder*, which has run out of memory *times* times, to be run again?"""
    try:
        return times <= int((folder / SHRINKS).read_text())
    except (OSError, ValueError):
        return False
