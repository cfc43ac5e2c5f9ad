"""What a feature is worth to a model that does not say so itself: how much worse it is without it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute.features import Floats, Pipeline, PreparedRows
from activities.compute.trainers import Fitted, Question, Raw, loss_of

MOST_ROWS, MOST_ANSWERS = 2000, 400_000
"""Rows that are looked at, and at most so many answers."""
LEAST_ROWS = 100


def permuted(
    fitted: Fitted,
    pipeline: Pipeline,
    rows: PreparedRows,
    places: NDArray[np.int64],
    *,
    raw: Raw | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """By how much the loss of rows by their *places* rises when one feature's values are shuffled among them.

    *raw*: shuffle raw columns instead, for a model that looks at those. A feature that helps nothing is worth 0.
    """
    names = [entry.name for entry in pipeline.inputs] if raw else list(pipeline.names)
    random = np.random.default_rng([seed, 3])
    most = max(LEAST_ROWS, min(MOST_ROWS, MOST_ANSWERS // len(names)))
    some = np.sort(random.choice(places, min(most, len(places)), replace=False))
    if not len(some):
        return {}
    goal = (rows.y[some] - pipeline.center) / pipeline.scale
    ask = _of_columns(fitted, raw(names, rows.rows[some])) if raw else _of_features(fitted, rows.matrix(some))
    plain = loss_of(pipeline, goal, ask(None, None))
    orders = [random.permutation(len(some)) for _ in names]
    worse = (loss_of(pipeline, goal, ask(place, order)) for place, order in enumerate(orders))
    return {name: max(0.0, loss - plain) for name, loss in zip(names, worse, strict=True)}


Ask = Callable[[int | None, NDArray[np.int64] | None], Floats]
"""Answers to the rows, with the feature at a place in another order."""


def _of_features(fitted: Fitted, matrix: NDArray[np.float32]) -> Ask:
    def ask(place: int | None, order: NDArray[np.int64] | None) -> Floats:
        if place is None:
            return fitted.predict(Question(lambda: matrix, dict))
        own = matrix[:, place].copy()
        matrix[:, place] = own[order]
        told = fitted.predict(Question(lambda: matrix, dict))
        matrix[:, place] = own
        return told

    return ask


def _of_columns(fitted: Fitted, columns: dict[str, NDArray[Any]]) -> Ask:
    names = list(columns)

    def ask(place: int | None, order: NDArray[np.int64] | None) -> Floats:
        told = columns if place is None else columns | {names[place]: columns[names[place]][order]}
        return fitted.predict(Question(_no_features, lambda: told))

    return ask


def _no_features() -> NDArray[np.float32]:
    raise NotImplementedError("this model looks at raw columns")
