# ruff: noqa: T201  # what a job prints is its log
"""Rows become parts: train, validation, test; and folds of each."""

import numpy as np
from numpy.typing import NDArray

from activities.compute.data import Table, Target, content_hashes, event_seconds, row_hashes
from activities.compute.data.hashing import MISSING_HASH, hashed
from activities.compute.features.inputs import Floats
from everloop.errors import InvalidData
from everloop.specs import LifecycleSpec

TRAIN, VALIDATION, TEST, NO_PART = 0, 1, 2, -1
LEAST_SHARE = 0.1
"""Of the rows that come before others in time: fewer without the groups of those, and the spec asks for too much."""
FRESH_ROWS = 30
"""Fewer rows than this that the champion has not seen cannot compare two models."""
FOLDS = 5


def split(spec: LifecycleSpec, table: Table, target: Target, unseen: NDArray[np.bool_]) -> NDArray[np.int8]:
    """The part of each labelled row: 0 train, 1 validation, 2 test; -1: none, it is left out.

    Rows of one group are in one part: by time, those that come before the rest of their group in a later part are
    left out.
    By time the test part is the latest, and rows of one moment stay together; rows without a time are trained on.
    Without time the row's hash decides: the same in any process, and equal rows stay together unless most are.
    Every class has a row in the train part: where it would have none, its earliest rows are moved there.
    """
    rows = target.labelled
    order = _order(spec, table, rows)
    part = np.full(len(rows), TRAIN, np.int8)
    there = np.isfinite(order)
    test = _test(spec, order, there, unseen)
    part[test] = TEST
    part[latest(order, spec.split.validation, there & ~test)] = VALIDATION
    groups = groups_of(spec.group, table)[rows] if spec.group else None
    if groups is not None and spec.time:
        before = int((part != TEST).sum())
        for later in (TEST, VALIDATION):
            part[(part < later) & (part >= TRAIN) & np.isin(groups, groups[part == later])] = NO_PART
        _enough(spec, int(((part == TRAIN) | (part == VALIDATION)).sum()), before)
    if target.classes:
        _every_class(target.values[rows].astype(np.int64), order, part, len(target.classes), groups)
    for place, name in ((TRAIN, "train"), (VALIDATION, "validation"), (TEST, "test")):
        if not (part == place).any():
            hint = "more rows are needed that differ from each other, in their values or their time"
            raise InvalidData(f"no row is left for the {name} part", field="split", hint=hint)
    return part


def _order(spec: LifecycleSpec, table: Table, rows: NDArray[np.int64]) -> Floats:
    """What the split follows: the time, or a number made from the row's hash."""
    if spec.time:
        seconds = event_seconds(table, spec.time)[rows]
        if len(np.unique(seconds[np.isfinite(seconds)])) >= 3:  # noqa: PLR2004  # three parts
            return seconds
        print(f"the times of {spec.time!r} are too few to split by: rows are split by their hash")
    if spec.group:  # all rows of one group are on one side of every border
        return (groups_of(spec.group, table)[rows] >> np.uint64(11)).astype(np.float64)
    content = content_hashes(table)[rows]
    if 2 * len(np.unique(content)) < len(content):
        content = row_hashes(table)[
            rows
        ]  # few different rows, as in a table of categories: copies are drawn one by one
    return (content >> np.uint64(11)).astype(np.float64)


def _test(spec: LifecycleSpec, order: Floats, there: NDArray[np.bool_], unseen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    fresh = unseen & there
    if not spec.time or unseen.all() or fresh.sum() < FRESH_ROWS:
        return latest(order, spec.split.test, there)
    # All of them when half would be too few to compare with.
    return latest(order, 0.5 if fresh.sum() >= 2 * FRESH_ROWS else 1.0, fresh)


def latest(order: Floats, share: float, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The highest *share* of the rows *among*, rows of one value together: all or none of them."""
    if share >= 1:
        return among
    values = np.sort(order[among])
    if not len(values):
        return among
    border = values[min(len(values) - 1, round(len(values) * (1 - share)))]
    above = np.searchsorted(values, border, "right")
    including = np.searchsorted(values, border, "left")
    wanted = len(values) * (1 - share)
    if including == 0 or (above < len(values) and abs(above - wanted) < abs(including - wanted)):
        return np.asarray(among & (order > border))
    return np.asarray(among & (order >= border))


def groups_of(name: str, table: Table) -> NDArray[np.uint64]:
    """Of every row of *table*, its group as a number: what has no group is one of its own."""
    own = hashed(table.rows[name])
    return np.where(own == MISSING_HASH, content_hashes(table), own)


def _enough(spec: LifecycleSpec, left: int, before: int) -> None:
    if left < before:
        print(f"{before - left:,} of {before:,} rows are in no part: their {spec.group!r} has rows in a later one")
    if left < LEAST_SHARE * before:
        said = f"only {left:,} of {before:,} rows are of a {spec.group!r} that has none in a later part"
        hint = f"most come back all the time: leave out group (the parts are by {spec.time}), or leave out time"
        raise InvalidData(f"groups cannot be kept whole in the order of time: {said}", field="group", hint=hint)


def _every_class(
    codes_: NDArray[np.int64],
    order: Floats,
    part: NDArray[np.int8],
    classes: int,
    groups: NDArray[np.uint64] | None = None,
) -> None:
    present = np.bincount(codes_[part == TRAIN], minlength=classes) > 0
    for missing in np.flatnonzero(~present):
        own = np.flatnonzero(codes_ == missing)
        moved = own[np.argsort(order[own], kind="stable")][: max(1, len(own) // 2)]
        part[moved if groups is None else np.isin(groups, groups[moved])] = TRAIN  # a group goes as a whole


def folds(rows: NDArray[np.int64]) -> NDArray[np.int8]:
    """The fold (0 to 4) of rows by their numbers: the same in any process and any chunk."""
    with np.errstate(over="ignore"):  # SplitMix64
        mixed = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(FOLDS)).astype(np.int8)
