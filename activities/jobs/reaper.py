"""The parent of one job: it starts the job in a session of its own, waits, and leaves nothing behind.

When the lifeline ends (the Dask worker died) or carries a byte (the job is no longer wanted), the job gets
SIGTERM, a grace, then SIGKILL; at once where the byte is `NOW`. The reaper ends only when every descendant is gone,
and holds the slot's lock until then: "gone" means gone. Standard library only, and single-threaded:
PR_SET_PDEATHSIG follows the *thread* that made the child.
"""

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ADOPTED_SECONDS = 2.0
NICENESS = 5  # jobs yield to the processes that heartbeat, answer people and watch over them
OOM_SCORE = 800  # when memory runs out the kernel takes the job, not the Dask worker beside it
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

FORKED = b"+%d;"
"""What the reaper says first: its own pid."""
NOW = b"9"
"""On the lifeline: no grace."""
LONGER = b"G"
"""On the lifeline: it is followed by the milliseconds of a grace that is not the usual one."""
MOST_TOLD = 16
NO_ROOM = 75
"""Exit code of a job that could not even write down that the disk is full (EX_TEMPFAIL)."""
ROOM = "room"
"""A file in its folder that it then takes away, which needs no room: anybody can end a process with any code."""

NONE = -1
"""Instead of a file descriptor."""

Prepare = Callable[[], None]


class Start(TypedDict):
    """One job; `Pipes` travel beside it."""

    name: str
    folder: str
    grace_seconds: float
    lease: NotRequired[str]
    """The part of a lease that it is of (mark.py)."""
    modules: NotRequired[list[str]]
    """What it needs beside the usual: loaded before the fork, for all that come after it."""


class Pipes(NamedTuple):
    """File descriptors of one job."""

    life: int
    """Ends, or carries a byte, when the job must end."""
    events: int
    """The job's progress."""
    lock: int
    """The slot's flock."""
    log: int
    status: int
    """The reaper writes `FORKED` with its pid when it begins, and the exit code when everything is gone."""
    device: int = NONE
    """The flock of the whole device, where the job has it."""

    def given(self) -> list[int]:
        return [fd for fd in self if fd != NONE]


def become_parent() -> None:
    """Adopt orphans below us, and survive the signals that are meant for the job."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)


def become_job(parent: int) -> Prepare:
    """What the new process does before it becomes the job: it never outlives *parent*."""
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # died before the line above
            os._exit(111)
        for number in FORWARDED:  # the reaper ignores them
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))

    return prepare


def reap(start: Callable[[], int], life: int, events: int, grace: float) -> int:
    """Start the job, wait for its end or for ours, and leave nothing behind. Its exit code, or 128 + signal."""
    if select.select([life], [], [], 0)[0]:  # not wanted any more before it began
        return 128 + signal.SIGTERM
    pid = start()
    os.close(events)  # the supervisor sees the end of the events when the job's tree has closed them
    exited = os.pidfd_open(pid)
    ended = select.select([life, exited], [], [])[0]
    told = b"" if exited in ended else os.read(life, MOST_TOLD)
    if exited not in ended and told != NOW:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)
        select.select([exited], [], [], _longer(told) or grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # before waiting for the leader: until then the group's number is ours
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _end_adopted(time.monotonic() + ADOPTED_SECONDS)
    return status if status >= 0 else 128 - status


def _longer(told: bytes) -> float:
    """The grace in seconds that the lifeline has carried, or 0."""
    return int(told[1:]) / 1000 if told[:1] == LONGER and told[1:].isdigit() else 0.0


def _end_adopted(deadline: float) -> None:
    """Kill the descendants that left the group; their parents are dead, so they are ours now."""
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            continue
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def _children() -> list[int]:
    me = os.getpid()
    return [pid for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()) if _parent(pid) == me]  # noqa: PTH208


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])
