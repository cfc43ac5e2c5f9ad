"""The chunked door: a snapshot's rows, a column or a batch at a time, so that memory does not grow with the table.

`opened` gives a `data.Table` whose rows stay in Parquet until they are asked for.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from activities.compute.data import Table
from activities.compute.data.manifest import described
from everloop.artifacts import Artifacts
from everloop.records import Blob, Snapshot

CHUNK_ROWS = 65_536
"""Rows that are worked on at once."""
BUFFER_BYTES = 1 << 20
"""Of each column while it is read."""


class Stored:
    """Canonical columns in Parquet files, in the order of the files: what `data.Table` takes for a pyarrow table."""

    def __init__(
        self,
        paths: Sequence[Path],
        names: Sequence[str] | None = None,
        known: "dict[Path, pa.parquet.FileMetaData] | None" = None,
    ) -> None:
        self.paths = tuple(paths)
        self._known = {} if known is None else known
        """What the files say of their columns: of a wide one it takes long to read, and is asked for by each column."""
        whole = self._about(self.paths[0]).schema.to_arrow_schema()
        self.places = {name: place for place, name in enumerate(whole.names)}
        self.width = len(whole.names)
        chosen = whole.names if names is None else names
        self.schema = pa.schema([whole.field(name) for name in chosen])

    @property
    def column_names(self) -> list[str]:
        return list(self.schema.names)

    def _about(self, path: Path) -> pa.parquet.FileMetaData:
        if path not in self._known:
            self._known[path] = pa.parquet.read_metadata(path)
        return self._known[path]

    def _file(self, path: Path, coded: Sequence[str] = ()) -> pa.parquet.ParquetFile:
        """A file to be read as it is asked for. Left to itself, pyarrow keeps all that was read until its end."""
        about = self._about(path)
        return pa.parquet.ParquetFile(
            path, metadata=about, read_dictionary=list(coded), pre_buffer=False, buffer_size=BUFFER_BYTES
        )

    def cast(self, schema: pa.Schema) -> "Stored":
        """The same columns, with the notes of *schema* on them."""
        noted = Stored(self.paths, known=self._known)
        noted.schema = schema
        return noted

    @cached_property
    def num_rows(self) -> int:
        return sum(self._about(path).num_rows for path in self.paths)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """One whole column. It is read again each time: nothing is kept."""
        return self.table([name])[name]

    def table(self, names: Sequence[str]) -> pa.Table:
        """Whole columns."""
        schema = pa.schema([self.schema.field(name) for name in names])
        read = [self._file(path).read(columns=list(names), use_threads=False) for path in self.paths]
        return pa.concat_tables([part.select(list(names)).cast(schema) for part in read])

    def select(self, names: Sequence[str]) -> "Stored":
        chosen = Stored(self.paths, names, self._known)
        chosen.schema = pa.schema([self.schema.field(name) for name in names])
        return chosen

    def batches(
        self, size: int = CHUNK_ROWS, *, coded: bool = False, within: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """The rows in order, at most *size* at once, each batch with the number of its first row.

        *coded*: texts as dictionaries, which are decoded once per value and not once per row. *within*: only row
        groups that have rows from the first of these numbers on and before the second; others are not read.
        """
        names = self.column_names
        texts = [field.name for field in self.schema if pa.types.is_string(field.type)] if coded else []
        start = 0
        for path in self.paths:
            about, first = self._about(path), start
            start += about.num_rows
            at, groups = self._groups(about, first, within or (0, start))
            if not groups:
                continue
            for batch in self._file(path, texts).iter_batches(size, groups, columns=names, use_threads=False):
                yield at, pa.Table.from_batches([batch]).select(names)
                at += batch.num_rows

    @staticmethod
    def _groups(about: pa.parquet.FileMetaData, first: int, within: tuple[int, int]) -> tuple[int, list[int]]:
        """The row groups of a file, whose rows are from *first* on, with rows *within*; their first row's number."""
        low, high = within
        if low <= first and first + about.num_rows <= high:
            return first, list(range(about.num_row_groups))
        sizes = [about.row_group(place).num_rows for place in range(about.num_row_groups)]
        starts = np.cumsum([first, *sizes]).tolist()
        found = [place for place, size in enumerate(sizes) if starts[place] < high and starts[place] + size > low]
        return (starts[found[0]] if found else first), found

    def around(self, low: int, high: int) -> "tuple[Stored, int]":
        """Those of the files that have rows from *low* on and before *high*, and the number of their first row."""
        start, first = 0, 0
        found: list[Path] = []
        for path in self.paths:
            end = start + self._about(path).num_rows
            if start < high and end > low:
                first, found = (first if found else start), [*found, path]
            start = end
        if not found:
            return self, 0
        some = Stored(found, known=self._known)
        some.schema = self.schema
        return some, first

    def take(self, indices: pa.Array) -> pa.Table:
        """Rows by their numbers, in the order given."""
        wanted = np.asarray(indices, np.int64)
        order = np.argsort(wanted, kind="stable")
        ranked, parts = wanted[order], []
        for start, batch in self.batches():
            low, high = np.searchsorted(ranked, [start, start + batch.num_rows])
            if low < high:
                parts.append(batch.take(pa.array(ranked[low:high] - start)))
        found = pa.concat_tables(parts).cast(self.schema) if parts else self.schema.empty_table()
        if bool((order == np.arange(len(order))).all()):
            return found
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return found.take(pa.array(back))

    @property
    def columns(self) -> list[pa.ChunkedArray]:
        return list(self.table(self.column_names).columns)


@contextmanager
def opened(artifacts: Artifacts, of: Snapshot) -> Iterator[Table]:
    """A snapshot's table whose rows stay in their files. Raises `NotFound`, `IntegrityError`."""
    manifest = json.loads(artifacts.get(of.manifest))
    with ExitStack() as files:
        paths = [
            files.enter_context(artifacts.open_local(Blob.model_validate(file["table"]))) for file in manifest["files"]
        ]
        yield described(Stored(paths), manifest, of, artifacts)


def chunks(
    table: Table, names: Sequence[str], rows: NDArray[np.int64], size: int = CHUNK_ROWS, *, coded: bool = False
) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
    """The columns of *rows* (ascending row numbers), batch by batch, each with the numbers of its rows."""
    if not len(rows):
        return
    done = 0
    for start, batch in batches(table.rows, names, size, coded=coded, within=(int(rows[0]), int(rows[-1]) + 1)):
        low = done
        done = int(np.searchsorted(rows, start + batch.num_rows))
        if low == done:
            continue
        own = rows[low:done]
        first, last = int(own[0]) - start, int(own[-1]) - start
        if last - first + 1 == len(own):  # without gaps
            yield own, batch.slice(first, len(own))
        else:
            yield own, batch.take(pa.array(own - start))


def batches(
    rows: Any,  # noqa: ANN401  # a Stored or a pyarrow table
    names: Sequence[str],
    size: int = CHUNK_ROWS,
    *,
    coded: bool = False,
    within: tuple[int, int] | None = None,
) -> Iterator[tuple[int, pa.Table]]:
    """All rows of the columns, batch by batch, each with the number of its first row (see `Stored.batches`).

    *within*: batches without a row from the first of these numbers on and before the second may be left out.
    """
    if isinstance(rows, Stored):
        yield from rows.select(names).batches(size, coded=coded, within=within)
        return
    held = rows.select(list(names))
    low, high = within or (0, held.num_rows)
    for start in range(low, high, size):
        yield start, held.slice(start, min(size, high - start))
