"""Skewed numbers made even: in NumPy and, operation by operation the same, as nodes of the graph.

Whatever the shape (a logarithm, a power, quantiles), it is kept as places with lines between them: sums and products of
doubles are the same everywhere, logarithms and powers are not, and a tree would notice. It rises everywhere, so a
number's order stays: trees gain nothing by it, linear models and networks do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from activities.compute.features.graph import INT64, Graph
from activities.compute.features.inputs import Floats, Skew

SKEWED = 1.0
"""Skewness from which a column is called skewed."""
LEAST_VALUES, MOST_ROWS = 20, 20_000
"""That are looked at."""
PLACES = 129
FARTHEST = 1e300
POWERS = (-2.0, 3.0)
STRAIGHT = 1e-3
"""A power this near to 0 is taken for the logarithm that it comes to."""


def fitted(column: str, how: str, values: Floats) -> Skew | None:
    """What makes *values* (finite) more even; None where they are even already, or nothing helps."""
    if len(values) < LEAST_VALUES or (before := abs(skewness(values))) <= SKEWED:
        return None
    places = _quantiles(values) if how == "quantile" else _of_shape(_shape(how, values), values)
    if places is None:
        return None
    where, value = places
    skew = Skew(column, how, where=tuple(where.tolist()), value=tuple(value.tolist()))  # type: ignore[arg-type]
    return skew if abs(skewness(evened(skew, values))) < before else None


def skewness(values: Floats) -> float:
    """The third moment in standard deviations; 0 of a constant."""
    with np.errstate(over="ignore", invalid="ignore"):
        apart = values - values.mean()
        spread = float(np.sqrt(np.mean(apart**2)))
        if spread == 0 or np.isnan(spread):
            return 0.0
        # Of what is too large to be squared, the largest is all that counts.
        found = float(np.mean((apart / spread) ** 3)) if np.isfinite(spread) else np.inf
    return found if np.isfinite(found) else np.inf


# --- shapes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    ahead: Callable[[Floats], Floats]
    back: Callable[[Floats], Floats]


def _shape(how: str, values: Floats) -> _Shape | None:
    """A logarithm or the likeliest power, of the numbers in units of their median, on both sides of 0."""
    there = np.abs(values[values != 0])
    unit = float(np.median(there)) if len(there) else 1.0
    if not np.isfinite(unit) or unit <= 0:
        return None
    power = _power(values / unit) if how == "yeo_johnson" else None

    def ahead(numbers: Floats) -> Floats:
        scaled = numbers / unit
        return np.sign(scaled) * np.log1p(np.abs(scaled)) if power is None else _yeo_johnson(scaled, power)

    def back(numbers: Floats) -> Floats:
        if power is None:
            return np.sign(numbers) * np.expm1(np.abs(numbers)) * unit
        return _yeo_johnson_back(numbers, power) * unit

    return _Shape(ahead, back)


def _of_shape(shape: _Shape | None, values: Floats) -> tuple[Floats, Floats] | None:
    """Places at even steps of what comes out, to as far again as the values reach, but not past a 0 they keep to."""
    if shape is None:
        return None
    low, high = float(values.min()), float(values.max())
    with np.errstate(all="ignore"):
        reach = high - low
        ends = np.array([low - reach if low < 0 else low, high + reach if high > 0 else high])
        first, last = shape.ahead(np.clip(ends, -FARTHEST, FARTHEST))
        where = shape.back(np.linspace(first, last, PLACES))
        where = np.unique(where[np.abs(where) <= FARTHEST])
        value = shape.ahead(where)
    rises = np.append(True, np.diff(np.maximum.accumulate(value)) > 0)
    where, value = where[rises], value[rises]
    return (where, value) if len(where) > 2 and np.isfinite(value).all() else None  # noqa: PLR2004


def _quantiles(values: Floats) -> tuple[Floats, Floats] | None:
    """As a normal distribution would have them."""
    from scipy.special import ndtri  # scipy is loaded where somebody asks for a shape

    shares = (np.arange(PLACES) + 0.5) / PLACES
    where, group = np.unique(np.quantile(values, shares, method="inverted_cdf"), return_inverse=True)
    if len(where) < 3:  # noqa: PLR2004  # one line is no shape
        return None
    return where, ndtri(np.bincount(group, shares) / np.bincount(group))


def _power(values: Floats) -> float:
    """The most likely power, as if what comes out were normal (Yeo and Johnson, 2000)."""
    from scipy.optimize import minimize_scalar

    logs = float(np.sum(np.sign(values) * np.log1p(np.abs(values))))

    def unlikely(power: float) -> float:
        with np.errstate(all="ignore"):
            spread = float(np.var(_yeo_johnson(values, power)))
        return float(len(values) / 2 * np.log(max(spread, 1e-300)) - (power - 1) * logs)

    found = minimize_scalar(unlikely, bounds=POWERS, method="bounded", options={"xatol": 1e-4})
    return round(float(found.x), 3)


def _yeo_johnson(values: Floats, power: float) -> Floats:
    size = np.abs(values) + 1.0
    found: Floats = np.where(values < 0, -_raised(size, 2.0 - power), _raised(size, power))
    return found


def _raised(size: Floats, power: float) -> Floats:
    found: Floats = np.log(size) if abs(power) < STRAIGHT else (np.power(size, power) - 1.0) / power
    return found


def _yeo_johnson_back(values: Floats, power: float) -> Floats:
    size, powers = np.abs(values), np.where(values < 0, 2.0 - power, power)
    straight = np.abs(powers) < STRAIGHT
    safe = np.where(straight, 1.0, powers)
    raised = np.power(np.maximum(safe * size + 1.0, 0.0), 1.0 / safe) - 1.0
    found: Floats = np.sign(values) * np.where(straight, np.expm1(size), raised)
    return found


# --- written twice ----------------------------------------------------------------------------------


def evened(skew: Skew, values: Floats) -> Floats:
    """What *values* become; missing stays missing, and what is beyond the places stands still."""
    where, value, slope = _lines(skew)
    inside = np.where(values > where[-1], where[-1], np.where(values < where[0], where[0], values))
    piece = np.clip(np.searchsorted(where, inside, "right") - 1, 0, len(slope) - 1)
    return value[piece] + (inside - where[piece]) * slope[piece]


def _lines(skew: Skew) -> tuple[Floats, Floats, Floats]:
    where, value = np.array(skew.where), np.array(skew.value)
    return where, value, np.diff(value) / np.diff(where)


def evened_in_graph(graph: Graph, skew: Skew, wide: str) -> str:
    """`evened` of doubles [rows, 1]."""
    where, value, slope = _lines(skew)
    most, least = graph.constant([[where[-1]]], np.float64), graph.constant([[where[0]]], np.float64)
    inside = graph.add("Where", graph.add("Greater", wide, most), most, wide)
    inside = graph.add("Where", graph.add("Less", wide, least), least, inside)
    # Neither end begins a line but the first, which is begun by whatever has passed no other place.
    passed = graph.add("GreaterOrEqual", inside, graph.constant(where[None, 1:-1], np.float64))
    piece = graph.add("ReduceSum", graph.add("Cast", passed, to=INT64), graph.constant([1], np.int64), keepdims=1)
    begin = graph.add("Gather", graph.constant(where[:-1], np.float64), piece)
    rise = graph.add("Gather", graph.constant(slope, np.float64), piece)
    along = graph.add("Mul", graph.add("Sub", inside, begin), rise)
    return graph.add("Add", graph.add("Gather", graph.constant(value[:-1], np.float64), piece), along)


def uneven(skew: Skew, values: Floats) -> Floats:
    """Numbers that become about *values*: where the proof of an export looks at both sides of a threshold."""
    return np.interp(values, skew.value, skew.where)
