"""Which parameters made the difference between trials: how much of the trials' order goes with each one alone.

A one-way analysis of variance on the ranks of the objective, so that one trial that went astray does not speak for all:
a parameter's trials are put into groups (equal values; of numbers, stretches of equal size), and what is told is the
share of the variance between groups, less what chance alone would give (omega squared). What two parameters do only
together is not seen. Plain Python: the API loads no numbers library.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST_TRIALS = 10
"""Of fewer nothing is told."""
GROUP_TRIALS = 5
MOST_GROUPS = 8

Point = tuple[Mapping[str, Any], float]
"""A trial's parameters, and its objective, less is better."""


@dataclass(frozen=True)
class Told:
    """What one parameter's values made of the objective."""

    name: str
    share: float
    """From 0 to 1, of the variance of the ranks."""
    trials: int
    best: str
    """The values of the group with the best trials on average."""


def importance(points: Sequence[Point]) -> list[Told]:
    """Of every parameter that at least 10 trials have and that took two values, the most important first."""
    names = dict.fromkeys(name for params, _ in points for name in params)
    found = [_told(name, [(params[name], loss) for params, loss in points if name in params]) for name in names]
    return sorted((each for each in found if each), key=lambda told: (-told.share, told.name))


def _told(name: str, pairs: Sequence[tuple[Any, float]]) -> Told | None:
    pairs = [pair for pair in pairs if math.isfinite(pair[1])]
    if len(pairs) < LEAST_TRIALS:
        return None
    ranks = _ranks([loss for _, loss in pairs])
    groups = _groups([value for value, _ in pairs])
    if len(groups) < 2:  # noqa: PLR2004  # one value alone
        return None
    best = min(groups, key=lambda label: _mean([ranks[at] for at in groups[label]]))
    return Told(name, _omega_squared([[ranks[at] for at in each] for each in groups.values()]), len(pairs), best)


def _ranks(values: Sequence[float]) -> list[float]:
    """Places in order; those of equals are their mean."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    first = 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for place in range(first, last + 1):
            ranks[order[place]] = (first + last) / 2
        first = last + 1
    return ranks


def _groups(values: Sequence[Any]) -> dict[str, list[int]]:
    """Places of the trials by value, or by stretch of values."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers or len(set(values)) <= MOST_GROUPS:
        by_value: dict[str, list[int]] = {}
        for at, value in enumerate(values):
            by_value.setdefault(_shown(value), []).append(at)
        return by_value
    order = sorted(range(len(values)), key=values.__getitem__)
    count = max(2, min(MOST_GROUPS, len(values) // GROUP_TRIALS))
    stretches = [order[part * len(order) // count : (part + 1) * len(order) // count] for part in range(count)]
    return {f"{_shown(values[each[0]])} to {_shown(values[each[-1]])}": each for each in stretches}


def _shown(value: Any) -> str:  # noqa: ANN401  # whatever a space holds
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _omega_squared(groups: Sequence[Sequence[float]]) -> float:
    """The share of the variance that is between groups, without what chance gives; not below 0."""
    every = [value for each in groups for value in each]
    middle = _mean(every)
    total = sum((value - middle) ** 2 for value in every)
    between = sum(len(each) * (_mean(each) - middle) ** 2 for each in groups)
    inside = len(every) - len(groups)
    if total <= 0 or inside <= 0:
        return 0.0
    noise = (total - between) / inside
    return max(0.0, min(1.0, (between - (len(groups) - 1) * noise) / (total + noise)))
