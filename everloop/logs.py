"""The log of every process: lines of JSON on stderr, the end of such a log, and how large it may grow.

A log is a file that its process appends to by itself: a pipe that nobody reads would hang the writer. So it is
kept small from outside: what is too large gives the disk of its older half back, in place, and the writer notices
nothing. What is kept stays where it was in the file, so that who follows a log by its bytes never loses its place.
"""

import ctypes
import errno
import json
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

LAST_WORDS = 20
TAIL_BYTES = 16384
LIMIT_BYTES = 8 << 20
"""One log may take this much of the disk."""
KEPT_BYTES = 4 << 20
"""Of one that was larger, the end is kept."""
ALL_JOBS_BYTES = 256 << 20
"""All logs of jobs together; the oldest go first."""
DROPPED = b"[older lines were dropped here: a log keeps its last %d MiB]\n"
LONGEST_LINE = 1 << 16
"""A cut looks no further for the end of a line."""
BLOCK = 512
"""Bytes in a block of `st_blocks`, whatever the disk's own are."""
KEEP_SIZE, PUNCH_HOLE = 1, 2
QUIET = ("aiobotocore", "botocore")
"""Libraries that tell at each start where they have found their keys."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class OneLine(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._role,
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_lines(role: str, level: int = logging.INFO) -> None:
    """Log to stderr, one line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(role))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)


def last_words(log: Path, lines: int = LAST_WORDS) -> str:
    """The end of a log file, indented, or that there is none."""
    try:
        text = _end_of(log, TAIL_BYTES).lstrip(b"\0").decode(errors="replace")
    except OSError:
        return "    (no log)"
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (the log is empty)"


def _end_of(log: Path, size: int) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size)


def bound(log: Path, limit: int = LIMIT_BYTES, kept: int = KEPT_BYTES) -> bool:
    """Drop all but the last *kept* bytes of a log that takes more than *limit* on the disk; was it? Nothing else goes.

    A line in the place of what was dropped says so. The file's length stays: its beginning is a hole, see `piece`.
    """
    try:
        if log.is_symlink() or _taken(log.stat()) <= limit:
            return False
        with log.open("rb+") as file:
            cut = _line_after(file, os.fstat(file.fileno()).st_size - kept)
            said = DROPPED % (kept >> 20)
            _punch(file.fileno(), cut)
            os.pwrite(file.fileno(), said, cut - len(said))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):  # it is gone, or the disk is full even so
            return False
        return _rewritten(log, kept)
    return True


def _taken(about: os.stat_result) -> int:
    """Bytes of the disk that a log takes; its length also counts what was dropped."""
    return min(about.st_size, about.st_blocks * BLOCK)


def _line_after(file: BinaryIO, place: int) -> int:
    """Where the first whole line after *place* begins."""
    file.seek(place)
    return place + len(file.readline(LONGEST_LINE))


def _punch(file: int, size: int) -> None:
    """Give back the disk below the first *size* bytes of a file: they read as zeros."""
    if _LIBC.fallocate(file, PUNCH_HOLE | KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(size)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _rewritten(log: Path, kept: int) -> bool:
    """The same where files have no holes. What is written at the moment of the cut may stand before the kept end."""
    try:
        end = _end_of(log, kept).partition(b"\n")[2]
        os.truncate(log, 0)  # first: there may be no room for both
        with log.open("ab") as file:
            file.write(DROPPED % (kept >> 20))
            file.write(end)
    except OSError:
        return False
    return True


def piece(log: Path, start: int, size: int) -> tuple[bytes, int]:
    """At most *size* bytes of a log from byte *start*, and where the next piece begins.

    Lines that were dropped are stepped over: the line that says so comes in their place. A log shorter than
    *start* was cut by other means and is read from its beginning. Raises `OSError` when it is gone.
    """
    with log.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        start = start if start <= end else 0
        try:
            start = max(start, os.lseek(file.fileno(), start, os.SEEK_DATA))
        except OSError:  # nothing but a hole, or nothing at all, comes after it
            return b"", end
        data = os.pread(file.fileno(), size, start)
        while data.startswith(b"\0"):  # a hole ends with a block of the disk, the dropped lines within one
            start += len(data) - len(data.lstrip(b"\0"))
            data = os.pread(file.fileno(), size, start)
    return data, start + len(data)


def bound_all(folder: Path, limit: int = ALL_JOBS_BYTES) -> None:
    """Remove the oldest logs below *folder*, and folders that this leaves empty, until they fit in *limit* bytes."""
    found = []
    for log in folder.rglob("*.log"):
        with suppress(OSError):
            about = log.lstat()
            found.append((about.st_mtime, _taken(about), log))
    total = sum(size for _, size, _ in found)
    for _, size, log in sorted(found):
        if total <= limit:
            return
        with suppress(OSError):
            log.unlink()
            total -= size
            log.parent.rmdir()
            log.parent.parent.rmdir()
