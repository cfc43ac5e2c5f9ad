"""A source file as typed Parquet: made once for each reading of its bytes, and found again by both digests.

The same bytes under the same reading are the same rows, whichever lifecycle asks and however the folder has grown.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet

from activities.compute.data import outright, reading
from activities.compute.data.engine import copy
from activities.compute.data.files import OURS, Opened
from activities.compute.data.sources import compression_of, format_of
from everloop.artifacts import Artifacts
from everloop.errors import EverloopError
from everloop.reading import ReadColumn, Reading
from everloop.records import Blob

CONVERTER = 1
"""Raised when the same reading makes other values of the same bytes."""
GROUP_ROWS = 1 << 16
"""The same where the names are not DuckDB's."""


@dataclass(frozen=True)
class Converted:
    """A file's rows in Parquet."""

    table: Blob
    path: Path
    again: bool
    """Made now, and not found from before."""


def digest_of(read: reading.Read, place: int) -> str:
    """What, beside the bytes, decides the rows that are read from a file."""
    return _digest(read.files[place], read.columns[place], read.reading.version)


def _digest(file: Opened, columns: Mapping[str, ReadColumn], version: int) -> str:
    said = {
        "converter": CONVERTER,
        "version": version,
        "format": format_of(file.name),
        "compression": compression_of(file.name),
        "dialect": file.dialect.model_dump() if file.dialect else None,
        "columns": list(file.columns),
        "read": [column.model_dump() for column in columns.values()],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _key(source: Blob, digest: str) -> str:
    return hashlib.sha256(f"{source.sha256}/{digest}".encode()).hexdigest()


def attempts(files: Sequence[Opened], sources: Sequence[Blob], artifacts: Artifacts, scratch: Path) -> outright.Target:
    """Where a file's rows are written while its reading is settled: nowhere, where they are known from before."""

    def target(place: int, columns: Mapping[str, ReadColumn]) -> Path | None:
        key = _key(sources[place], _digest(files[place], columns, Reading().version))
        return None if artifacts.recalled(key) else scratch / f"made-{place}.parquet"

    return target


def converted(  # noqa: PLR0917
    read: reading.Read,
    place: int,
    source: Blob,
    artifacts: Artifacts,
    scratch: Path,
    duck: duckdb.DuckDBPyConnection,
    until: ExitStack,
) -> Converted:
    """The rows of a file of *read*, whose bytes are *source*. Its path lives as long as *until*."""
    key = _key(source, digest_of(read, place))
    found = artifacts.recalled(key)
    if found is not None and (path := _opened(found, read.rows[place], artifacts, until)) is not None:
        return Converted(found, path, again=False)
    path = scratch / f"table-{place}.parquet"
    made = read.made.get(place)
    if made is not None and made.columns == read.columns[place]:
        made.path.rename(path)
    else:
        _write(read, place, path, duck)
    table = artifacts.put_file(path, "table.parquet")
    path.unlink()
    artifacts.remember(key, table)
    return Converted(table, until.enter_context(artifacts.open_local(table)), again=True)


def _opened(table: Blob, rows: int, artifacts: Artifacts, until: ExitStack) -> Path | None:
    """Its path, where it is whole and has as many rows as the file has now; else None, and it is made again."""
    try:
        path = until.enter_context(artifacts.open_local(table))
        return path if pa.parquet.read_metadata(path).num_rows == rows else None
    except (EverloopError, pa.ArrowException, OSError):
        return None


def _write(read: reading.Read, place: int, target: Path, duck: duckdb.DuckDBPyConnection) -> None:
    try:
        if not _alike(read):
            copy(reading.select(read, place), target, len(read.columns[place]), duck)
            return
        # Names that differ in case alone are one name to DuckDB.
        names = list(read.columns[place])
        batches = duck.sql(reading.select(read, place, numbered=True)).to_arrow_reader(GROUP_ROWS)
        schema = pa.schema([field.with_name(name) for field, name in zip(batches.schema, names, strict=True)])
        with pa.parquet.ParquetWriter(target, schema, compression="zstd") as out:
            for batch in batches:
                out.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
    except OURS:
        raise
    except duckdb.Error as error:
        raise read.files[place].fault(str(error)) from None


def _alike(read: reading.Read) -> bool:
    """Do two names differ in case alone?"""
    return len({name.casefold() for name in read.columns[0]}) < len(read.columns[0])
