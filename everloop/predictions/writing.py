"""Appending to the prediction log.

JSON lines under `live/v<version>-<process>-<tag>.jsonl`. A line is handed to the kernel by one write(2) before the
answer is sent, so it survives the death of any process; it reaches the disk within a second (fsync), so a power loss
may cost that second. A file belongs to one process and one version, and is locked (flock) while it may still grow:
who gets the lock knows that no more will come, also after kill -9.
"""

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from everloop.errors import StorageLow, Unavailable
from everloop.predictions.parts import LIVE, line_files
from everloop.records import Window

SYNC_SECONDS = 1.0
FULL_BYTES = 64 << 20
FULL_ROWS = 10_000
FULL_SECONDS = 60.0
"""A file that has so many rows is closed once it is so old: then it is worth its Parquet."""
OLD_SECONDS = 86_400.0
UNUSED_SECONDS = 10.0
"""A version that has not answered for so long, while another has, is closed."""

Row = dict[str, Any]
"""`request_id`, `row` (index in the request), `key`, `event_time`, `logged_at` (ISO, UTC), `version`,
`features` (name to value), `prediction`; `ahead_of_clock` where the event time lay ahead of the clock then."""


@dataclass
class _Segment:
    """A file that this process appends to."""

    path: Path
    descriptor: int
    opened: float
    """On the monotonic clock, as `used`."""
    used: float
    rows: int = 0
    size: int = 0
    dirty: bool = False

    def is_full(self, now: float) -> bool:
        age = now - self.opened
        return self.size >= FULL_BYTES or age >= OLD_SECONDS or (self.rows >= FULL_ROWS and age >= FULL_SECONDS)


@dataclass
class PredictionLog:
    """The log of one model. Safe to share between threads; any number of processes may write and read."""

    folder: Path
    """`settings.predictions_dir/<project>/<model>`; made by the first append."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: dict[int, _Segment] = field(default_factory=dict)
    """By version."""
    _done: list[_Segment] = field(default_factory=list)
    """Nothing is appended to them any more: the syncer closes them."""
    _closed: threading.Event = field(default_factory=threading.Event)
    _syncer: threading.Thread | None = None

    def append(self, rows: list[Row]) -> None:
        """Log *rows*; each needs an `event_time` in ISO with a zone.

        When this returns, every line is with the kernel. Raises `StorageLow` when the disk is full and
        `Unavailable` when it cannot be written; rows of other versions may have been logged by then.
        """
        by_version: dict[int, list[str]] = {}
        for row in rows:
            line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            by_version.setdefault(row.get("version", 0), []).append(line)
        for version, lines in by_version.items():
            self.append_lines(version, ("\n".join(lines) + "\n").encode(), len(lines))

    def append_lines(self, version: int, lines: bytes, rows: int) -> None:
        """The same for who has made the *lines*: as many whole `Row`s of one version as JSON, each with its newline.

        One write.
        """
        with self._lock:
            self._write(version, lines, rows)
            if self._syncer is None:
                self._start_syncing()

    def prepare(self, version: int) -> None:
        """Make the version's file before its first answer waits for it. Failing is left to that one."""
        with self._lock:
            if version in self._open:
                return
        with contextlib.suppress(OSError):
            self._begin(version)

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        with self._lock:
            dirty = [each for each in self._open.values() if each.dirty]
            descriptors = [os.dup(each.descriptor) for each in dirty] + [each.descriptor for each in self._done]
            self._done.clear()
            for each in dirty:
                each.dirty = False
        for descriptor in descriptors:  # outside the lock: a slow disk must not hold up answers
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Sync and let go of the files. Safe to call twice."""
        self._closed.set()
        if self._syncer is not None:
            self._syncer.join(timeout=5)
        with self._lock:
            for version in list(self._open):
                self._let_go(version)
        self.sync()

    def read(self, window: Window) -> Iterator[Row]:
        """Rows with start <= event time < end that are lines still, each (request_id, row) once, file by file.

        What is Parquet is read in a compute child, see `activities.compute.predictions`.
        A torn line (a process died while writing it) is passed over: its answer was never sent.
        """
        seen: set[tuple[str, int]] = set()
        for name in line_files(self.folder):
            for moment, row in _read(self.folder / name):
                identity = (str(row.get("request_id")), int(row.get("row", 0)))
                if window.start <= moment < window.end and identity not in seen:
                    seen.add(identity)
                    yield row

    def _write(self, version: int, lines: bytes, rows: int) -> None:
        try:
            segment = self._segment(version)
            whole = os.write(segment.descriptor, lines) == len(lines)
        except OSError as error:
            self._let_go(version)  # its last line may be torn: the next append begins another
            raise _refusal(error.errno or errno.EIO) from error
        if not whole:
            self._let_go(version)
            raise _refusal(errno.ENOSPC)
        segment.used, segment.dirty = time.monotonic(), True
        segment.rows += rows
        segment.size += len(lines)

    def _segment(self, version: int) -> _Segment:
        found = self._open.get(version)
        if found is None:
            found = self._open[version] = _begun(self.folder / LIVE, version)
        return found

    def _begin(self, version: int) -> None:
        """Another file for the version. It is made while others append: that may take a busy disk long."""
        made = _begun(self.folder / LIVE, version)
        with self._lock:
            self._let_go(version)
            self._open[version] = made

    def _let_go(self, version: int) -> None:
        segment = self._open.pop(version, None)
        if segment is not None:
            self._done.append(segment)

    def _tidy(self) -> None:
        """Begin another file where one is full, and let go of versions that others have taken the place of."""
        now = time.monotonic()
        with self._lock:
            latest = max((each.used for each in self._open.values()), default=now)
            for version, each in list(self._open.items()):
                if each.used < latest and now - each.used > UNUSED_SECONDS:
                    self._let_go(version)
            full = [version for version, each in self._open.items() if each.is_full(now)]
        for version in full:
            self._begin(version)

    def _start_syncing(self) -> None:
        self._syncer = threading.Thread(target=self._keep_syncing, name="prediction-log-sync", daemon=True)
        self._syncer.start()

    def _keep_syncing(self) -> None:
        while not self._closed.wait(SYNC_SECONDS):
            try:
                self._tidy()
                self.sync()
            except OSError:
                continue  # the next append meets the same disk and says so to its caller


def _begun(folder: Path, version: int) -> _Segment:
    """A new file that is ours alone. It has its name only once it is locked: who finds it unlocked knows it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"v{version}-{os.getpid()}-{uuid.uuid4().hex[:12]}.jsonl"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    hidden = folder / f"{name}.new"
    descriptor = os.open(hidden, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(folder / name)
    except OSError:
        os.close(descriptor)
        hidden.unlink(missing_ok=True)
        raise
    now = time.monotonic()
    return _Segment(folder / name, descriptor, opened=now, used=now)


def _read(path: Path) -> Iterator[tuple[datetime, Row]]:
    with path.open("rb") as source:
        for line in source:
            parsed = _parse(line)
            if parsed is not None:
                yield parsed


def _parse(line: bytes) -> tuple[datetime, Row] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        return datetime.fromisoformat(row["event_time"]).astimezone(UTC), row
    except (ValueError, KeyError, TypeError):
        return None


def _refusal(number: int) -> StorageLow | Unavailable:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StorageLow("the prediction log's disk is full, and nothing is answered unlogged", hint="free some space")
    return Unavailable(
        f"the prediction log cannot be written ({os.strerror(number)})", hint="look at the predictions folder"
    )
