# ruff: noqa: S608  # names in SQL are ours: c0, c1, ...; paths are quoted
"""The chunked door: a snapshot's rows, a column or a batch at a time, so that memory does not grow with the table.

`opened` gives a `data.Table` whose rows stay in Parquet until they are asked for. `Aggregates` asks DuckDB about
columns; its answers depend neither on how rows are cut into chunks nor on the number of threads.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from activities.compute.data import Table
from activities.compute.data.engine import connection
from activities.compute.data.engine import text as quoted
from activities.compute.data.manifest import described
from everloop.artifacts import Artifacts
from everloop.records import Blob, Snapshot

LARGEST = 3.4e38
"""What float32 holds."""
CHUNK_ROWS = 65_536
"""Rows that are worked on at once."""
MEMORY_MIB = 256
"""DuckDB's own; what does not fit goes to the scratch folder."""
THREADS = 1
"""A slot's."""
BUFFER_BYTES = 1 << 20
"""Of each column while it is read."""
GLOB = re.compile(r"[*?\[\]{}]")


class Stored:
    """Canonical columns in Parquet files, in the order of the files: what `data.Table` takes for a pyarrow table."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str] | None = None) -> None:
        self.paths = tuple(paths)
        whole = pa.parquet.read_schema(self.paths[0])
        self.places = {name: place for place, name in enumerate(whole.names)}
        self.width = len(whole.names)
        chosen = whole.names if names is None else names
        self.schema = pa.schema([whole.field(name) for name in chosen])

    @property
    def column_names(self) -> list[str]:
        return list(self.schema.names)

    def cast(self, schema: pa.Schema) -> "Stored":
        """The same columns, with the notes of *schema* on them."""
        noted = Stored(self.paths)
        noted.schema = schema
        return noted

    @cached_property
    def num_rows(self) -> int:
        return sum(pa.parquet.read_metadata(path).num_rows for path in self.paths)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """One whole column. It is read again each time: nothing is kept."""
        return self.table([name])[name]

    def table(self, names: Sequence[str]) -> pa.Table:
        """Whole columns."""
        schema = pa.schema([self.schema.field(name) for name in names])
        read = [_file(path).read(columns=list(names), use_threads=False) for path in self.paths]
        return pa.concat_tables([part.select(list(names)).cast(schema) for part in read])

    def select(self, names: Sequence[str]) -> "Stored":
        chosen = Stored(self.paths, names)
        chosen.schema = pa.schema([self.schema.field(name) for name in names])
        return chosen

    def batches(self, size: int = CHUNK_ROWS, *, coded: bool = False) -> Iterator[tuple[int, pa.Table]]:
        """The rows in order, at most *size* at once, each batch with the number of its first row.

        *coded*: texts as dictionaries, which are decoded once per value and not once per row.
        """
        names = self.column_names
        texts = [field.name for field in self.schema if pa.types.is_string(field.type)] if coded else []
        start = 0
        for path in self.paths:
            for batch in _file(path, texts).iter_batches(size, columns=names, use_threads=False):
                yield start, pa.Table.from_batches([batch]).select(names)
                start += batch.num_rows

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


def _file(path: Path, coded: Sequence[str] = ()) -> pa.parquet.ParquetFile:
    """A file that is read as it is asked for. Left to itself, pyarrow keeps all that was read until the file's end."""
    return pa.parquet.ParquetFile(path, read_dictionary=list(coded), pre_buffer=False, buffer_size=BUFFER_BYTES)


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
    for start, batch in _batches(table.rows, names, size, coded=coded):
        low, high = np.searchsorted(rows, [start, start + batch.num_rows])
        if low == high:
            continue
        own = rows[low:high]
        yield own, batch if len(own) == batch.num_rows else batch.take(pa.array(own - start))


def _batches(rows: Any, names: Sequence[str], size: int, *, coded: bool) -> Iterator[tuple[int, pa.Table]]:  # noqa: ANN401
    if isinstance(rows, Stored):
        yield from rows.select(names).batches(size, coded=coded)
        return
    held = rows.select(list(names))
    for start in range(0, held.num_rows, size):
        yield start, held.slice(start, size)


# --- aggregates ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """What a column of numbers, booleans (0 and 1) or moments (microseconds since 1970) holds in the rows asked."""

    count: int
    """Of its values: missing ones are not counted."""
    nulls: int
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Texts:
    """What a column of text holds in the rows asked."""

    count: int
    nulls: int
    distinct: int
    common: tuple[tuple[str, int], ...]
    """The most frequent values and their counts, by count, then by value."""


class Aggregates:
    """Questions about the columns of some rows of a table. One at a time; `open_aggregates` makes it."""

    def __init__(
        self,
        connection: "duckdb.DuckDBPyConnection",
        table: Table,
        rows: NDArray[np.int64],
        paths: Sequence[str],
    ) -> None:
        """*paths*: of the files of a `Stored` table, as DuckDB takes them."""
        self._ask = connection
        self._total = len(rows)
        names = table.rows.column_names
        self._name = {name: f"c{place}" for place, name in enumerate(names)}
        if isinstance(table.rows, Stored):
            self._name = {name: f"c{table.rows.places[name]}" for name in names}
            aliases = ", ".join(f"c{place}" for place in range(table.rows.width))
            files = ", ".join(map(quoted, paths))
            # Aliased by place: to DuckDB the names x and X would be one.
            self._source = f"read_parquet([{files}], hive_partitioning = false) AS t({aliases})"
        else:
            connection.register("given", table.rows.rename_columns(list(self._name.values())))
            self._source = "given"
        kept = np.zeros(len(table), np.bool_)
        kept[rows] = True
        self._all = bool(kept.all())
        if not self._all:
            connection.register("kept", pa.table({"keep": kept}))
        self._kind = {field.name: field.type for field in table.rows.schema}

    def _rows(self, *names: str) -> str:
        """The columns of the rows asked, as SQL."""
        listed = ", ".join(self._name[name] for name in names)
        if self._all:
            return f"(SELECT {listed} FROM {self._source})"
        inner = f"(SELECT {listed} FROM {self._source})"
        return f"(SELECT {listed} FROM {inner} POSITIONAL JOIN kept WHERE keep)"

    def _number(self, name: str) -> str:
        """A column as DOUBLE; of a moment, its whole microseconds."""
        column, kind = self._name[name], self._kind[name]
        if pa.types.is_timestamp(kind):
            return f"epoch_us({column})"
        if pa.types.is_floating(kind):
            return f"CASE WHEN isfinite({column}) THEN {column} END"
        return f"CAST({column} AS DOUBLE)"

    def spreads(self, names: Sequence[str]) -> dict[str, Spread]:
        """Counts, least and largest value of columns, in one pass over them."""
        found: dict[str, Spread] = {}
        for start in range(0, len(names), 50):
            some = names[start : start + 50]
            asked = []
            for name in some:
                value = self._number(name)
                asked += [
                    f"count({value})",
                    f"CAST(min({value}) AS DOUBLE)",
                    f"CAST(max({value}) AS DOUBLE)",
                ]
            row = self._one(f"SELECT {', '.join(asked)} FROM {self._rows(*some)}")
            for place, name in enumerate(some):
                count, low, high = row[3 * place : 3 * place + 3]
                # + 0.0: which of -0.0 and 0.0 is the least depends on the order.
                found[name] = Spread(count, self._total - count, (low or 0.0) + 0.0, (high or 0.0) + 0.0)
        return found

    def quantiles(self, name: str, shares: Sequence[float]) -> list[float]:
        """Exact quantiles, each a value that is there. Holds one column in memory."""
        listed = ", ".join(map(repr, shares))
        row = self._one(f"SELECT quantile_disc({self._number(name)}, [{listed}]) FROM {self._rows(name)}")
        return [float(value) + 0.0 for value in row[0] or ()]

    def other_than(self, name: str, value: float) -> int:
        """How many rows hold another value, missing ones too."""
        number = self._number(name)
        return int(
            self._one(f"SELECT count(*) FILTER ({number} IS DISTINCT FROM $1) FROM {self._rows(name)}", value)[0]
        )

    def apart(self, name: str, around: float) -> int:
        """How many different values float32 tells apart when *around* is subtracted first."""
        moved = f"greatest(least({self._number(name)} - $1, {LARGEST!r}), -{LARGEST!r})"
        query = f"SELECT count(DISTINCT CAST({moved} AS FLOAT)) FROM {self._rows(name)}"
        return int(self._one(query, around)[0])

    def different(self, name: str) -> int:
        """How many different values there are."""
        return int(self._one(f"SELECT count(DISTINCT {self._number(name)}) FROM {self._rows(name)}")[0])

    def calendar(self, name: str) -> dict[str, bool]:
        """Which calendar parts of a column of moments differ between rows."""
        moment = f"make_timestamp(epoch_us({self._name[name]}))"
        parts = ("hour", "isodow", "day", "month")
        asked = ", ".join(f"min({part}({moment})) <> max({part}({moment}))" for part in parts)
        row = self._one(f"SELECT {asked} FROM {self._rows(name)}")
        return dict(zip(("hour", "weekday", "day", "month"), map(bool, row), strict=True))

    def texts(self, name: str, most: int) -> Texts:
        """The different texts of a column and how often each is there; the empty text is missing."""
        column = self._name[name]
        self._ask.execute(
            f"CREATE OR REPLACE TEMP TABLE counted AS SELECT {column} AS value, count(*) AS n FROM {self._rows(name)} "
            f"WHERE {column} IS NOT NULL AND {column} <> '' GROUP BY ALL"
        )
        distinct, count = self._one("SELECT count(*), CAST(coalesce(sum(n), 0) AS BIGINT) FROM counted")
        common = self._ask.execute("SELECT value, n FROM counted ORDER BY n DESC, value LIMIT $1", [most]).fetchall()
        self._ask.execute("DROP TABLE counted")
        return Texts(count, self._total - count, distinct, tuple(common))

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._ask.execute(query, list(values)).fetchone()
        assert row is not None  # noqa: S101  # an aggregate always answers
        return row


@contextmanager
def open_aggregates(
    table: Table, rows: NDArray[np.int64], scratch: Path | None = None, threads: int = THREADS
) -> Iterator[Aggregates]:
    """Ask about *rows* of *table*. What does not fit into memory is spilled below *scratch*."""
    with ExitStack() as open_until_the_end:
        spill = open_until_the_end.enter_context(tempfile.TemporaryDirectory(dir=scratch, prefix="duckdb"))
        paths = table.rows.paths if isinstance(table.rows, Stored) else ()
        ask = open_until_the_end.enter_context(connection(Path(spill), threads, f"{MEMORY_MIB}MiB", cache_files=False))
        yield Aggregates(ask, table, rows, _plain(paths, open_until_the_end))


def _plain(paths: Sequence[Path], until: ExitStack) -> list[str]:
    """The paths as DuckDB takes them: by a link where it would read one as a pattern, or where one is no UTF-8."""
    if all(str(path).isprintable() and not GLOB.search(str(path)) for path in paths):
        return list(map(str, paths))
    links = Path(until.enter_context(tempfile.TemporaryDirectory(prefix="everloop")))
    for place, path in enumerate(paths):
        (links / str(place)).symlink_to(path.absolute())
    return [str(links / str(place)) for place in range(len(paths))]
