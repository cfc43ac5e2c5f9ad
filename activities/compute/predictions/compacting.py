"""Lines, and small Parquet files, made into Parquet: one file for each version and day of event time.

Sorted by event time, an hour or several to a row group, so that a window is found by the files' own statistics.
A row that a caller sent twice within an hour is kept once, as the reader keeps it.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from activities.compute.predictions.columns import MICROSECONDS, tables
from activities.compute.predictions.identity import hashed, later_ones, moments, repeated
from activities.predictions.asked import Compact, Compacted
from everloop.errors import IntegrityError
from everloop.predictions import LogPart, Piece, PieceHour
from everloop.predictions.parts import PARQUET, lines_between
from everloop.records import Signature

HOUR, DAY = 3600 * MICROSECONDS, 86_400 * MICROSECONDS
GROUP_ROWS = 8192
"""Whole hours are put together until a row group has so many rows."""
MOST_ROWS = 131_072
"""Of a row group: an hour with more has several."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def compact(request: Compact) -> Compacted:
    """Make the new files, whole and on the disk; the old ones stay. Raises `IntegrityError` where rows are missing."""
    folder = Path(request.folder)
    held: dict[int, list[pa.Table]] = defaultdict(list)
    stay: list[str] = []
    for part in request.parts:
        found = _rows_of(folder, part, request.signatures)
        if found is None:
            stay.append(part.name)
            continue
        for version, table in found:
            held[version].append(table)
    pieces = [piece for version in sorted(held) for piece in _written(folder, request.run, version, held.pop(version))]
    return Compacted(pieces=tuple(pieces), stay=tuple(stay))


def _rows_of(folder: Path, part: LogPart, signatures: dict[int, Signature]) -> list[tuple[int, pa.Table]] | None:
    """The rows of a part by version. None: some of them are of a version without a signature."""
    if part.kind == "parquet":
        table = pa.parquet.ParquetFile(folder / part.name).read(use_threads=False)
        found = [(int(table["version"][0].as_py()), table)]
    else:
        found = []
        for version, table in tables(lines_between(folder / part.name, 0, part.bytes), signatures):
            if isinstance(table, int):
                return None
            found.append((version, table))
    rows = sum(table.num_rows for _, table in found)
    if rows != part.rows:
        raise IntegrityError(f"{part.name} has {rows} rows where the index counted {part.rows}")
    return found


def _written(folder: Path, run: str, version: int, found: list[pa.Table]) -> Iterator[Piece]:
    """One file for each day."""
    table = _once(pa.concat_tables(found).combine_chunks())
    times = table["event_time"].cast(pa.int64()).to_numpy()
    order = np.argsort(times, kind="stable")
    table, times = table.take(pa.array(order)), times[order]
    days = times // DAY
    for day in np.unique(days).tolist():
        low, high = np.searchsorted(days, [day, day + 1])
        yield _piece(folder, run, version, table.slice(low, high - low), times[low:high])


def _once(table: pa.Table) -> pa.Table:
    """Within each hour, what a caller sent again is left out."""
    hours = pa.array(table["event_time"].cast(pa.int64()).to_numpy() // HOUR)
    names = pc.binary_join_element_wise(hours.cast(pa.string()), table["request_id"], "/")
    suspects = repeated(hashed(names, table["row"]))
    if not len(suspects):
        return table
    places = pa.array(suspects)
    asked = (names.take(places).to_pylist(), table["row"].take(places).to_pylist())
    keep = np.ones(table.num_rows, bool)
    keep[later_ones(suspects, *asked, moments(table["logged_at"]))] = False
    return table.filter(pa.array(keep))


def _piece(folder: Path, run: str, version: int, table: pa.Table, times: NDArray[np.int64]) -> Piece:
    day = (EPOCH + timedelta(microseconds=int(times[0]))).date()
    name = f"{PARQUET}/day={day.isoformat()}/v{version}-{run}.parquet"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".part")
    ends = _ends_of_hours(times)
    texts = [field.name for field in table.schema if pa.types.is_string(field.type) and field.name != "request_id"]
    with pa.parquet.ParquetWriter(staged, table.schema, compression="zstd", use_dictionary=texts) as target:
        for low, high in _groups(ends):
            target.write_table(table.slice(low, high - low), row_group_size=MOST_ROWS)
    with staged.open("rb") as made:
        os.fsync(made.fileno())
    staged.rename(path)
    _sync_folder(path.parent)
    hours = tuple(_hour(times[low:high]) for low, high in zip([0, *ends[:-1]], ends, strict=True))
    return Piece(name=name, version=version, bytes=path.stat().st_size, rows=len(times), hours=hours)


def _ends_of_hours(times: NDArray[np.int64]) -> list[int]:
    hours = times // HOUR
    return [*(np.flatnonzero(np.diff(hours)) + 1).tolist(), len(times)]


def _groups(ends: list[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for end in ends:
        if end - start >= GROUP_ROWS or end == ends[-1]:
            yield start, end
            start = end


def _hour(times: NDArray[np.int64]) -> PieceHour:
    first, last = (EPOCH + timedelta(microseconds=int(each)) for each in (times[0], times[-1]))
    return PieceHour(hour=first.replace(minute=0, second=0, microsecond=0), rows=len(times), first=first, last=last)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
