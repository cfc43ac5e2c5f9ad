"""What a spec, or a trial of a search, chooses among the features that could be: each off where it is not asked for.

In this order: near-duplicates go, the best columns are kept, skewed numbers are made even, numbers are combined. All
of it looks at a sample of the rows that are fitted on, and is kept as it is by a refit on more rows.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations as pairs
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from activities.compute.data import Table
from activities.compute.features import skews
from activities.compute.features.combinations import combined
from activities.compute.features.goals import Goal
from activities.compute.features.inputs import Added, Combination, Dropped, Floats, Input, Score, Selected, Skew
from activities.compute.features.numbers import filled, single
from activities.compute.features.pipeline import Pipeline
from activities.compute.features.relevance import mutual_information, scores
from activities.compute.features.sample import Sample
from everloop.specs import LifecycleSpec, Selection

ALIKE = 0.9
"""Of the rows in which either number is there, both are in so many, or their correlation says little."""
BETTER = 1.02
"""A combination must say so much more about the target than either of its numbers."""
MORE_THAN = 2
"""Different values, missing ones too."""
TWICE = 2
"""Combinations at most, for each number that they are made of."""


def choose(spec: LifecycleSpec, pipeline: Pipeline, table: Table, rows: NDArray[np.int64], goal: Goal) -> Pipeline:
    """*pipeline*, fitted on *rows* with every feature, with what the spec chooses."""
    asked = spec.features
    if not (asked.near_duplicates or asked.selection or asked.skew != "none" or asked.interactions):
        return pipeline
    sample = Sample.of(pipeline, table, rows, goal, spec.training.seed)
    if asked.near_duplicates:
        sample = sample.without(without_duplicates(sample, asked.near_duplicates))
    if asked.selection:
        sample = sample.without(selected(sample, spec, asked.selection))
    pipeline = sample.pipeline
    if asked.skew != "none":
        pipeline = evened(pipeline, table, sample.rows, asked.skew)
    if asked.interactions:
        pipeline = interacting(pipeline, sample, table, asked.interactions)
    return pipeline


def repeat(pipeline: Pipeline, table: Table, rows: NDArray[np.int64], like: Pipeline, seed: int) -> Pipeline:
    """*pipeline*, fitted on the columns of *like*, with the choices that were made there."""
    named = {entry.name for entry in pipeline.inputs}
    kept = tuple(each for each in like.combinations if {each.left, each.right} <= named)
    reasons = [each for each in like.added if each.rule == "combination"]
    pipeline = replace(pipeline, selected=like.selected, combinations=kept, added=(*pipeline.added, *reasons))
    how = {each.column: each.how for each in like.skews}
    if not how:
        return pipeline
    some = rows
    if len(rows) > skews.MOST_ROWS:
        some = np.sort(np.random.default_rng([seed, 9]).choice(rows, skews.MOST_ROWS, replace=False))
    return evened(pipeline, table, some, next(iter(how.values())), only=set(how))


# --- columns that go ------------------------------------------------------------------------------


def without_duplicates(sample: Sample, threshold: float) -> Pipeline:
    """Of each two numbers that go together, the one with fewer missing values stays, or the first of the table."""
    pipeline = sample.pipeline
    plain = [entry.name for entry in pipeline.of("number", "boolean")]
    values = sample.matrix[:, : len(plain)].astype(np.float64)
    together = alike(values)
    order = np.argsort(np.isnan(values).sum(axis=0), kind="stable")
    gone: dict[str, Dropped] = {}
    for at, place in enumerate(order):
        for other in order[:at]:
            if plain[other] not in gone and together[place, other] > threshold:
                reason = f"a near-duplicate of {plain[other]!r}: their correlation is {together[place, other]:.4f}"
                gone[plain[place]] = Dropped(plain[place], reason)
                break
    names = {entry.name for entry in pipeline.inputs} - gone.keys()
    return pipeline.only(names, list(gone.values())) if gone else pipeline


def alike(values: Floats) -> Floats:
    """|Pearson's correlation| of the columns of *values*, of rows in which both are there; 0 where those are few."""
    there = ~np.isnan(values)
    with np.errstate(all="ignore"):
        count = np.maximum(there.sum(axis=0), 1)
        centred = np.where(there, values, 0.0)
        centred = np.where(there, centred - centred.sum(axis=0) / count, 0.0)
        centred /= np.maximum(np.abs(centred).max(axis=0), 1e-300)
        both = there.T.astype(np.float64) @ there
        either = count[:, None] + count[None] - both
        sums = centred.T @ there  # of one column where the other is there
        shared = np.maximum(both, 1)
        moved = centred.T @ centred - sums * sums.T / shared
        spread = np.maximum((centred**2).T @ there - sums**2 / shared, 0.0)
        found = np.abs(moved) / np.sqrt(spread * spread.T)
    return np.where((both >= ALIKE * either) & np.isfinite(found), found, 0.0)


def selected(sample: Sample, spec: LifecycleSpec, asked: Selection) -> Pipeline:
    """The columns that say most about the target; of equals the first ones of the table."""
    pipeline = sample.pipeline
    columns = len(pipeline.inputs)
    most = asked.keep if isinstance(asked.keep, int) else max(1, round(asked.keep * columns))
    found = sample.by_column(scores(asked.method, sample, spec, most))
    ranked = sorted(found.items(), key=lambda each: -round(each[1], 9))
    listed = tuple(Score(name, float(f"{score:.6g}"), place < most) for place, (name, score) in enumerate(ranked))
    told = Selected(asked.method, listed)
    gone = [
        Dropped(each.column, f"{asked.method.replace('_', ' ')} ranks it {place} of {columns}: {each.score:.4g}")
        for place, each in enumerate(listed, 1)
        if not each.kept
    ]
    return replace(pipeline.only({each.column for each in listed if each.kept}, gone), selected=told)


# --- features that are made -----------------------------------------------------------------------


def _plain(pipeline: Pipeline) -> list[Input]:
    """Numbers that float32 holds as they are."""
    return [entry for entry in pipeline.of("number") if not entry.offset and not entry.fine]


def evened(
    pipeline: Pipeline, table: Table, rows: NDArray[np.int64], how: str, only: set[str] | None = None
) -> Pipeline:
    """Skewed numbers made even; with *only*, of those columns."""
    found: list[Skew] = []
    for entry in _plain(pipeline):
        if only is not None and entry.name not in only:
            continue
        values = table.arrays([entry.name], rows)[entry.name].astype(np.float64)
        skew = skews.fitted(entry.name, how, values[np.isfinite(values)])
        found += [skew] if skew else []
    added = tuple(Added(each.column, each.how, "it is skewed") for each in found)
    return replace(pipeline, skews=tuple(found), added=(*pipeline.added, *added))


def interacting(pipeline: Pipeline, sample: Sample, table: Table, most: int) -> Pipeline:
    """Products and ratios of the *most* numbers that say most, where they say more than either."""
    named = dict(zip(sample.pipeline.names, sample.matrix.T, strict=True))
    # Of two values, as of a flag written 0 and 1, a product says what a tree or a line says without it.
    plain = {entry.name: entry for entry in _plain(pipeline) if len(np.unique(named[entry.name])) > MORE_THAN}
    alone = dict(
        zip(sample.pipeline.names, mutual_information(sample.matrix, sample.categorical, sample.goal), strict=True)
    )
    top = sorted(plain, key=lambda name: -round(float(alone[name]), 9))[:most]
    values = {name: filled(plain[name], column) for name, column in table.arrays(top, sample.rows).items()}
    candidates = [Combination(*each, "product") for each in pairs(top, 2)]
    candidates += [Combination(*each, "ratio") for each in permutations(top, 2)]
    found = _one_way(_telling(candidates, values, alone, sample.goal))[: TWICE * most]
    kept = sorted((candidates.index(each) for each, _ in found))
    added = [
        Added(each.name, "combination", f"it says more about the target than either number: {score:.4g}")
        for each, score in found
    ]
    return replace(pipeline, combinations=tuple(candidates[place] for place in kept), added=(*pipeline.added, *added))


def _telling(
    candidates: list[Combination], values: Mapping[str, Floats], alone: Mapping[str, float], goal: Goal
) -> list[tuple[Combination, float]]:
    """Those that say more than their numbers do alone, the best first."""
    found = []
    for each in candidates:
        made = single(combined(each.how, values[each.left], values[each.right]))
        score = float(mutual_information(made[:, None], set(), goal)[0])
        if score > BETTER * max(alone[each.left], alone[each.right], 0.0) and score > 0:
            found.append((each, score))
    return sorted(found, key=lambda each: -round(each[1], 9))


def _one_way(found: list[tuple[Combination, float]]) -> list[tuple[Combination, float]]:
    """Of a ratio and its inverse, the one that says more."""
    kept: dict[tuple[str, frozenset[str]], tuple[Combination, float]] = {}
    for each, score in found:
        kept.setdefault((each.how, frozenset((each.left, each.right))), (each, score))
    return list(kept.values())
