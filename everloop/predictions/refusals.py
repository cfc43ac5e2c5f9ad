"""Rows that the prediction server refused because they do not fit the model's columns: counts by column and minute.

Refused rows are not in the log. That there are many says what the log cannot: a column is gone, or its type changed.
"""

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from everloop.records import Window

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
        minute = _minute(moments[0]) if moments else ""
        with self._lock:
            key = (minute, column if len(self._counts) < MOST_COUNTS else OTHERS)
            self._counts[key] = self._counts.get(key, 0) + len(moments)

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


def refused_in(folder: Path, window: Window) -> dict[str, int]:
    """Rows of *window* that were refused, by column. A torn line is passed over."""
    start, end = _minute(window.start), _minute(window.end)
    found: dict[str, int] = {}
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    told = json.loads(line)
                    at, column, rows = str(told["at"]), str(told["column"]), int(told["rows"])
                except (ValueError, KeyError, TypeError):
                    continue
                if start <= at < end:
                    found[column] = found.get(column, 0) + rows
    return found
