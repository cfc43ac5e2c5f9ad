# ruff: noqa: T201  # what a job prints is its log
"""Folders that are made once on a host and used by many jobs: by a key, whole or not there, the oldest unused go."""

import contextlib
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

MOST = 12
"""Folders of one shelf that are kept; one that a job uses is never removed."""
WHOLE = ".whole"

_held: list[IO[str]] = []
"""Locks of what this process uses. They end with the process."""


def shelved(shelf: Path, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of *key*, made by *make* where it is not there; nobody removes it while this process lives.

    Two jobs that need it at one moment wait for one that makes it. What *make* raises is raised, and nothing is left.
    """
    shelf.mkdir(parents=True, exist_ok=True)
    folder, lock = shelf / key, (shelf / f"{key}.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not (folder / WHOLE).exists():
            _made(folder, lock, make)
    except BaseException:
        lock.close()
        raise
    _held.append(lock)
    (folder / WHOLE).touch()  # when it was used last
    _tidy(shelf, keep=folder)
    return folder


def _made(folder: Path, lock: IO[str], make: Callable[[Path], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another job makes it already: waiting for that", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / WHOLE).exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a job that was ended in the middle
        folder.mkdir()
        try:
            make(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / WHOLE).touch()
    fcntl.flock(lock, fcntl.LOCK_SH)


def _tidy(shelf: Path, keep: Path) -> None:
    """Remove the folders that were used longest ago, beyond `MOST`, where no job uses them."""
    used = []
    for mark in shelf.glob(f"*/{WHOLE}"):
        with contextlib.suppress(OSError):
            used.append((mark.stat().st_mtime_ns, mark.parent))
    for _, folder in sorted(used, reverse=True)[MOST:]:
        if folder != keep:
            _remove(folder)


def _remove(folder: Path) -> None:
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(folder, ignore_errors=True)
