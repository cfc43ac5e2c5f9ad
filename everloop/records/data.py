"""What was read, and what validation says of it."""

import hashlib
from datetime import datetime
from typing import Literal

from everloop.records.job import Result
from everloop.records.record import Blob, Record


class Code(Record):
    """A user's trainer as it was kept, and what it needs: all that a job must have to call it."""

    archive: Blob | None = None
    """A tar of the folder, or a wheel. None: the function is installed beside Everloop, or comes with a requirement."""
    requirements: tuple[str, ...] = ()
    """What pip installs; none: what the requirements.txt of the archive says, if it has one."""

    @property
    def digest(self) -> str:
        """What an approval names: of the archive's digest and the requirements, 64 hex digits."""
        said = [self.archive.sha256 if self.archive else "", *self.requirements]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()


class Column(Record):
    """A column of a table: its name and kind as detected or as fitted."""

    name: str
    kind: Literal["number", "category", "boolean", "datetime", "text"]
    nulls: int = 0
    distinct: int | None = None
    layouts: tuple[str, ...] = ()
    """How its times were written where not in ISO 8601, as strptime says it; `decimal comma` for numbers so written."""


class Snapshot(Result):
    """The source's bytes at one moment. `manifest` lists the files, each a blob of its own."""

    manifest: Blob
    rows: int
    files: int
    size_bytes: int
    columns: tuple[Column, ...]
    schema_digest: str
    time_from: datetime | None = None
    time_to: datetime | None = None
    reading: Blob | None = None
    """JSON of `Reading`: how bytes became columns. None: the first reader's rules."""
    changed: tuple[str, ...] = ()
    """Sentences on what the rules changed, as many as a result that travels through Temporal may list."""
    profile: Blob | None = None
    """JSON: per column its kind, missing and different values and the bars of a histogram; what the rules changed."""
    target_missing: int = 0
    """Rows without a target: nothing is learned from them."""
    rejected: Blob | None = None
    """CSV: the values that are not as declared, with their file and row."""
    code: Code | None = None
    """The user's trainer at that moment, where one learns."""


class Check(Record):
    """One thing that validation looked at. An `error` fails the stage, a `warning` is shown."""

    name: str
    level: Literal["ok", "warning", "error"]
    column: str = ""
    message: str


class Validation(Result):
    """What validation found."""

    checks: tuple[Check, ...]
