"""Skewed numbers made even, in float64: in NumPy and, operation by operation the same, as nodes of the graph.

Each rises everywhere, so that a number's order stays: trees gain nothing by it, lines and networks do.
"""

import numpy as np
import scipy.optimize
import scipy.special

from activities.compute.features.graph import INT64, Graph
from activities.compute.features.inputs import Floats, Skew

SKEWED = 1.0
"""Skewness from which a column is called skewed."""
LEAST_VALUES, MOST_ROWS = 20, 20_000
"""That are looked at."""
PLACES = 65
"""Of the lines that quantiles become."""
POWERS = (-2.0, 3.0)
STRAIGHT = 1e-3
"""A power this near to 0 is taken for the logarithm that it comes to."""


def fitted(column: str, how: str, values: Floats) -> Skew | None:
    """What makes *values* (finite) more even; None where they are even already, or nothing helps."""
    if len(values) < LEAST_VALUES or (before := abs(skewness(values))) <= SKEWED:
        return None
    there = np.abs(values[values != 0])
    unit = float(np.median(there)) if len(there) else 1.0
    if not np.isfinite(unit) or unit <= 0:
        return None
    skew = _of(column, how, values, unit)
    return skew if skew and abs(skewness(evened(skew, values))) < before else None


def _of(column: str, how: str, values: Floats, unit: float) -> Skew | None:
    if how == "log1p":
        return Skew(column, "log1p", unit=unit)
    if how == "yeo_johnson":
        return Skew(column, "yeo_johnson", unit=unit, power=_power(values / unit))
    shares = (np.arange(PLACES) + 0.5) / PLACES
    where, group = np.unique(np.quantile(values, shares, method="inverted_cdf"), return_inverse=True)
    if len(where) < 3:  # noqa: PLR2004  # a line has two ends
        return None
    value = scipy.special.ndtri(np.bincount(group, shares) / np.bincount(group))
    return Skew(column, "quantile", where=tuple(where.tolist()), value=tuple(value.tolist()))


def skewness(values: Floats) -> float:
    """The third moment in standard deviations; 0 of a constant."""
    apart = values - values.mean()
    spread = float(np.sqrt(np.mean(apart**2)))
    return float(np.mean((apart / spread) ** 3)) if spread > 0 and np.isfinite(spread) else 0.0


def _power(values: Floats) -> float:
    """The most likely power, as if what comes out were normal (Yeo and Johnson, 2000)."""
    logs = float(np.sum(np.sign(values) * np.log1p(np.abs(values))))

    def unlikely(power: float) -> float:
        spread = float(np.var(_yeo_johnson(values, power)))
        return float(len(values) / 2 * np.log(max(spread, 1e-300)) - (power - 1) * logs)

    found = scipy.optimize.minimize_scalar(unlikely, bounds=POWERS, method="bounded", options={"xatol": 1e-4})
    return round(float(found.x), 3)


def _yeo_johnson(values: Floats, power: float) -> Floats:
    size = np.abs(values) + 1.0
    found: Floats = np.where(values < 0, -_raised(size, 2.0 - power), _raised(size, power))
    return found


def _raised(size: Floats, power: float) -> Floats:
    found: Floats = np.log(size) if abs(power) < STRAIGHT else (np.power(size, power) - 1.0) / power
    return found


# --- written twice --------------------------------------------------------------------------------


def evened(skew: Skew, values: Floats) -> Floats:
    """What *values* become; missing stays missing."""
    with np.errstate(over="ignore", invalid="ignore"):
        if skew.how == "log1p":
            return np.sign(values) * np.log(np.abs(values / skew.unit) + 1.0)
        if skew.how == "yeo_johnson":
            return _yeo_johnson(values / skew.unit, skew.power)
        where, value, slope = _lines(skew)
        inside = np.where(values > where[-1], where[-1], np.where(values < where[0], where[0], values))
        piece = np.clip(np.searchsorted(where, inside, "right") - 1, 0, len(slope) - 1)
        return value[piece] + (inside - where[piece]) * slope[piece]


def _lines(skew: Skew) -> tuple[Floats, Floats, Floats]:
    where, value = np.array(skew.where), np.array(skew.value)
    return where, value, np.diff(value) / np.diff(where)


def evened_in_graph(graph: Graph, skew: Skew, wide: str) -> str:
    """`evened` of doubles [rows, 1]."""

    def number(value: float) -> str:
        return graph.constant([[value]], np.float64)

    if skew.how == "quantile":
        return _along_lines(graph, skew, wide)
    parts = graph.add("Div", wide, number(skew.unit))
    size = graph.add("Add", graph.add("Abs", parts), number(1.0))
    if skew.how == "log1p":
        return graph.add("Mul", graph.add("Sign", wide), graph.add("Log", size))
    down = graph.add("Neg", _raised_in_graph(graph, size, 2.0 - skew.power))
    up = _raised_in_graph(graph, size, skew.power)
    return graph.add("Where", graph.add("Less", parts, number(0.0)), down, up)


def _raised_in_graph(graph: Graph, size: str, power: float) -> str:
    if abs(power) < STRAIGHT:
        return graph.add("Log", size)
    raised = graph.add("Pow", size, graph.constant([[power]], np.float64))
    less = graph.add("Sub", raised, graph.constant([[1.0]], np.float64))
    return graph.add("Div", less, graph.constant([[power]], np.float64))


def _along_lines(graph: Graph, skew: Skew, wide: str) -> str:
    where, value, slope = _lines(skew)
    most, least = graph.constant([[where[-1]]], np.float64), graph.constant([[where[0]]], np.float64)
    inside = graph.add("Where", graph.add("Greater", wide, most), most, wide)
    inside = graph.add("Where", graph.add("Less", wide, least), least, inside)
    # The last place is no line's begin, so the last line is also what is at its end.
    passed = graph.add("GreaterOrEqual", inside, graph.constant(where[None, 1:-1], np.float64))
    piece = graph.add("ReduceSum", graph.add("Cast", passed, to=INT64), graph.constant([1], np.int64), keepdims=1)
    begin = graph.add("Gather", graph.constant(where[:-1], np.float64), piece)
    rise = graph.add("Gather", graph.constant(slope, np.float64), piece)
    along = graph.add("Mul", graph.add("Sub", inside, begin), rise)
    return graph.add("Add", graph.add("Gather", graph.constant(value[:-1], np.float64), piece), along)


def uneven(skew: Skew, values: Floats) -> Floats:
    """Numbers that become about *values*: where the proof of an export looks at both sides of a threshold."""
    size = np.abs(values)
    with np.errstate(over="ignore", invalid="ignore"):
        if skew.how == "log1p":
            return np.sign(values) * np.expm1(size) * skew.unit
        if skew.how == "yeo_johnson":
            power = np.where(values < 0, 2.0 - skew.power, skew.power)
            straight = np.abs(power) < STRAIGHT
            safe = np.where(straight, 1.0, power)
            raised = np.power(np.maximum(safe * size + 1.0, 0.0), 1.0 / safe) - 1.0
            return np.sign(values) * np.where(straight, np.expm1(size), raised) * skew.unit
    return np.interp(values, skew.value, skew.where)
