"""The rows of a window, each once, out of Parquet and lines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from activities.compute.inference import Columns
from activities.compute.predictions.columns import ABOUT, BESIDE, FEATURE, MICROSECONDS, tables
from activities.compute.predictions.identity import drawn, hashed, later_ones, moments, repeated
from activities.compute.predictions.united import as_raw, as_type, missing
from everloop.artifacts import Artifacts
from everloop.errors import DatasetMissing, naming
from everloop.predictions import LogPart, LogParts
from everloop.predictions.parts import lines_between
from everloop.records import Signature, Window

IDENTITY = ("request_id", "row", "event_time", "logged_at")
BATCH_ROWS = 65_536


class Source(Protocol):
    """Rows that are read together: a row group, or lines that are in memory."""

    @property
    def schema(self) -> pa.Schema: ...

    def read(self, names: Sequence[str]) -> pa.Table: ...


@dataclass(frozen=True)
class Group:
    """A row group of a Parquet file."""

    file: pa.parquet.ParquetFile
    number: int
    schema: pa.Schema

    def read(self, names: Sequence[str]) -> pa.Table:
        found = self.file.read_row_group(self.number, columns=list(names), use_threads=False)
        return found.select(list(names))  # a name with a dot in it may bring others along


@dataclass(frozen=True)
class Held:
    """Lines that were read."""

    table: pa.Table

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def read(self, names: Sequence[str]) -> pa.Table:
        return self.table.select(list(names))


@dataclass
class Chunk:
    """Rows of one source that lie in the window and count."""

    source: Source
    kept: NDArray[np.int64]
    """Their places in the source."""
    start: int = 0
    """Place of the first among all rows."""

    def read(self, names: Sequence[str], at: NDArray[np.int64]) -> pa.Table:
        """The rows at *at*, places among all rows."""
        table = self.source.read(names)
        places = self.kept[at - self.start]
        if len(places) == table.num_rows and bool((places == np.arange(len(places))).all()):
            return table
        return table.take(pa.array(places))


class Logged:
    """The rows of *window*, each (request id, row) once: the one that was logged first.

    Features are found by their names, whichever version logged them. Rows keep one order as long as the files are the
    same; a sample is of the same rows whatever files they lie in.
    """

    def __init__(
        self,
        folder: Path,
        parts: LogParts,
        window: Window,
        signatures: Mapping[int, Signature],
        default: Signature | None = None,
    ) -> None:
        """*default*: how the rows of a version are read that is not among the *signatures*."""
        self.torn = 0
        """Lines that were none, and are passed over."""
        low, high = _microseconds(window.start), _microseconds(window.end)
        self.chunks: list[Chunk] = []
        found: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]] = []
        for part in parts.parts:
            for source in self._sources(folder, part, window, signatures, default):
                table = source.read(IDENTITY)
                times = table["event_time"].cast(pa.int64()).to_numpy()
                kept = np.flatnonzero((times >= low) & (times < high))
                if not len(kept):
                    continue
                if len(kept) < table.num_rows:
                    table, times = table.take(pa.array(kept)), times[kept]
                found.append((hashed(table["request_id"], table["row"]), times, moments(table["logged_at"])))
                self.chunks.append(Chunk(source, kept))
        self._number()
        self._hashes = _joined([hashes for hashes, _, _ in found], np.uint64)
        self._times = _joined([times for _, times, _ in found], np.int64)
        self._drop_repeated(_joined([logged for _, _, logged in found], np.int64))

    @property
    def rows(self) -> int:
        return len(self._times)

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """Event time of each row."""
        return np.asarray(self._times, np.float64) / MICROSECONDS

    def sample(self, most: int, seed: int) -> NDArray[np.int64]:
        """At most *most* places, each as likely as the other; by event time, the same ones for the same seed."""
        places = drawn(self._hashes, most, seed)
        return places[np.lexsort((self._hashes[places], self._times[places]))]

    def columns(self, signature: Signature, places: NDArray[np.int64] | None = None) -> Columns:
        """Raw columns of the rows at *places*, as a model of *signature* takes them.

        A row of another version may lack a field, or have it as another kind: then it is missing, unless the value
        means the same there.
        """
        wanted = {FEATURE + field.name: field for field in signature.fields}
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in wanted}
        order = self._places(places)
        for chunk, at in self._cut(order):
            names = [name for name in wanted if name in chunk.source.schema.names]
            table = chunk.read(names, at) if names else None
            for name, field in wanted.items():
                with naming(column=field.name):
                    known = table is not None and name in names
                    parts[name].append(
                        as_raw(table[name], field) if known and table is not None else missing(field, len(at))
                    )
        back = _back(order)
        return {
            field.name: _joined(parts[name], object if field.kind == "category" else np.float64)[back]
            for name, field in wanted.items()
        }

    def table(self, names: Sequence[str] | None = None, places: NDArray[np.int64] | None = None) -> pa.Table:
        """The rows at *places*, in that order. *names*: of `BESIDE`, or `feature:NAME`; all where left out."""
        schema = self._schema(names)
        order = self._places(places)
        found = [self._united(chunk, at, schema) for chunk, at in self._cut(order)]
        table = pa.concat_tables(found) if found else schema.empty_table()
        back = _back(order)
        return table if bool((back == np.arange(len(back))).all()) else table.take(pa.array(back))

    def batches(self, names: Sequence[str] | None = None, size: int = BATCH_ROWS) -> Iterator[pa.Table]:
        """All rows, at most about *size* at once."""
        schema = self._schema(names)
        for chunk in self.chunks:
            for start in range(0, len(chunk.kept), size):
                at = np.arange(start, min(start + size, len(chunk.kept))) + chunk.start
                yield self._united(chunk, at, schema)

    def _sources(
        self,
        folder: Path,
        part: LogPart,
        window: Window,
        signatures: Mapping[int, Signature],
        default: Signature | None,
    ) -> Iterator[Source]:
        path = folder / part.name
        try:
            if part.kind == "parquet":
                yield from _groups(path, window)
                return
            lines = list(lines_between(path, 0, part.bytes))
        except FileNotFoundError:
            raise DatasetMissing(
                f"a file of the prediction log is gone: {part.name}",
                field="window",
                hint="what was replaced stays for an hour, what the spec's log.keep removes is gone: look again",
            ) from None
        rows = 0
        for _, table in tables(lines, signatures, default):
            if isinstance(table, int):
                rows += table
                continue
            rows += table.num_rows
            yield Held(table)
        self.torn += len(lines) - rows

    def _drop_repeated(self, logged_at: NDArray[np.int64]) -> None:
        """Of what is there twice, keep what was logged first."""
        suspects = repeated(self._hashes)
        if not len(suspects):
            return
        asked = self.table(("request_id", "row"), suspects)
        dropped = later_ones(suspects, asked["request_id"].to_pylist(), asked["row"].to_pylist(), logged_at)
        keep = np.ones(self.rows, bool)
        keep[dropped] = False
        for chunk in self.chunks:
            chunk.kept = chunk.kept[keep[chunk.start : chunk.start + len(chunk.kept)]]
        self._hashes, self._times = self._hashes[keep], self._times[keep]
        self._number()

    def _number(self) -> None:
        start = 0
        for chunk in self.chunks:
            chunk.start = start
            start += len(chunk.kept)
        self.chunks = [chunk for chunk in self.chunks if len(chunk.kept)]

    def _places(self, places: NDArray[np.int64] | None) -> NDArray[np.int64]:
        return np.arange(self.rows) if places is None else places

    def _cut(self, places: NDArray[np.int64]) -> Iterator[tuple[Chunk, NDArray[np.int64]]]:
        """The places by their chunks, ascending."""
        ranked = np.sort(places)
        for chunk in self.chunks:
            low, high = np.searchsorted(ranked, [chunk.start, chunk.start + len(chunk.kept)])
            if low < high:
                yield chunk, ranked[low:high]

    def _schema(self, names: Sequence[str] | None) -> pa.Schema:
        """Columns of all versions by name; where they differ in type, as the last version has it."""
        known: dict[str, pa.DataType] = {field.name: field.type for field in BESIDE}
        for chunk in sorted(self.chunks, key=_version):
            known |= {field.name: field.type for field in chunk.source.schema}
        chosen = known if names is None else {name: known.get(name, pa.null()) for name in names}
        return pa.schema(list(chosen.items()))

    def _united(self, chunk: Chunk, at: NDArray[np.int64], schema: pa.Schema) -> pa.Table:
        names = [name for name in schema.names if name in chunk.source.schema.names]
        table = chunk.read(names, at)
        columns = [
            as_type(table[field.name], field.type) if field.name in names else pa.nulls(len(at), field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(columns, schema=schema)


def signatures_of(parts: LogParts, artifacts: Artifacts) -> dict[int, Signature]:
    """By version."""
    return {version: Signature.model_validate_json(artifacts.get(blob)) for version, blob in parts.signatures.items()}


def _groups(path: Path, window: Window) -> Iterator[Group]:
    """The row groups that may hold rows of the window."""
    about = pa.parquet.read_metadata(path)
    schema = about.schema.to_arrow_schema()
    file = pa.parquet.ParquetFile(path, metadata=about, pre_buffer=False)
    place = schema.get_field_index("event_time")  # among the leaves too: nothing before it is nested
    for number in range(about.num_row_groups):
        bounds = about.row_group(number).column(place).statistics
        if bounds is None or not bounds.has_min_max or (bounds.min < window.end and bounds.max >= window.start):
            yield Group(file, number, schema)


def _version(chunk: Chunk) -> int:
    return int(json.loads(chunk.source.schema.metadata[ABOUT])["version"])


def _back(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of the sorted places belongs."""
    order = np.argsort(places, kind="stable")
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return back


def _joined(parts: Sequence[NDArray[Any]], kind: type) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, kind)


def _microseconds(moment: datetime) -> int:
    span = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (span.days * 86_400 + span.seconds) * MICROSECONDS + span.microseconds
