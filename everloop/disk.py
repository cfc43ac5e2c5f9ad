"""Room on the disk: how much there must be, and which errors mean that there is none."""

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from everloop.errors import StorageLow, text

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
    """What is wrong when less than *floor_bytes* would stay free below one of *folders* after *size_bytes* more."""
    for folder in folders:
        free = shutil.disk_usage(_there(folder)).free
        if free - size_bytes < floor_bytes:
            return short(folder, free, floor_bytes + size_bytes)
    return None


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
