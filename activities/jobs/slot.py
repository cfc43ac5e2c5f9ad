"""A part of a lease on its device: its lock is held as long as anything of it runs.

The lock is held by everything that a job has forked, so that "free" means gone. Each part has a lock of its own, since
several jobs run on a device; a part that is a whole GPU holds the device's lock too. Only devices give room to parts
(the ledger counts it), so whatever holds a lock here and is of no live lease is an orphan.
"""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from activities.jobs import mark, reaper

POLL_SECONDS = 0.05
GRACE_SECONDS = 2.0
"""From SIGTERM to SIGKILL for a job that is no longer wanted."""
LOST_SECONDS = GRACE_SECONDS + reaper.ADOPTED_SECONDS + 1.0
"""After its supervisor's end a job is gone by then, or has no reaper that ends it."""
SUFFIX = ".lock"


class Locks(NamedTuple):
    """File descriptors of what is held."""

    part: int
    device: int = reaper.NONE
    """Of the whole device, where the part is all of it."""


class Slot:
    """The part *token*, *rank* of a lease on a device of this machine."""

    def __init__(self, slots: Path, device_mark: str, token: int, rank: int) -> None:
        """*slots*: the folder of all locks. *device_mark*: `<scratch>/<device>`."""
        self.mark = device_mark
        self.token = token
        self.text = mark.part(token, rank)
        self.folder = slots / Path(device_mark).name
        self.path = self.folder / f"{self.text}{SUFFIX}"
        self.of_device = slots / f"{Path(device_mark).name}{SUFFIX}"

    @contextlib.contextmanager
    def held(self, wanted: Callable[[], bool], *, whole: bool = False) -> Iterator[Locks | None]:
        """What is held, or None when the job is no longer *wanted*. *whole*: the device's lock too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+") as lock, self.of_device.open("a") as of_device:
            if not self._waited(lock, wanted) or (whole and not _got(of_device, wanted)):
                yield None
                return
            with contextlib.suppress(OSError):  # a full disk: then nobody knows whose lock it is, as before
                os.ftruncate(lock.fileno(), 0)
                os.write(lock.fileno(), f"{os.getpid()} {_start_time(os.getpid())}".encode())
            yield Locks(lock.fileno(), of_device.fileno() if whole else reaper.NONE)

    def _waited(self, lock: IO[str], wanted: Callable[[], bool]) -> bool:
        lost = time.monotonic() + LOST_SECONDS
        while not _locked(lock.fileno()):
            if not wanted():
                return False
            if _watched(lock):
                lost = time.monotonic() + LOST_SECONDS
            elif time.monotonic() > lost:  # its reaper should have ended it: it was killed too, or stands still
                self.end_orphans()
            time.sleep(POLL_SECONDS)
        return True

    def others_gone(self, live: Container[int], wanted: Callable[[], bool]) -> bool:
        """Wait until no older part that is of none of the *live* leases holds a lock here; False when not *wanted*.

        It was told to end when its lease ended, and somebody may not have heard of that.
        """
        lost = time.monotonic() + LOST_SECONDS
        while older := [one for one in self._older(live) if is_held(one)]:
            if not wanted():
                return False
            if any(_is_watched(one) for one in older):
                lost = time.monotonic() + LOST_SECONDS
            elif time.monotonic() > lost:
                for one in older:
                    end_all(self.mark, one.name.removesuffix(SUFFIX))
            time.sleep(POLL_SECONDS)
        return True

    def _older(self, live: Container[int]) -> list[Path]:
        found = [(mark.of_part(path.name.removesuffix(SUFFIX)), path) for path in self.folder.glob(f"*{SUFFIX}")]
        return [path for part, path in found if part and part[0] < self.token and part[0] not in live]

    def end_orphans(self) -> None:
        """Kill whatever of this part a killed reaper has left behind."""
        end_all(self.mark, self.text)


def end_all(device_mark: str, text: str) -> list[int]:
    """Kill whoever carries both marks. Returns their pids."""
    found = list(mark.carriers(device_mark, text))
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return found


def is_dead(slots: Path, device_mark: str, token: int, rank: int) -> bool:
    """Is nothing left of the part of a lease that has ended: its lock is free, and no process carries its marks?

    What is left after the time that an orderly end takes is killed.
    """
    slot = Slot(slots, device_mark, token, rank)
    deadline = time.monotonic() + LOST_SECONDS
    while _lives(slot):
        if time.monotonic() > deadline:
            slot.end_orphans()
            time.sleep(POLL_SECONDS * 4)
            return not _lives(slot)
        time.sleep(POLL_SECONDS * 2)
    return True


def _lives(slot: Slot) -> bool:
    return is_held(slot.path) or any(True for _ in mark.carriers(slot.mark, slot.text))


def is_held(path: Path) -> bool:
    """Does somebody hold the lock at *path*?"""
    try:
        with path.open("a") as lock:
            return not _locked(lock.fileno())
    except FileNotFoundError:
        return False


def remove_old(slots: Path, before: float) -> None:
    """Remove the locks of parts that were last taken before *before* (seconds since 1970) and that nobody holds."""
    for path in slots.glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before and not is_held(path):
                path.unlink()


def _got(lock: IO[str], wanted: Callable[[], bool]) -> bool:
    while not _locked(lock.fileno()):
        if not wanted():
            return False
        time.sleep(POLL_SECONDS)
    return True


def _is_watched(path: Path) -> bool:
    try:
        with path.open() as lock:
            return _watched(lock)
    except OSError:
        return False


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
