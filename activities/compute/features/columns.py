# ruff: noqa: S608  # names in SQL are ours: c0, c1, ...; paths are quoted
"""What columns hold in the rows that are fitted on: numbers a column at a time, texts by DuckDB where many differ.

Nothing here depends on how rows are cut into chunks, on the files or on the number of threads.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
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
    gaps, sums = 0, np.zeros(goal.outputs)
    if not ordered:
        missing = np.flatnonzero(np.isnan(values))
        gaps = len(missing)
        sums = goal.sums(missing) if gaps else sums
        del missing
        values.sort()  # NaN last
    low, high = np.searchsorted(values, -np.inf, "right"), np.searchsorted(values, np.inf, "left")
    return Numbers(values[low:high], len(values), ordered, gaps, sums)


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
    counts: Counter[str] = Counter()
    for _, batch in chunks(table, [name], rows, LOOKED_AT, coded=True):
        for value, count in _counted(batch[name]):
            counts[value] += count
        if len(counts) > MANY_TEXTS:
            return _texts_by_duckdb(table, name, rows, most, scratch, resources)
    counts.pop("", None)
    total = counts.total()
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    return Texts(total, len(rows) - total, len(counts), tuple(common))


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


def _texts_by_duckdb(  # noqa: PLR0917
    table: Table, name: str, rows: NDArray[np.int64], most: int, scratch: Path | None, resources: Resources
) -> Texts:
    with ExitStack() as until:
        spill = until.enter_context(tempfile.TemporaryDirectory(dir=scratch, prefix="duckdb"))
        memory = f"{resources.memory_mib}MiB"
        duck = until.enter_context(connection(Path(spill), resources.threads, memory, cache_files=False))
        if isinstance(table.rows, Stored):
            paths = ", ".join(map(quoted, _plain(table.rows.paths, until)))
            aliases = ", ".join(f"c{place}" for place in range(table.rows.width))
            # Aliased by place: to DuckDB the names x and X would be one.
            source = f"read_parquet([{paths}], hive_partitioning = false) AS t({aliases})"
            column = f"c{table.rows.places[name]}"
        else:
            duck.register("given", table.rows.select([name]).rename_columns(["c0"]))
            source, column = "given", "c0"
        asked = f"(SELECT {column} FROM {source})"
        if len(rows) < len(table):
            kept = np.zeros(len(table), np.bool_)
            kept[rows] = True
            duck.register("kept", pa.table({"keep": kept}))
            asked = f"(SELECT {column} FROM {asked} POSITIONAL JOIN kept WHERE keep)"
        duck.execute(
            f"CREATE TEMP TABLE counted AS SELECT {column} AS value, count(*) AS n FROM {asked} "
            f"WHERE {column} IS NOT NULL AND {column} <> '' GROUP BY ALL"
        )
        distinct, count = _one(duck, "SELECT count(*), CAST(coalesce(sum(n), 0) AS BIGINT) FROM counted")
        common = duck.execute("SELECT value, n FROM counted ORDER BY n DESC, value LIMIT $1", [most]).fetchall()
    return Texts(count, len(rows) - count, distinct, tuple(common))


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
