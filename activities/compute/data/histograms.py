"""What the columns hold, for the data page: bars per column, made where the rows are."""

from collections.abc import Sequence
from typing import Any

import duckdb

from activities.compute.data.times import moment
from everloop.errors import naming
from everloop.records import Column

BARS = 20
MOST_COLUMNS = 200
"""Drawn; the page says how many more there are."""
LONGEST_LABEL = 40


def histograms(columns: Sequence[Column], rows: str, duck: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """By column: its kind, missing and different values, and bars of (label, rows): of numbers and times in order.

    *rows*: SQL, whose columns are c0, c1, ...
    """
    drawn = []
    for place, column in enumerate(columns[:MOST_COLUMNS]):
        with naming(column=column.name):
            bars = _bars(column, f"c{place}", rows, duck)
        counts = {"kind": column.kind, "missing": column.nulls, "distinct": column.distinct}
        drawn.append({"name": column.name, **counts, "bars": bars})
    return drawn


def _bars(column: Column, x: str, rows: str, duck: duckdb.DuckDBPyConnection) -> list[tuple[str, int]]:
    if column.kind not in ("number", "datetime"):
        query = f"SELECT CAST({x} AS VARCHAR), count(*) FROM {rows} WHERE {x} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        found = duck.execute(f"{query} LIMIT {BARS}").fetchall()
        return [(str(label)[:LONGEST_LABEL], int(count)) for label, count in found]
    number = f"CAST({x} AS DOUBLE)" if column.kind == "number" else f"epoch({x})"
    low, high = duck.execute(f"SELECT min({number}), max({number}) FROM {rows}").fetchone() or (None, None)
    if low is None or high is None:
        return []
    width = high / BARS - low / BARS or 1.0  # high - low may be more than float64 holds
    place = f"CAST(greatest(0, least({BARS - 1}, floor({number} / {width!r} - ({low / width!r})))) AS INTEGER)"
    counts = dict(duck.execute(f"SELECT {place}, count(*) FROM {rows} WHERE {x} IS NOT NULL GROUP BY 1").fetchall())
    return [(_label(column, low + bar * width), int(counts.get(bar, 0))) for bar in range(BARS)]


def _label(column: Column, start: float) -> str:
    return f"{start:.4g}" if column.kind == "number" else f"{moment(start):%Y-%m-%d %H:%M}"
