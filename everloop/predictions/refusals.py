"""Rows that the prediction server refused because they do not fit the model's columns: counts by column and minute.

Refused rows are not in the log. That there are many says what the log cannot: a column is gone, or its type changed.
"""

import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from everloop.records import Window
from everloop.windows import window_of

FOLDER = "refused"
FLUSH_SECONDS = 1.0
MOST_COUNTS = 1000
"""Of columns and minutes that wait to be written; what is beyond counts as `OTHERS`."""
OTHERS = "(other columns)"
LONGEST = 100


@dataclass
class Refusals:
    """What one process refuses of one model. Safe to share between threads; the last second dies with the process."""

    folder: Path
    """The model's folder of the prediction log."""
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _written: float = 0.0

    def note(self, where: str, moments: Sequence[datetime]) -> None:
        """Rows with these event times were refused for *where*, such as `rows[3].income`."""
        column = where.partition("].")[2][:LONGEST] or OTHERS
        minutes = Counter(_minute(moment) for moment in moments)
        with self._lock:
            for minute, rows in minutes.items():
                key = (minute, column if len(self._counts) < MOST_COUNTS else OTHERS)
                self._counts[key] = self._counts.get(key, 0) + rows

    def flush(self, *, now: bool = False) -> None:
        """Write what has been noted, once a second. Raises `OSError`; what could not be written is not counted."""
        if not self._counts or (not now and time.monotonic() - self._written < FLUSH_SECONDS):
            return
        with self._lock:
            counts, self._counts, self._written = self._counts, {}, time.monotonic()
        lines = [json.dumps({"at": at, "column": column, "rows": rows}) for (at, column), rows in counts.items()]
        folder = self.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{datetime.now(UTC):%Y-%m}-{os.getpid()}.jsonl"
        with path.open("ab", buffering=0) as file:
            file.write("".join(line + "\n" for line in lines).encode())


def _minute(moment: datetime) -> str:
    """In UTC, to be compared as a text; empty where that is before the first year or after the last."""
    try:
        return moment.astimezone(UTC).isoformat()[:16]
    except OverflowError:
        return ""


def files_of(folder: Path) -> list[str]:
    """The files of the counts, as they are called below the model's *folder*."""
    return sorted(f"{FOLDER}/{path.name}" for path in (folder / FOLDER).glob("*.jsonl"))


def refused_in(folder: Path, window: Window) -> dict[str, int]:
    """Rows of *window* that were refused, by column. A torn line is passed over."""
    start, end = _minute(window.start), _minute(window.end)
    found: Counter[str] = Counter()
    for counts in _every(folder):
        for (at, column), rows in counts.items():
            if start <= at < end:
                found[column] += rows
    return dict(found)


def first_refused(folder: Path, since: datetime | None, until: datetime, size: str, least: int) -> datetime | None:
    """The start of the first window of *size* from *since* on of which *least* rows up to *until* were refused."""
    by_minute: Counter[str] = Counter()
    last = _minute(until)
    for counts in _every(folder):
        for (at, _), rows in counts.items():
            if at and at <= last and (since is None or at >= _minute(since)):
                by_minute[at] += rows
    windows: Counter[datetime] = Counter()
    for at, rows in by_minute.items():
        windows[window_of(datetime.fromisoformat(at).replace(tzinfo=UTC), size).start] += rows
    return min((start for start, rows in windows.items() if rows >= least), default=None)


def forget_before(folder: Path, before: datetime) -> None:
    """Remove the files that were last written to before then."""
    for name in files_of(folder):
        with contextlib.suppress(FileNotFoundError):
            if (folder / name).stat().st_mtime < before.timestamp():
                (folder / name).unlink()


def _every(folder: Path) -> Iterator[Mapping[tuple[str, str], int]]:
    for name in files_of(folder):
        with contextlib.suppress(FileNotFoundError):
            yield _counts(folder / name, (folder / name).stat().st_size)


@lru_cache(maxsize=256)
def _counts(path: Path, size: int) -> Mapping[tuple[str, str], int]:
    """By minute and column, in the first *size* bytes: a file only grows, and a check asks again and again."""
    found: Counter[tuple[str, str]] = Counter()
    with path.open("rb") as file:
        for line in file.read(size).splitlines():
            try:
                told = json.loads(line)
                at, column, rows = str(told["at"]), str(told["column"]), int(told["rows"])
            except (ValueError, KeyError, TypeError):
                continue
            found[at, column] += rows
    return found
