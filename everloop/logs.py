"""The log of every process: lines of JSON on stderr, the end of such a log, and how large it may grow.

A log is a file that its process appends to by itself: a pipe that nobody reads would hang the writer. So it is
kept small from outside: what is too large loses its older half in place, and the writer notices nothing.
"""

import json
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LAST_WORDS = 20
TAIL_BYTES = 16384
LIMIT_BYTES = 8 << 20
"""One log may be this large."""
KEPT_BYTES = 4 << 20
"""Of one that was larger, the end is kept."""
ALL_JOBS_BYTES = 256 << 20
"""All logs of jobs together; the oldest go first."""


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


def last_words(log: Path, lines: int = LAST_WORDS) -> str:
    """The end of a log file, indented, or that there is none."""
    try:
        text = _end_of(log, TAIL_BYTES).decode(errors="replace")
    except OSError:
        return "    (no log)"
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (the log is empty)"


def _end_of(log: Path, size: int) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size)


def bound(log: Path, limit: int = LIMIT_BYTES, kept: int = KEPT_BYTES) -> bool:
    """Cut a log that is larger than *limit* bytes down to its last *kept*; was it? Its writer must append.

    What is written at the moment of the cut may stand before the kept end.
    """
    try:
        if log.is_symlink() or log.stat().st_size <= limit:
            return False
        end = _end_of(log, kept).partition(b"\n")[2]
        os.truncate(log, 0)  # first: there may be no room for both
        with log.open("ab") as file:
            file.write(b"[older lines were dropped here: a log keeps its last %d MiB]\n" % (kept >> 20))
            file.write(end)
    except OSError:  # it is gone, or the disk is full even so
        return False
    return True


def bound_all(folder: Path, limit: int = ALL_JOBS_BYTES) -> None:
    """Remove the oldest logs below *folder*, and folders that this leaves empty, until they fit in *limit* bytes."""
    found = []
    for log in folder.rglob("*.log"):
        with suppress(OSError):
            about = log.lstat()
            found.append((about.st_mtime, about.st_size, log))
    total = sum(size for _, size, _ in found)
    for _, size, log in sorted(found):
        if total <= limit:
            return
        with suppress(OSError):
            log.unlink()
            total -= size
            log.parent.rmdir()
            log.parent.parent.rmdir()
