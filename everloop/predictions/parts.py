"""Which files hold a model's log, and what is known of each."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from everloop.records import Blob, Record

LIVE = "live"
"""Folder of the lines that serve appends to."""
PARQUET = "parquet"

PartKind = Literal["lines", "parquet"]


class LogPart(Record):
    """One file of the log: so many bytes of its lines, or all of its Parquet."""

    name: str
    """Path within the model's folder."""
    kind: PartKind
    bytes: int
    """Of lines: how many are in the index. What was appended since belongs to the next listing."""
    rows: int = 0


class LogParts(Record):
    """The files that hold the log at one moment. Each row is in one of them, unless a caller sent it twice."""

    parts: tuple[LogPart, ...]
    signatures: dict[int, Blob] = Field(default_factory=dict)
    """JSON of `Signature` by version, of those that are registered."""


class PieceHour(Record):
    """What one Parquet file holds of one hour of event time."""

    hour: datetime
    rows: int
    first: datetime
    last: datetime


class Piece(Record):
    """A Parquet file that was made of lines, or of smaller ones: one version's rows of one event day."""

    name: str
    version: int
    bytes: int
    rows: int
    hours: tuple[PieceHour, ...]


def line_files(folder: Path) -> Iterator[str]:
    """Names of the files of lines in a model's *folder*; those of older Everloops lie by event day."""
    for pattern in (f"{LIVE}/*.jsonl", "day=*/*.jsonl"):
        for path in sorted(folder.glob(pattern)):
            yield str(path.relative_to(folder))


def on_disk(folder: Path) -> LogParts:
    """The lines that lie in *folder* now, where nothing has counted or compacted them."""
    names = list(line_files(folder))
    return LogParts(
        parts=tuple(LogPart(name=name, kind="lines", bytes=(folder / name).stat().st_size) for name in names)
    )


def lines_between(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The whole lines of a file between two places of it, each with its newline; a torn last one without."""
    with path.open("rb") as source:
        source.seek(start)
        left = end - start
        while left > 0:
            line = source.readline(left)
            if not line:
                return
            left -= len(line)
            yield line
