"""Which models to average, and with which weights: greedily, by their answers to rows that they have not learned.

After Caruana et al., 2004: begin with the best, then add again and again whichever makes the mean better; one that
is taken twice weighs twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from activities.compute.features import Floats

ROUNDS, PATIENCE = 60, 8
"""Models that are added at most; and without a better loss, after which it ends."""
LEAST_GAIN = 1e-6
"""Share of the loss by which one more model must lower it: less is noise, and another graph to run."""


@dataclass(frozen=True)
class Candidate:
    """A model that may be taken."""

    answers: Floats
    """Out of fold: probabilities [rows, classes], or values [rows]."""
    bytes: int = 0
    """That it takes of a graph."""
    milliseconds: float = 0.0
    """That it takes to answer one row."""


def select(
    candidates: Sequence[Candidate],
    loss: Callable[[Floats], float],
    *,
    members: int = 8,
    most_bytes: int | None = None,
    most_milliseconds: float | None = None,
) -> dict[int, float]:
    """Places of the chosen *candidates* and their weights, which add up to 1; deterministic, ties go to the first.

    *loss*: of answers, smaller is better; NaN is never taken. *members*: different models at most. Raises
    `ValueError` where no candidate keeps the limits.
    """

    def fits(chosen: set[int]) -> bool:
        size = sum(candidates[place].bytes for place in chosen)
        time = sum(candidates[place].milliseconds for place in chosen)
        return (
            len(chosen) <= members
            and (most_bytes is None or size <= most_bytes)
            and (most_milliseconds is None or time <= most_milliseconds)
        )

    alone = [_known(loss(each.answers)) if fits({place}) else np.inf for place, each in enumerate(candidates)]
    if not alone or not np.isfinite(min(alone)):
        raise ValueError("no candidate keeps the limits and has a loss")
    taken = [int(np.argmin(alone))]
    total, best, kept = candidates[taken[0]].answers.astype(np.float64), alone[taken[0]], 1
    while len(taken) < ROUNDS and len(taken) - kept < PATIENCE:
        losses = [
            _known(loss((total + each.answers) / (len(taken) + 1)))
            if np.isfinite(alone[place]) and fits({*taken, place})
            else np.inf
            for place, each in enumerate(candidates)
        ]
        place = int(np.argmin(losses))
        if not np.isfinite(losses[place]):
            break
        taken.append(place)
        total = total + candidates[place].answers
        if losses[place] < best - LEAST_GAIN * abs(best):
            best, kept = losses[place], len(taken)
    chosen = taken[:kept]
    return {place: chosen.count(place) / kept for place in sorted(set(chosen))}


def _known(loss: float) -> float:
    return float(loss) if np.isfinite(loss) else np.inf
