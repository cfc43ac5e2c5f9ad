"""Features that nobody asked for, each with its reason: differences of dates, missing or not, means of the target."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from activities.compute.data import Table
from activities.compute.features.categories import texts_of
from activities.compute.features.columns import Texts
from activities.compute.features.encoding import MOST_ENCODED, WEIGHT, Batch, summed
from activities.compute.features.encoding import fitted as fit_encoding
from activities.compute.features.goals import SURE, Goal
from activities.compute.features.inputs import Added, Difference, Encoding, Floats, Indicator, Input
from activities.compute.features.parts import FOLDS, folds
from activities.compute.features.pipeline import Pipeline
from activities.compute.rows import chunks
from activities.compute.together import Together, name_of

MOST_DATES = 4
"""Date columns, the first ones, of which each pair is a difference."""
MANY_VALUES = 100
"""A category with more values may also be told as the target's mean: its codes say nothing of the rarer ones.

Only where it is asked for: on flights and hotel rates, 9 samples, it made LightGBM worse in 7, by 0.001 of AUC."""
MOST_SHARES = 10
"""Classes, up to which each one's share of a value's rows is a feature of its own; with more, none is."""
RARELY = 0.001
"""Share of rows with, or without, a value below which an indicator is not worth a feature."""
Gap = tuple[int, Floats]
"""Of a column of numbers with missing values: how many rows, and the sums [outputs] of the target in them."""


@dataclass(frozen=True)
class Made:
    """Features beyond the plain ones."""

    differences: tuple[Difference, ...]
    indicators: tuple[Indicator, ...]
    encodings: tuple[Encoding, ...]
    added: tuple[Added, ...]


def make(  # noqa: PLR0917
    table: Table,
    rows: NDArray[np.int64],
    goal: Goal,
    inputs: Sequence[Input],
    texts: Mapping[str, Texts],
    gaps: Mapping[str, Gap],
    like: Pipeline | None,
    *,
    target_mean: bool,
    together: Together,
) -> Made:
    """What is made of *inputs*, fitted on *rows*; with *like*, the same features as there."""
    differences = like.differences if like else tuple(_differences(inputs))
    added = [
        Added(f"{each.end} - {each.start}", "difference", "the days between two dates of one row")
        for each in differences
    ]
    indicators: tuple[Indicator, ...] = ()
    if like:
        indicators = like.indicators
        added += [each for each in like.added if each.rule == "missing"]
    else:
        told = _telling(goal, {entry.name: gaps[entry.name] for entry in inputs if entry.name in gaps})
        indicators = tuple(map(Indicator, told))
        added += [
            Added(name, "missing", f"the target of rows without it differs, by {sure:.1f} standard errors")
            for name, sure in told.items()
        ]
    wanted = [(each.column, each.of) for each in like.encodings] if like else []
    if target_mean and not like:
        shares = [None] if goal.outputs == 1 else list(range(goal.outputs))
        wanted = [(name, of) for name in _many_values(inputs, texts, goal) for of in shares]
    encodings = tuple(_encoding(table, rows, goal, name, texts[name], of, together) for name, of in wanted)
    added += [
        Added(name, "target mean", f"{texts[name].distinct:,} different values, more than {MANY_VALUES}")
        for name in dict.fromkeys(name for name, _ in wanted)
    ]
    return Made(differences, indicators, encodings, tuple(added))


def _differences(inputs: Sequence[Input]) -> list[Difference]:
    dates = [entry.name for entry in inputs if entry.kind == "datetime"][:MOST_DATES]
    return [Difference(start, end) for start, end in combinations(dates, 2)]


def _telling(goal: Goal, gaps: Mapping[str, Gap]) -> dict[str, float]:
    """Columns whose missing values go with another target, and by how many standard errors."""
    found, rows = {}, len(goal.values)
    for name, (count, sums) in gaps.items():
        if RARELY * rows <= count <= (1 - RARELY) * rows:
            sure = goal.strength(count, sums)
            if sure >= SURE:
                found[name] = sure
    return found


def _many_values(inputs: Sequence[Input], texts: Mapping[str, Texts], goal: Goal) -> list[str]:
    if goal.outputs > MOST_SHARES:
        return []
    named = {entry.name: texts[entry.name] for entry in inputs if entry.kind == "category"}
    return [
        name
        for name, found in named.items()
        # With fewer rows to a value its mean is mostly that of all rows, and what is left is noise.
        if found.distinct > MANY_VALUES and found.count >= WEIGHT * found.distinct
    ]


def _encoding(  # noqa: PLR0917
    table: Table, rows: NDArray[np.int64], goal: Goal, name: str, texts: Texts, of: int | None, together: Together
) -> Encoding:
    low, high = together.share(len(rows))

    def batches() -> Iterator[Batch]:
        start = low
        for numbers, batch in chunks(table, [name], rows[low:high], coded=True):
            values = goal.values[start : start + len(numbers)]
            yield texts_of(batch[name]), values if of is None else (values == of).astype(np.uint8), folds(numbers)
            start += len(numbers)

    known = ("", *(value for value, _ in texts.common[:MOST_ENCODED]))
    sums, counts = summed(known, batches(), FOLDS)
    if not together.alone:
        told = together.gathered(f"mean-{name_of(name)}-{of}", [sums.tolist(), counts.tolist()])
        sums, counts = (np.sum([each[which] for each in told], axis=0) for which in (0, 1))
    return fit_encoding(name, known, sums, counts, of)
