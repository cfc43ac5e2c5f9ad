"""A slot's lock: one job at a time on a device, also when the supervisor of the one before has died.

The lock is held by everything that a job has forked, so that "free" means gone.
"""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from activities.jobs import reaper, warming

POLL_SECONDS = 0.05
MARK = "EVERLOOP_SLOT"
"""In the environment of every job of a slot: who carries it belongs to that slot."""
GRACE_SECONDS = 2.0
"""From SIGTERM to SIGKILL for a job that is no longer wanted."""
LOST_SECONDS = GRACE_SECONDS + reaper.ADOPTED_SECONDS + 1.0
"""After its supervisor's end a job is gone by then, or has no reaper that ends it."""


@contextlib.contextmanager
def held(path: Path, mark: str, wanted: Callable[[], bool]) -> Iterator[int | None]:
    """The lock at *path* as a file descriptor, or None when the job is no longer *wanted*. *mark*: the slot's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        lost = time.monotonic() + LOST_SECONDS
        while not _locked(lock.fileno()):
            if not wanted():
                yield None
                return
            if _watched(lock):
                lost = time.monotonic() + LOST_SECONDS
            elif time.monotonic() > lost:  # its reaper should have ended it: it was killed too, or stands still
                end_orphans(mark)
            time.sleep(POLL_SECONDS)
        with contextlib.suppress(OSError):  # a full disk: then nobody knows whose lock it is, as before
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{os.getpid()} {_start_time(os.getpid())}".encode())
        yield lock.fileno()


def _watched(lock: IO[str]) -> bool:
    """Does the supervisor of the job that holds *lock* live?"""
    lock.seek(0)
    with contextlib.suppress(ValueError):
        pid, started = map(int, lock.read().split())
        return _start_time(pid) == started
    return True  # of an older version, or not written yet


def _start_time(pid: int) -> int:
    """In clock ticks since the machine's start; 0 when there is no such process."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def end_orphans(mark: str) -> None:
    """Kill what a killed reaper has left behind: we hold the slot's lock, so whoever carries its mark is an orphan."""
    wanted = f"{MARK}={mark}".encode()
    spared = warming.pid()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0") and int(path.parent.name) != spared:
                os.kill(int(path.parent.name), signal.SIGKILL)
