"""How sure is a figure, and a difference of two? By drawing the same rows again and again (bootstrap), seeded.

Two models are compared on the same draws: what is hard for both in a draw does not count as a difference.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from activities.compute.features import Floats
from everloop.specs import HIGHER_IS_BETTER, Task

DRAWS = 200
MOST_ROWS = 50_000
"""Rows that are drawn from; of more, so many are chosen once."""
LEVEL = 0.95
SMALLEST = 1e-15

Weighted = Callable[[Floats], float]
"""A metric of rows that count so often each."""


def interval(task: Task, metric: str, values: Floats, answers: Floats, seed: int) -> tuple[float, float]:
    """Where the metric lies at 95 %: exactly for an accuracy, else by draws."""
    if metric == "accuracy":
        right = int((answers.argmax(axis=1) == values.astype(np.int64)).sum())
        return _exact(right, len(values))
    values, (answers,) = _some(values, [answers], seed)
    of = weighted(task, metric, values, answers)
    told = [found for draw in _draws(len(values), seed) if not math.isnan(found := of(draw))]
    if not told:
        return float("nan"), float("nan")
    low, high = np.quantile(told, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sureness(  # noqa: PLR0917
    task: Task, metric: str, values: Floats, challenger: Floats, champion: Floats, seed: int
) -> float:
    """The share of draws in which the challenger is the better one on the same rows; equal counts half."""
    values, (challenger, champion) = _some(values, [challenger, champion], seed)
    own, theirs = (weighted(task, metric, values, answers) for answers in (challenger, champion))
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    gains = [sign * (own(draw) - theirs(draw)) for draw in _draws(len(values), seed)]
    told = [gain for gain in gains if not math.isnan(gain)]
    return float(np.mean([(gain > 0) + (gain == 0) / 2 for gain in told])) if told else 0.5


def _some(values: Floats, answers: Sequence[Floats], seed: int) -> tuple[Floats, list[Floats]]:
    if len(values) <= MOST_ROWS:
        return values, list(answers)
    rows = np.sort(np.random.default_rng(seed).choice(len(values), MOST_ROWS, replace=False))
    return values[rows], [each[rows] for each in answers]


def _draws(rows: int, seed: int) -> Sequence[Floats]:
    draw = np.random.default_rng(seed)
    return [np.bincount(draw.integers(0, rows, rows), minlength=rows).astype(np.float64) for _ in range(DRAWS)]


def _exact(right: int, rows: int) -> tuple[float, float]:
    """Clopper and Pearson."""
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    low = beta.ppf(tail, right, rows - right + 1) if right else 0.0
    high = beta.ppf(1 - tail, right + 1, rows - right) if right < rows else 1.0
    return float(low), float(high)


def weighted(task: Task, metric: str, values: Floats, answers: Floats) -> Weighted:
    """*metric* of *values* (class indices or numbers) and *answers*, as a function of how often each row counts.

    NaN where it is not defined, such as an AUC of one class.
    """
    if task == "regression":
        return _of_numbers(metric, values, answers)
    classes = values.astype(np.int64)
    if metric == "auc":
        columns = [1] if answers.shape[1] == 2 else range(answers.shape[1])  # noqa: PLR2004
        areas = [_area(classes == place, answers[:, place]) for place in columns]
        return lambda counts: _mean([area(counts) for area in areas])
    if metric == "accuracy":
        right = (answers.argmax(axis=1) == classes).astype(np.float64)
        return lambda counts: float(counts @ right / counts.sum())
    losses = -np.log(np.clip(answers[np.arange(len(classes)), classes], SMALLEST, 1.0))
    return lambda counts: float(counts @ losses / counts.sum())


def _of_numbers(metric: str, values: Floats, answers: Floats) -> Weighted:
    errors = answers - values
    if metric == "mae":
        size = np.abs(errors)
        return lambda counts: float(counts @ size / counts.sum())
    squares = errors**2
    if metric == "rmse":
        return lambda counts: float(np.sqrt(counts @ squares / counts.sum()))

    def r2(counts: Floats) -> float:
        mean = counts @ values / counts.sum()
        spread = float(counts @ (values - mean) ** 2)
        return 1 - float(counts @ squares) / spread if spread else float("nan")

    return r2


def _area(positive: NDArray[np.bool_], answers: Floats) -> Weighted:
    """Area under the ROC curve, ties counted half."""
    _, places = np.unique(answers, return_inverse=True)
    ones, zeros = places[positive], places[~positive]
    size = int(places.max()) + 1 if len(places) else 1

    def area(counts: Floats) -> float:
        above = np.bincount(ones, weights=counts[positive], minlength=size)
        below = np.bincount(zeros, weights=counts[~positive], minlength=size)
        pairs = above.sum() * below.sum()
        return float(above @ (np.cumsum(below) - below / 2) / pairs) if pairs else float("nan")

    return area


def _mean(found: Sequence[float]) -> float:
    defined = [each for each in found if not math.isnan(each)]
    return float(np.mean(defined)) if defined else float("nan")
