"""Room on the disk: how much there must be, and which errors mean that there is none."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from everloop.errors import StorageLow, text

FEWEST_FILES = 64
LEAST_BYTES = 1 << 20
"""A disk with less free is full, whatever the floor is."""
WRITTEN = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay", "tmpfs", "vfat", "exfat", "ntfs3")
"""Kinds of disks of this machine: one on another may not answer."""
FULL = (errno.ENOSPC, errno.EDQUOT)
SAID = re.compile(
    r"no space left on device|database or disk is full|disk quota exceeded|errno[ :=]*28\b"
    r"|\d+ requested and \d+ written",  # numpy, which drops the number of the error
    re.IGNORECASE,
)
"""How libraries say it that raise something of their own (SQLite, Arrow, DuckDB, LightGBM, ONNX)."""
HINT = "free some space; what waits goes on by itself"


def is_full(error: BaseException) -> bool:
    """Does *error*, or what it came from, mean that the disk is full?"""
    return any(
        isinstance(each, StorageLow) or (isinstance(each, OSError) and each.errno in FULL) or SAID.search(text(each))
        for each in _chain(error)
    )


def low(folders: list[Path], floor_bytes: int, size_bytes: int = 0) -> StorageLow | None:
    """What is wrong when less than *floor_bytes* would stay free below one of *folders* after *size_bytes* more.

    Or hardly a file more: some disks hold so many and no more.
    """
    for folder in folders:
        free = shutil.disk_usage(_there(folder)).free
        if free - size_bytes < floor_bytes:
            return short(folder, free, floor_bytes + size_bytes)
        if floor_bytes and (left := _files_left(folder)) < FEWEST_FILES:
            return StorageLow(f"the disk at {folder} holds only {left} files more, however small", hint=HINT)
    return None


def _files_left(folder: Path) -> int:
    """How many more the disk can hold; many where it sets no limit."""
    told = os.statvfs(_there(folder))
    return told.f_favail if told.f_files else FEWEST_FILES


def elsewhere(error: BaseException) -> StorageLow:
    """For a write of a job that found no room: it need not be a disk of ours, so it says which ones are full."""
    said, found = (text(error).splitlines() or [""])[0][:300], list(_full_disks())
    return StorageLow(f"{said}: full is {', '.join(found[:5])}" if found else f"a disk is full: {said}", hint=HINT)


def _full_disks() -> Iterator[str]:
    """Where the disks of this machine that can be written and are full are mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options = line.split()[:4]
        if kind not in WRITTEN or "ro" in options.split(","):
            continue
        with contextlib.suppress(OSError):
            told = os.statvfs(place)
            if told.f_blocks and told.f_bavail * told.f_frsize < LEAST_BYTES:
                yield place


def short(folder: Path, free_bytes: int, needed_bytes: int) -> StorageLow:
    """The error that says how much is there and how much is needed."""
    return StorageLow(
        f"{free_bytes >> 20} MiB are free at {folder} and {max(1, needed_bytes >> 20)} MiB are needed", hint=HINT
    )


def full(folder: Path, floor_bytes: int) -> StorageLow:
    """The error for a write below *folder* that found no room."""
    return short(folder, shutil.disk_usage(_there(folder)).free, floor_bytes)


def _there(folder: Path) -> Path:
    """*folder*, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
