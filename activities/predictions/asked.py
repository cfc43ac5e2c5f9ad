"""What work on the log is asked, and what it answers."""

from typing import Literal

from everloop.predictions import LogPart, LogParts, Piece
from everloop.records import Record, Signature, Window


class Compact(Record):
    """Which files become Parquet."""

    folder: str
    run: str
    """Part of the new files' names."""
    parts: tuple[LogPart, ...]
    signatures: dict[int, Signature]


class Compacted(Record):
    """What was made of them. Nothing counts until the index says so."""

    pieces: tuple[Piece, ...]
    stay: tuple[str, ...] = ()
    """Parts that were left as they are: they have rows of a version whose columns nobody knows."""


class Export(Record):
    """Which rows, and into what."""

    folder: str
    parts: LogParts
    signatures: dict[int, Signature]
    window: Window
    form: Literal["parquet", "csv"]
    out: str


class Exported(Record):
    rows: int
    torn: int
