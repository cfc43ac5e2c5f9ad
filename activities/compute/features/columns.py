# ruff: noqa: S608  # names in SQL are ours: c0, c1, ...; paths are quoted
"""What columns hold in the rows that are fitted on: numbers a column at a time, texts by DuckDB where many differ.

Nothing here depends on how rows are cut into chunks, on the files or on the number of threads.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from numpy.typing import NDArray

from activities.compute.data import Table
from activities.compute.data.engine import connection
from activities.compute.data.engine import text as quoted
from activities.compute.data.table import floats
from activities.compute.features.dates import FIRST_SECOND, LAST_SECOND, Moments
from activities.compute.features.goals import Goal
from activities.compute.features.inputs import Floats
from activities.compute.resources import Resources
from activities.compute.rows import CHUNK_ROWS, Stored, chunks

LARGEST = 3.4e38
"""What float32 holds."""
MICROSECONDS = 1e6
MANY_TEXTS = 100_000
"""Different values of a column; where there are more, DuckDB counts them, and spills what memory does not hold."""
LOOKED_AT = 1 << 20
"""Rows whose texts are counted at once."""
NOTE = b"everloop_numbers"
GLOB = re.compile(r"[*?\[\]{}]")


# --- numbers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, booleans (0 and 1) or moments (microseconds since 1970) in the rows asked."""

    ranked: Floats
    """Its values, ascending. They are all there, so that every answer is exact."""
    rows: int
    ordered: bool
    """Each is a whole number and larger than the one in the row before, and none is missing."""
    gaps: int
    """Rows without any value: neither a number nor infinite."""
    gap_sums: Floats
    """Whole sums [outputs] of the target in those."""
    first: float = np.nan
    """Of the first row, as `last` of the last one: NaN where it has none."""
    last: float = np.nan

    @classmethod
    def merged(cls, parts: "Sequence[Numbers]") -> "Numbers":
        """Of all rows, from those of each stretch of them, in their order: the same as if nobody had cut them."""
        some = [part for part in parts if part.rows] or list(parts[:1])
        rising = all(one.last < other.first for one, other in pairwise(some))
        return cls(
            # Stable: it merges what is sorted already.
            ranked=np.sort(np.concatenate([part.ranked for part in some]), kind="stable"),
            rows=sum(part.rows for part in some),
            ordered=rising and all(part.ordered for part in some),
            gaps=sum(part.gaps for part in some),
            gap_sums=np.sum([part.gap_sums for part in some], axis=0),
            first=some[0].first,
            last=some[-1].last,
        )

    def write(self, path: Path) -> None:
        """Each different value with how often it is there, and the rest as a note."""
        starts = np.flatnonzero(np.r_[True, self.ranked[1:] != self.ranked[:-1]][: len(self.ranked)])
        counts = np.diff(np.r_[starts, len(self.ranked)])
        about = {name: getattr(self, name) for name in ("rows", "ordered", "gaps", "first", "last")}
        note = json.dumps(about | {"gap_sums": self.gap_sums.tolist()}).encode()
        held = pa.table({"value": self.ranked[starts], "count": counts}).replace_schema_metadata({NOTE: note})
        with pa.ipc.new_file(str(path), held.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
            out.write_table(held, CHUNK_ROWS)

    @classmethod
    def read(cls, path: Path) -> "Numbers":
        """What `write` wrote."""
        with pa.OSFile(str(path)) as file:
            held = pa.ipc.open_file(file).read_all()
        about = json.loads(held.schema.metadata[NOTE])
        ranked = np.repeat(held["value"].to_numpy(), held["count"].to_numpy())
        return cls(ranked=ranked, **(about | {"gap_sums": np.array(about["gap_sums"], np.float64)}))

    @property
    def count(self) -> int:
        return len(self.ranked)

    @property
    def nulls(self) -> int:
        return self.rows - len(self.ranked)

    # + 0.0: which of -0.0 and 0.0 comes first depends on the order of the rows.
    @property
    def low(self) -> float:
        return float(self.ranked[0]) + 0.0

    @property
    def high(self) -> float:
        return float(self.ranked[-1]) + 0.0

    def quantile(self, share: float) -> float:
        """An exact quantile: a value that is there."""
        return float(self.ranked[max(1, int(np.ceil(share * len(self.ranked)))) - 1]) + 0.0

    def other_than(self, value: float) -> int:
        """How many rows hold another value, missing ones too."""
        same = np.searchsorted(self.ranked, value, "right") - np.searchsorted(self.ranked, value, "left")
        return self.rows - int(same)

    def different(self) -> int:
        """How many different values there are."""
        return 1 + int(np.count_nonzero(self.ranked[1:] != self.ranked[:-1])) if len(self.ranked) else 0

    def apart(self, around: float) -> int:
        """How many different values float32 tells apart when *around* is subtracted first."""
        found, last = 0, np.float32(np.nan)
        for values in self._steps():
            moved = np.clip(values - around, -LARGEST, LARGEST).astype(np.float32)  # still ascending
            found += int(moved[0] != last) + int(np.count_nonzero(moved[1:] != moved[:-1]))
            last = moved[-1]
        return found

    def calendar(self) -> dict[str, bool]:
        """Which calendar parts of a column of moments differ between rows."""
        seen: dict[str, tuple[int, int]] = {}
        for values in self._steps():
            moments = Moments(np.floor(np.clip(values / MICROSECONDS, FIRST_SECOND, LAST_SECOND)).astype(np.int64))
            day, month = moments.day_and_month
            for name, part in (("hour", moments.hour), ("weekday", moments.weekday), ("day", day), ("month", month)):
                low, high = seen.get(name, (99, -1))
                seen[name] = min(low, int(part.min())), max(high, int(part.max()))
            if all(low < high for low, high in seen.values()):
                break
        return {name: low < high for name, (low, high) in seen.items()}

    def _steps(self) -> list[Floats]:
        return [self.ranked[start : start + CHUNK_ROWS] for start in range(0, len(self.ranked), CHUNK_ROWS)]


def numbers_of(table: Table, name: str, rows: NDArray[np.int64], goal: Goal) -> Numbers:
    """Read a column, 8 bytes a row."""
    values, start = np.empty(len(rows)), 0
    for numbers, batch in chunks(table, [name], rows):
        column = batch[name]
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        values[start : start + len(numbers)] = floats(column)
        start += len(numbers)
    ordered = _ordered(values)
    first, last = (float(values[0]), float(values[-1])) if len(values) else (np.nan, np.nan)
    gaps, sums = 0, np.zeros(goal.outputs)
    if not ordered:
        missing = np.flatnonzero(np.isnan(values))
        gaps = len(missing)
        sums = goal.sums(missing) if gaps else sums
        del missing
        values.sort()  # NaN last
    low, high = np.searchsorted(values, -np.inf, "right"), np.searchsorted(values, np.inf, "left")
    return Numbers(values[low:high], len(values), ordered, gaps, sums, first, last)


def _ordered(values: Floats) -> bool:
    """Each is a whole number and larger than the one before: mostly told from the first few."""
    for start in range(0, len(values), CHUNK_ROWS):
        some = values[max(0, start - 1) : start + CHUNK_ROWS]
        if not ((some[1:] > some[:-1]).all() and (some == np.round(some)).all()):
            return False
    return True


# --- texts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """What a column of text holds in the rows asked."""

    count: int
    nulls: int
    distinct: int
    common: tuple[tuple[str, int], ...]
    """The most frequent values and their counts, by count, then by value."""


def texts_in(  # noqa: PLR0917
    table: Table, name: str, rows: NDArray[np.int64], most: int, scratch: Path | None, resources: Resources
) -> Texts:
    """The different texts of a column and how often each is there; the empty text is missing."""
    counts = _few_texts(table, name, rows)
    if counts is not None:
        return _texts_of(counts, len(rows), most)
    with _engine(scratch, resources) as duck, _all_counted(duck, table, name, rows):
        return _most_common(duck, len(rows), most)


def write_texts(  # noqa: PLR0917
    path: Path, table: Table, name: str, rows: NDArray[np.int64], scratch: Path | None, resources: Resources
) -> None:
    """All the different texts of a column and how often each is there, for `merged_texts`."""
    counts = _few_texts(table, name, rows)
    if counts is not None:
        values, numbers = pa.array(list(counts), pa.string()), pa.array(list(counts.values()), pa.int64())
        pa.parquet.write_table(pa.table({"value": values, "n": numbers}), path, compression="zstd")
        return
    with _engine(scratch, resources) as duck, _all_counted(duck, table, name, rows):
        duck.execute(f"COPY counted TO {quoted(str(path))} (FORMAT parquet, COMPRESSION zstd)")


def merged_texts(paths: Sequence[Path], rows: int, most: int, scratch: Path | None, resources: Resources) -> Texts:
    """What a column of *rows* rows holds, from the files that `write_texts` wrote of stretches of them."""
    if sum(pa.parquet.read_metadata(path).num_rows for path in paths) <= MANY_TEXTS:
        counts: Counter[str] = Counter()
        for path in paths:
            held = pa.parquet.read_table(path)
            for value, count in zip(held["value"].to_pylist(), held["n"].to_pylist(), strict=True):
                counts[value] += count
        return _texts_of(counts, rows, most)
    with _engine(scratch, resources) as duck, ExitStack() as until:
        listed = ", ".join(map(quoted, _plain(paths, until)))
        duck.execute(
            f"CREATE TEMP TABLE counted AS SELECT value, CAST(sum(n) AS BIGINT) AS n "
            f"FROM read_parquet([{listed}], hive_partitioning = false) GROUP BY ALL"
        )
        return _most_common(duck, rows, most)


def _few_texts(table: Table, name: str, rows: NDArray[np.int64]) -> Counter[str] | None:
    """The different texts and how often each is there; None where they are too many for that."""
    counts: Counter[str] = Counter()
    for _, batch in chunks(table, [name], rows, LOOKED_AT, coded=True):
        for value, count in _counted(batch[name]):
            counts[value] += count
        if len(counts) > MANY_TEXTS:
            return None
    counts.pop("", None)
    return counts


def _texts_of(counts: Counter[str], rows: int, most: int) -> Texts:
    total = counts.total()
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    return Texts(total, rows - total, len(counts), tuple(common))


def _counted(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    """The texts in a batch and how often each is there."""
    found: list[tuple[str, int]] = []
    for chunk in column.chunks:
        coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        indices = coded.indices.drop_null() if coded.null_count else coded.indices
        counts = np.bincount(indices.to_numpy(), minlength=len(coded.dictionary))
        there = np.flatnonzero(counts)
        values = coded.dictionary.take(pa.array(there)).to_pylist()
        found += zip(values, counts[there].tolist(), strict=True)
    return found


@contextmanager
def _engine(scratch: Path | None, resources: Resources) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(dir=scratch, prefix="duckdb") as spill:
        memory = f"{resources.memory_mib}MiB"
        with connection(Path(spill), resources.threads, memory, cache_files=False) as duck:
            yield duck


@contextmanager
def _all_counted(duck: Any, table: Table, name: str, rows: NDArray[np.int64]) -> Iterator[None]:  # noqa: ANN401
    """Make the table `counted` of the different texts in *rows* (ascending) and how often each is there."""
    with ExitStack() as until:
        first, count = 0, len(table)
        if isinstance(table.rows, Stored):
            some, first = table.rows.around(int(rows[0]), int(rows[-1]) + 1)
            count = len(some)
            paths = ", ".join(map(quoted, _plain(some.paths, until)))
            aliases = ", ".join(f"c{place}" for place in range(some.width))
            # Aliased by place: to DuckDB the names x and X would be one.
            source = f"read_parquet([{paths}], hive_partitioning = false) AS t({aliases})"
            column = f"c{some.places[name]}"
        else:
            duck.register("given", table.rows.select([name]).rename_columns(["c0"]))
            source, column = "given", "c0"
        asked = f"(SELECT {column} FROM {source})"
        if len(rows) < count:
            kept = np.zeros(count, np.bool_)
            kept[rows - first] = True
            duck.register("kept", pa.table({"keep": kept}))
            asked = f"(SELECT {column} FROM {asked} POSITIONAL JOIN kept WHERE keep)"
        duck.execute(
            f"CREATE TEMP TABLE counted AS SELECT {column} AS value, count(*) AS n FROM {asked} "
            f"WHERE {column} IS NOT NULL AND {column} <> '' GROUP BY ALL"
        )
        yield


def _most_common(duck: Any, rows: int, most: int) -> Texts:  # noqa: ANN401
    """Of the table `counted`."""
    distinct, count = _one(duck, "SELECT count(*), CAST(coalesce(sum(n), 0) AS BIGINT) FROM counted")
    common = duck.execute("SELECT value, n FROM counted ORDER BY n DESC, value LIMIT $1", [most]).fetchall()
    return Texts(count, rows - count, distinct, tuple(common))


def _one(duck: Any, query: str) -> tuple[Any, ...]:  # noqa: ANN401  # duckdb has no types for us
    row: tuple[Any, ...] | None = duck.execute(query).fetchone()
    assert row is not None  # noqa: S101  # an aggregate always answers
    return row


def _plain(paths: Sequence[Path], until: ExitStack) -> list[str]:
    """The paths as DuckDB takes them: by a link where it would read one as a pattern, or where one is no UTF-8."""
    if all(str(path).isprintable() and not GLOB.search(str(path)) for path in paths):
        return list(map(str, paths))
    links = Path(until.enter_context(tempfile.TemporaryDirectory(prefix="everloop")))
    for place, path in enumerate(paths):
        (links / str(place)).symlink_to(path.absolute())
    return [str(links / str(place)) for place in range(len(paths))]
