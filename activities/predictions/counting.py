"""Counting the lines of a file of the log, each byte once."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson

from everloop.predictions.parts import LIVE

CHUNK_BYTES = 16 << 20
OLD = timedelta(days=1)
"""An older Everloop did not lock its files: one that has not changed for so long is done."""


@dataclass
class HourCount:
    """Rows of one hour of event time."""

    first: datetime
    last: datetime
    rows: int = 0


@dataclass
class Counted:
    """What was found in a file since it was last looked at."""

    name: str
    start: int
    end: int
    modified: datetime
    closed: bool
    more: bool
    """Was more there than is counted at once?"""
    rows: int = 0
    torn: int = 0
    hours: dict[datetime, HourCount] = field(default_factory=dict)

    @property
    def is_news(self) -> bool:
        return self.closed or self.end > self.start


def counted(folder: Path, name: str, start: int, now: datetime) -> Counted:
    """The lines of *name* from *start* on, at most about `CHUNK_BYTES`. Raises `FileNotFoundError`."""
    with (folder / name).open("rb") as source:
        done = _is_done(source.fileno(), name, now)  # before its size is asked for: it cannot grow after
        about = os.fstat(source.fileno())
        data = _chunk(source.fileno(), start, about.st_size)
        whole = data.rfind(b"\n") + 1
        at_the_end = start + len(data) == about.st_size
        torn_tail = done and at_the_end and whole < len(data)
        end = start + (len(data) if torn_tail else whole)
        found = Counted(
            name,
            start,
            end,
            datetime.fromtimestamp(about.st_mtime, UTC),
            closed=done and end == about.st_size,
            more=not at_the_end,
            torn=int(torn_tail),
        )
    for line in data[:whole].split(b"\n")[:-1]:
        _count(line, found)
    return found


def _chunk(descriptor: int, start: int, size: int) -> bytes:
    """Some bytes with the end of a line among them, if there is one."""
    most = CHUNK_BYTES
    while True:
        data = os.pread(descriptor, min(most, size - start), start)
        if b"\n" in data or start + len(data) >= size or not data:
            return data
        most *= 2


def _count(line: bytes, found: Counted) -> None:
    try:
        row = orjson.loads(line)
        moment = datetime.fromisoformat(row["event_time"]).astimezone(UTC)
    except (ValueError, KeyError, TypeError, OverflowError):
        found.torn += 1
        return
    found.rows += 1
    hour = moment.replace(minute=0, second=0, microsecond=0)
    count = found.hours.get(hour)
    if count is None:
        count = found.hours[hour] = HourCount(moment, moment)
    elif moment < count.first:
        count.first = moment
    elif moment > count.last:
        count.last = moment
    count.rows += 1


def _is_done(descriptor: int, name: str, now: datetime) -> bool:
    """Will nobody append to the file any more?"""
    if not name.startswith(f"{LIVE}/"):
        return now - datetime.fromtimestamp(os.fstat(descriptor).st_mtime, UTC) > OLD
    with _lock(descriptor) as ours:
        return ours


@contextmanager
def _lock(descriptor: int) -> Iterator[bool]:
    """Its writer holds the lock as long as it lives and may append."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
