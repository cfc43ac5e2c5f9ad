"""Calendar parts of moments as features: in NumPy and, operation by operation the same, as nodes of the graph."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute.features.graph import FLOAT, INT64, Graph
from activities.compute.features.inputs import Difference, Feature, Input, Part
from activities.compute.inference import Columns

DAY = 86400.0
SECONDS_OF_DAY = 86400
FIRST_SECOND, LAST_SECOND = -62135596800.0, 253402300799.0  # years 1 to 9999: calendar arithmetic stays positive


def dates(entry: Input, seconds: NDArray[np.generic]) -> list[Feature]:
    """Calendar parts (UTC) and days since `offset` of seconds since 1970."""
    raw = np.asarray(seconds, np.float64)
    missing = np.isnan(raw)
    if gaps := bool(missing.any()):
        raw = np.where(missing, 0.0 if entry.nullable else entry.fill, raw)
    exact = np.clip(raw, FIRST_SECOND, LAST_SECOND)
    calendar = Moments(np.floor(exact).astype(np.int64))
    parts: dict[Part, Callable[[], NDArray[Any]]] = {
        "hour": lambda: calendar.hour,
        "weekday": lambda: calendar.weekday,
        "day": lambda: calendar.day_and_month[0],
        "month": lambda: calendar.day_and_month[1],
        "elapsed": lambda: (exact - entry.offset) / DAY,
    }
    features = [parts[part]().astype(np.float32) for part in entry.parts]
    if gaps and entry.nullable:
        for feature in features:
            np.copyto(feature, np.float32(np.nan), where=missing)
    return features


class Moments:
    """Calendar parts of whole seconds since 1970, within the years 1 to 9999."""

    def __init__(self, seconds: NDArray[np.int64]) -> None:
        since = seconds - int(FIRST_SECOND)
        self._days = since // SECONDS_OF_DAY
        self._of_day = since - self._days * SECONDS_OF_DAY

    @property
    def hour(self) -> NDArray[np.int64]:
        return self._of_day // 3600

    @property
    def weekday(self) -> NDArray[np.int64]:
        return self._days - self._days // 7 * 7  # 1 January of year 1 was a Monday

    @cached_property
    def day_and_month(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if not len(self._days):
            return self._days, self._days
        low, high = int(self._days.min()), int(self._days.max())
        if high - low >= len(self._days):
            return _day_and_month(self._days)
        # Fewer days than rows: each is looked at once.
        day, month = _day_and_month(np.arange(low, high + 1))
        return day[self._days - low], month[self._days - low]


def _day_and_month(since: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Day (1-31) and month (1-12) of days since year 1: years begin in March, so that leap days come last."""
    days = since + 306  # since 1 March of year 0
    of_era = days % 146097
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    return of_year - (153 * month + 2) // 5 + 1, (month + 2) % 12 + 1


def dates_in_graph(graph: Graph, entry: Input) -> list[str]:
    """`dates`, part by part."""
    raw = entry.name
    if not entry.nullable:
        raw = graph.add("Where", graph.add("IsNaN", raw), graph.constant([[entry.fill]], np.float64), raw)
    missing = graph.add("IsNaN", raw)
    there = graph.add("Where", missing, graph.constant([[0.0]], np.float64), raw)
    low, high = graph.constant(FIRST_SECOND, np.float64), graph.constant(LAST_SECOND, np.float64)
    exact = graph.add("Clip", there, low, high)
    whole = graph.add("Cast", graph.add("Floor", exact), to=INT64)
    whole = graph.add("Sub", whole, graph.constant(int(FIRST_SECOND), np.int64))
    calendar = _Calendar(graph, whole)
    parts: dict[str, Callable[[], str]] = {
        "hour": lambda: calendar.divide(calendar.rest(whole, 86400), 3600),
        "weekday": lambda: calendar.rest(calendar.divide(whole, 86400), 7),
        "day": lambda: calendar.day_and_month()[0],
        "month": lambda: calendar.day_and_month()[1],
        "elapsed": lambda: graph.add(
            "Div",
            graph.add("Sub", exact, graph.constant(entry.offset, np.float64)),
            graph.constant(DAY, np.float64),
        ),
    }
    unknown = graph.constant([[np.nan]], np.float32)
    columns = [graph.add("Cast", parts[part](), to=FLOAT) for part in entry.parts]
    return [graph.add("Where", missing, unknown, column) for column in columns]


@dataclass
class _Calendar:
    """Whole-number arithmetic on seconds since year 1, all of it positive, as `_day_and_month` does it."""

    graph: Graph
    whole: str

    def divide(self, value: str, by: int) -> str:
        return self.graph.add("Div", value, self.graph.constant(by, np.int64))

    def rest(self, value: str, of: int) -> str:
        return self.graph.add("Mod", value, self.graph.constant(of, np.int64))

    def plus(self, value: str, other: str | int) -> str:
        return self.graph.add("Add", value, self._given(other))

    def minus(self, value: str, other: str | int) -> str:
        return self.graph.add("Sub", value, self._given(other))

    def times(self, value: str, by: int) -> str:
        return self.graph.add("Mul", value, self.graph.constant(by, np.int64))

    def day_and_month(self) -> tuple[str, str]:
        of_era = self.rest(self.plus(self.divide(self.whole, 86400), 306), 146097)
        leaps = self.plus(self.minus(of_era, self.divide(of_era, 1460)), self.divide(of_era, 36524))
        year = self.divide(self.minus(leaps, self.divide(of_era, 146096)), 365)
        before = self.minus(self.plus(self.times(year, 365), self.divide(year, 4)), self.divide(year, 100))
        of_year = self.minus(of_era, before)
        month = self.divide(self.plus(self.times(of_year, 5), 2), 153)
        start = self.divide(self.plus(self.times(month, 153), 2), 5)
        day = self.plus(self.minus(of_year, start), 1)
        return day, self.plus(self.rest(self.plus(month, 2), 12), 1)

    def _given(self, other: str | int) -> str:
        return other if isinstance(other, str) else self.graph.constant(other, np.int64)


def difference(entry: Difference, columns: Columns) -> Feature:
    """Days between two moments."""
    start, end = (np.asarray(columns[name], np.float64) for name in (entry.start, entry.end))
    return ((end - start) / DAY).astype(np.float32)


def difference_in_graph(graph: Graph, entry: Difference) -> str:
    """`difference`."""
    seconds = graph.add("Sub", entry.end, entry.start)
    return graph.add("Cast", graph.add("Div", seconds, graph.constant(DAY, np.float64)), to=FLOAT)
