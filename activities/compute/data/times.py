"""When a row happened: times and numbers that stand for times, in seconds since 1970."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from activities.compute.data.table import Table, example, floats, is_number, null_where
from everloop.errors import InvalidData
from everloop.texts import AMONG_NUMBERS, FIRST, LAST, MONTH_FIRST, is_moment, layouts_of

LOOKED_AT = 200
"""Texts from which it is told how a column writes its times."""


def moment(seconds: float) -> datetime:
    """A UTC datetime of seconds since 1970, within the years 1 to 9999."""
    return datetime.fromtimestamp(min(max(seconds, FIRST.timestamp()), LAST.timestamp()), UTC)


def _no_times(column: pa.ChunkedArray) -> str:
    """Why a text or boolean column is no time: the first value that is none, or not like the ones before it."""
    first = example(column)
    filled = null_where(column, AMONG_NUMBERS) if isinstance(first, str) else column
    texts = [text for text in pc.drop_null(filled).unique().to_pylist() if isinstance(text, str)]
    layouts = layouts_of(texts[:LOOKED_AT])
    odd = None if layouts is None else next((text for text in texts if not is_moment(text, layouts)), None)
    if odd is None or odd == texts[0]:
        return f"does not hold times (for instance {first!r})"
    return f"does not hold times alone (for instance {odd!r}, while the first is {texts[0]!r})"


YEARS, DAYS, SECONDS, MILLISECONDS = (1500, 2500), (15000101, 25001231), (1e8, 1e11), (1e11, 1e14)


def event_seconds(table: Table, time: str) -> NDArray[np.float64]:
    """When each row happened, in seconds since 1970 UTC; NaN where that is not said.

    A column of numbers may hold years, days as YYYYMMDD, seconds or milliseconds since 1970.
    Raises `InvalidData` for anything else.
    """
    column = table.rows[time]
    if pa.types.is_timestamp(column.type):
        return floats(column.cast(pa.int64()).cast(pa.float64(), safe=False)) / 1e6
    hint = "times look like 2013-01-31, 2013-01-31T12:00:00Z, or seconds since 1970; or leave out `time`"
    if column.null_count == len(column):
        raise InvalidData(f"the column {time!r} has no value in any row", field="time", hint=hint)
    if not is_number(column.type):
        raise InvalidData(f"the column {time!r} {_no_times(column)}", field="time", hint=hint)
    values = floats(column)
    unit = _unit(values)
    if unit is None:
        low, high = np.nanmin(values), np.nanmax(values)
        message = f"the column {time!r} holds numbers from {low:g} to {high:g}, not times"
        raise InvalidData(message, field="time", hint=hint)
    if unit == "year":
        return _calendar(values, values * 0 + 1, values * 0 + 1)
    if unit == "day":
        return _calendar(values // 10000, values // 100 % 100, values % 100)
    return values / 1e3 if unit == "milliseconds" else values


def _unit(values: NDArray[np.float64]) -> str | None:
    """What the numbers of a time column are (see `inference.UNITS`)."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    whole = bool(np.nanmax(np.abs(values - np.round(values))) == 0)
    if whole and YEARS[0] <= low and high <= YEARS[1]:
        return "year"
    if whole and DAYS[0] <= low and high <= DAYS[1]:
        return "day"
    if SECONDS[0] <= low and high < SECONDS[1]:
        return "seconds"
    if MILLISECONDS[0] <= low and high < MILLISECONDS[1]:
        return "milliseconds"
    return None


def time_layouts(table: Table, time: str) -> tuple[str, ...]:
    """How a predict request may write the time column besides ISO 8601: as the table does."""
    column = table.rows[time]
    if pa.types.is_timestamp(column.type):
        return table.column(time).layouts
    unit = _unit(floats(column))
    return (unit,) if unit else ()


def _calendar(
    years: NDArray[np.float64], months: NDArray[np.float64], days: NDArray[np.float64]
) -> NDArray[np.float64]:
    there = np.isfinite(years)
    whole = [np.where(there, part, 1).astype(np.int64) for part in (years, months, days)]
    start = (whole[0] - 1970).astype("datetime64[Y]").astype("datetime64[M]") + (whole[1] - 1)
    seconds = (start.astype("datetime64[D]") + (whole[2] - 1)).astype("datetime64[s]").astype(np.float64)
    return np.where(there, seconds, np.nan)


def month_first(table: Table, name: str) -> str:
    """A sentence where days like 03/04/2013 are read month first and no value of the column says so; else nothing."""
    if not any(layout.startswith(MONTH_FIRST) for layout in table.column(name).layouts):
        return ""
    if pc.max(pc.day(table.rows[name])).as_py() > 12:  # noqa: PLR2004  # months
        return ""
    return f"{name!r} is read month first (03/04/2013 is 4 March), and could be day first: if so, write 2013-04-03"
