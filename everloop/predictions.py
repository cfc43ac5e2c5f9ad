"""The prediction log: what serve answered, by event time, for the monitor to read.

JSON lines under `day=YYYY-MM-DD/<process tag>.jsonl`. A line is handed to the kernel by one write(2) before
the answer is sent, so it survives the death of any process; it reaches the disk within a second (fsync), so a
power loss may cost that second. Files are append-only and belong to one process: a torn last line stays torn.
"""

import errno
import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from everloop.errors import StorageLow, Unavailable
from everloop.records import Window

SYNC_SECONDS = 1.0
OPEN_FILES = 64
"""Days kept open at once; a replay of old traffic may touch hundreds."""

Row = dict[str, Any]
"""`request_id`, `row` (index in the request), `key`, `event_time`, `logged_at` (ISO, UTC), `version`,
`features` (name to value), `prediction`; `ahead_of_clock` where the event time lay ahead of the clock then."""


class PredictionLog:
    """The log of one model. Safe to share between threads; any number of processes may write and read."""

    def __init__(self, folder: Path) -> None:
        """*folder*: `settings.predictions_dir/<project>/<model>`; made by the first append."""
        self.folder = folder
        self._tag = _tag()
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._closed = threading.Event()
        self._syncer: threading.Thread | None = None

    def append(self, rows: list[Row]) -> None:
        """Log *rows*; each needs an `event_time` in ISO with a zone.

        When this returns, every line is with the kernel. Raises `StorageLow` when the disk is full and
        `Unavailable` when it cannot be written; rows of other days may have been logged by then.
        """
        by_day: dict[str, list[str]] = {}
        for row in rows:
            moment = datetime.fromisoformat(row["event_time"]).astimezone(UTC)
            line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            by_day.setdefault(f"{moment:%Y-%m-%d}", []).append(line)
        self.append_lines({day: ("\n".join(lines) + "\n").encode() for day, lines in by_day.items()})

    def append_lines(self, by_day: Mapping[str, bytes]) -> None:
        """The same for who has made the lines: whole `Row`s as JSON, each with its newline, by the UTC day of their
        event time (YYYY-MM-DD). One write for each day.
        """
        with self._lock:
            for day, data in by_day.items():
                self._write(day, data)
            self._dirty.update(by_day)
            if self._syncer is None:
                self._start_syncing()

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        with self._lock:
            duplicates = {day: os.dup(self._open[day]) for day in self._dirty if day in self._open}
            self._dirty.clear()
        for descriptor in duplicates.values():  # outside the lock: a slow disk must not hold up answers
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Sync and let go of the files. Safe to call twice."""
        self._closed.set()
        if self._syncer is not None:
            self._syncer.join(timeout=5)
        self.sync()
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def read(self, window: Window) -> Iterator[Row]:
        """Rows with start <= event time < end, each (request_id, row) once, day by day.

        A torn line (a process died while writing it) is passed over: its answer was never sent.
        """
        seen: set[tuple[str, int]] = set()
        for day in self._days():
            if not _touches(day, window):
                continue
            for moment, row in self._rows(day):
                identity = (str(row.get("request_id")), int(row.get("row", 0)))
                if window.start <= moment < window.end and identity not in seen:
                    seen.add(identity)
                    yield row

    def closed(self, until: datetime, now: datetime) -> bool:
        """Has a row with *until* <= event time <= *now* been logged? Reads at most two days.

        A row ahead of the clock closes nothing: it says nothing about what came before it.
        """
        border, today = until.astimezone(UTC).date(), now.astimezone(UTC).date()
        days = [day for day in self._days() if border <= day <= today]
        if any(border < day < today and self._has_rows(day) for day in reversed(days)):
            return True
        edges = [day for day in days if day in (border, today)]
        return any(until <= moment <= now for day in edges for moment, _ in self._rows(day))

    def logged_between(self, since: datetime, until: datetime, days_before: datetime) -> Iterator[Row]:
        """Rows that were logged after *since* and not after *until*, of days that begin before *days_before*.

        Reads only files that have changed since: none, where all traffic is of today.
        """
        for day in self._days():
            if datetime.combine(day, time(), UTC) >= days_before:
                continue
            for path in self._files(day):
                if path.stat().st_mtime < since.timestamp():
                    continue
                for _, row in _read(path):
                    logged = _logged_at(row)
                    if logged is not None and since < logged <= until:
                        yield row

    def first(self) -> datetime | None:
        """The earliest event time, or None while nothing is logged."""
        return self.first_at_or_after(datetime.min.replace(tzinfo=UTC))

    def first_at_or_after(self, since: datetime) -> datetime | None:
        """The earliest event time that is not before *since*. Reads few days: the first that has one ends it."""
        border = since.astimezone(UTC).date() if since.year > 1 else date.min
        for day in self._days():
            if day < border:
                continue
            found = min((moment for moment, _ in self._rows(day) if moment >= since), default=None)
            if found is not None:
                return found
        return None

    def last_write(self, now: datetime) -> datetime | None:
        """When a row was last logged, by the files' clock; rows of days after *now* are not asked about."""
        days = [day for day in self._days() if day <= now.astimezone(UTC).date()]
        newest = max((path.stat().st_mtime for day in days for path in self._files(day)), default=None)
        return None if newest is None else datetime.fromtimestamp(newest, UTC)

    def _write(self, day: str, data: bytes) -> None:
        try:
            descriptor = self._descriptor(day)
            whole = os.write(descriptor, data) == len(data)
        except OSError as error:
            self._abandon(day)
            raise _refusal(error.errno or errno.EIO) from error
        if not whole:
            self._abandon(day)
            raise _refusal(errno.ENOSPC)

    def _abandon(self, day: str) -> None:
        """Leave a file whose last line may be torn: the next append begins another."""
        descriptor = self._open.pop(day, None)
        if descriptor is not None:
            os.close(descriptor)
        self._tag = _tag()

    def _descriptor(self, day: str) -> int:
        if day in self._open:
            return self._open[day]
        if len(self._open) >= OPEN_FILES:
            oldest = next(iter(self._open))
            descriptor = self._open.pop(oldest)
            self._dirty.discard(oldest)
            os.fsync(descriptor)
            os.close(descriptor)
        folder = self.folder / f"day={day}"
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._open[day] = os.open(folder / f"{self._tag}.jsonl", flags, 0o600)
        return self._open[day]

    def _start_syncing(self) -> None:
        self._syncer = threading.Thread(target=self._keep_syncing, name="prediction-log-sync", daemon=True)
        self._syncer.start()

    def _keep_syncing(self) -> None:
        while not self._closed.wait(SYNC_SECONDS):
            try:
                self.sync()
            except OSError:
                continue  # the next append meets the same disk and says so to its caller

    def _days(self) -> list[date]:
        found = []
        for path in self.folder.glob("day=*"):
            try:
                found.append(date.fromisoformat(path.name.removeprefix("day=")))
            except ValueError:
                continue  # not ours
        return sorted(found)

    def _has_rows(self, day: date) -> bool:
        return next(self._rows(day), None) is not None

    def _rows(self, day: date) -> Iterator[tuple[datetime, Row]]:
        for path in self._files(day):
            yield from _read(path)

    def _files(self, day: date) -> list[Path]:
        return sorted((self.folder / f"day={day.isoformat()}").glob("*.jsonl"))


def _read(path: Path) -> Iterator[tuple[datetime, Row]]:
    with path.open("rb") as source:
        for line in source:
            parsed = _parse(line)
            if parsed is not None:
                yield parsed


def _logged_at(row: Row) -> datetime | None:
    try:
        return datetime.fromisoformat(row["logged_at"]).astimezone(UTC)
    except (ValueError, KeyError, TypeError):
        return None


def _parse(line: bytes) -> tuple[datetime, Row] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        return datetime.fromisoformat(row["event_time"]).astimezone(UTC), row
    except (ValueError, KeyError, TypeError):
        return None


def _touches(day: date, window: Window) -> bool:
    start = datetime.combine(day, time(), UTC)
    return start < window.end and window.start < start + timedelta(days=1)


def _tag() -> str:
    return f"{os.getpid()}-{uuid.uuid4().hex[:12]}"


def _refusal(number: int) -> StorageLow | Unavailable:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StorageLow("the prediction log's disk is full, and nothing is answered unlogged", hint="free some space")
    return Unavailable(
        f"the prediction log cannot be written ({os.strerror(number)})", hint="look at the predictions folder"
    )
