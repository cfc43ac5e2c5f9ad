# ruff: noqa: T201  # what a job prints is its log
"""Who judges whom: each fold's rows by a model that has not learned them; by time, each stretch by what was before."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute import Context
from activities.compute.data import event_seconds
from activities.compute.features import TEST, TRAIN, VALIDATION, Floats, Pipeline, opened_rows
from activities.compute.features.again import written
from activities.compute.features.parts import LEAST_SHARE, groups_of
from activities.compute.trainers import Examples, Fitted, Rungs, answers_of_rows, learned_with, loss_of, trainer
from activities.compute.trainers.part import Part
from everloop.errors import DatasetTooSmall
from everloop.specs import LifecycleSpec

LARGE = 50_000
"""Rows above which `auto` holds a part out: the estimate is sure enough, and folds take their time."""
REPEATS = ((1_000, 3), (3_000, 2))
"""Below so many rows folds are drawn so often."""

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Places of rows to learn and to judge, each ascending."""

    train: Places
    validation: Places


def plan(examples: Examples) -> list[Fold]:
    """The folds that the spec asks for, of all rows but the test part's. The same each time.

    One fold, the validation part, is a holdout. Raises `DatasetTooSmall`.
    """
    spec, rows = examples.spec, examples.rows
    learnable = np.flatnonzero(rows.part != TEST)
    method = spec.validation.method
    if method == "holdout" or (method == "auto" and len(learnable) > LARGE):
        return [Fold(examples.train, np.flatnonzero(rows.part == VALIDATION))]
    if spec.time:
        table, numbers = examples.raw.table(), rows.rows[learnable]
        groups = groups_of(spec.group, table)[numbers] if spec.group else None
        found = rolling(learnable, event_seconds(table, spec.time)[numbers], spec.validation.folds, groups)
    else:
        found = _repeated(examples, learnable)
    if not found:
        hint = "say validation.method: holdout"
        if spec.time and spec.group:
            hint += f", or leave out group: {spec.group!r} may come back in every stretch of time"
        raise DatasetTooSmall("the rows cannot be told apart into folds", field="validation", hint=hint)
    return found


def rolling(places: Places, seconds: Floats, folds: int, groups: NDArray[np.uint64] | None = None) -> list[Fold]:
    """Rolling origin: stretches of about as many rows, each judged by what learned all that was before it.

    With *groups*: but rows of a group that is judged; a stretch before which too few rows are left is not judged.
    Rows of one moment stay together. Rows without a time (NaN) are always learned.
    """
    there = np.isfinite(seconds)
    moments = np.sort(seconds[there])
    if not len(moments):
        return []
    at = [moments[len(moments) * step // (folds + 1)] for step in range(1, folds + 1)]
    cuts = [*np.unique(at), np.inf]
    found = []
    for low, high in pairwise(cuts):
        train = ~there | (seconds < low)
        judged = there & (seconds >= low) & (seconds < high)
        before = int(train.sum())
        if groups is not None:
            train &= ~np.isin(groups, groups[judged])
        if (train & there).any() and judged.any() and train.sum() >= LEAST_SHARE * before:
            found.append(Fold(places[train], places[judged]))
    return found


def _repeated(examples: Examples, places: Places) -> list[Fold]:
    spec, count = examples.spec, examples.spec.validation.folds
    often = spec.validation.repeats or next((times for rows, times in REPEATS if len(places) < rows), 1)
    found = []
    for repeat in range(often):
        number = _numbers(examples, places, repeat)
        found += [Fold(places[number != each], places[number == each]) for each in range(count)]
    return [each for each in found if len(each.train) and len(each.validation)]


def _numbers(examples: Examples, places: Places, repeat: int) -> NDArray[np.int64]:
    """The fold of each row; -1 is never judged."""
    spec, rows = examples.spec, examples.rows
    random = np.random.default_rng([spec.training.seed, repeat, 5])
    if spec.group:
        values = examples.raw.table().arrays([spec.group], rows.rows[places])[spec.group]
        return grouped(values, spec.validation.folds, random)
    if examples.pipeline.encodings and spec.validation.folds == 5 and repeat == 0:  # noqa: PLR2004
        return rows.fold[places].astype(np.int64)  # an encoded row was encoded without its own fold
    classes = rows.y[places].astype(np.int64) if examples.pipeline.classes else np.zeros(len(places), np.int64)
    return stratified(classes, spec.validation.folds, random)


def stratified(classes: NDArray[np.int64], folds: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Each class's rows spread over the folds, one apart at most; a class with one row is never judged."""
    number, first = np.full(len(classes), -1, np.int64), 0
    for each in np.unique(classes):
        own = random.permutation(np.flatnonzero(classes == each))
        if len(own) < 2:  # noqa: PLR2004
            continue
        number[own] = (first + np.arange(len(own))) % folds
        first += len(own)
    return number


def grouped(values: NDArray[Any], folds: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Each group in one fold, the folds about as large. A row without a group is one of its own."""
    texts = values.astype(str)
    missing = (texts == "") | (texts == "nan")
    texts = np.where(missing, [f"\x00{place}" for place in range(len(texts))], texts)
    _, group, counts = np.unique(texts, return_inverse=True, return_counts=True)
    drawn = random.permutation(len(counts))
    order = drawn[np.argsort(-counts[drawn], kind="stable")]
    filled, place = np.zeros(folds, np.int64), np.empty(len(counts), np.int64)
    for each in order:
        place[each] = int(np.argmin(filled))
        filled[place[each]] += counts[each]
    found: NDArray[np.int64] = place[group]
    return found


# --- judging ----------------------------------------------------------------------------------------


@dataclass
class Crossed:
    """What folds have told of a family with its parameters."""

    answers: Floats
    """Out of fold, of every row of the prepared table: as `trainers.answers` has them; NaN where none judged it."""
    losses: list[float] = field(default_factory=list)
    """Of each fold, in the unit of `Rungs`."""
    iterations: int = 1
    """The median of what the folds' models have learned."""
    parameters: dict[str, Any] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)
    """For the checkpoints of what is learned after the folds."""
    last: Fitted | None = None
    """The last fold's model; None where a checkpoint stood after it."""
    last_pipeline: Pipeline | None = None
    """What that model's features are made by: the fold's own where features look at the target."""

    @property
    def judged(self) -> Places:
        """Places of rows that have an answer."""
        first = self.answers if self.answers.ndim == 1 else self.answers[:, 0]
        return np.flatnonzero(~np.isnan(first))


def cross(  # noqa: PLR0917
    examples: Examples,
    params: Mapping[str, Any],
    context: Context,
    folds: Sequence[Fold],
    rungs: Rungs | None = None,
    within: Rungs | None = None,
) -> Crossed:
    """Learn and judge fold by fold; early stopping looks at the fold's own rows.

    Folds are *rungs*: after each the mean loss so far is told, and `Pruned` may end it. Of one fold the family's own
    rungs are. *within*: looks at the family's own in each of several folds. Goes on from the context's checkpoint.
    """
    pipeline, rows = examples.pipeline, examples.rows
    shape = (len(rows), len(pipeline.classes)) if pipeline.classes else (len(rows),)
    restored = context.restore()
    ended, held = Part.done(restored)
    sums = np.array(held["sums"]) if ended else np.zeros(shape)
    counts = np.array(held["counts"]) if ended else np.zeros(len(rows))
    losses: list[float] = list(held["losses"]) if ended else []
    fitted: Fitted | None = None
    used = pipeline
    learned: list[tuple[int, dict[str, Any]]] = [tuple(each) for each in held["learned"]] if ended else []
    for place in range(ended, len(folds)):
        fold = folds[place]
        watched = replace(examples, rungs=rungs if len(folds) == 1 else within)
        with _own(watched, fold, context, alone=len(folds) == 1) as own:
            fitted = trainer(examples.spec.trainer).fit(own, params, Part(context, place, held, restored))
            told, used = answers_of_rows(fitted, own.pipeline, own.rows, fold.validation, examples.raw), own.pipeline
        sums[fold.validation] += told
        counts[fold.validation] += 1
        goal = examples.goal[fold.validation]
        losses.append(loss_of(pipeline, goal, (told - pipeline.center) / pipeline.scale))
        learned.append((fitted.iterations, learned_with(fitted, params)))
        held = {"sums": sums.copy(), "counts": counts.copy(), "losses": list(losses), "learned": list(learned)}
        if place + 1 < len(folds):
            Part(context, place + 1, held).begins()
        if len(folds) > 1:
            print(f"fold {place + 1} of {len(folds)}: loss {losses[-1]:.4f}, {fitted.iterations} iterations")
            if rungs is not None:
                rungs.reached(place + 1, float(np.mean(losses)))
    divisor = np.where(counts, counts, np.nan)
    answers = sums / (divisor[:, None] if pipeline.classes else divisor)
    iterations = max(1, round(float(np.median([each for each, _ in learned]))))
    return Crossed(answers, losses, iterations, _settled([each for _, each in learned]), held, fitted, used)


@contextmanager
def _own(examples: Examples, fold: Fold, context: Context, *, alone: bool) -> Iterator[Examples]:
    """The fold's examples. Where features are chosen or made by the target, they are by its own train rows alone."""
    own = replace(examples, train=fold.train, validation=fold.validation)
    if alone or not examples.pipeline.looks_at_target:
        yield own
        return
    path, part = context.scratch / "fold.arrow", np.full(len(examples.rows), VALIDATION, np.int8)
    part[fold.train] = TRAIN
    pipeline = written(path, examples.spec, examples.raw.table(), examples.rows, part, context)
    with opened_rows(path) as rows:
        yield replace(own, pipeline=pipeline, rows=rows, goal=(rows.y - pipeline.center) / pipeline.scale)
    path.unlink()


def _settled(learned: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters; of an ensemble's members with the median of what each has learned."""
    found = dict(learned[-1])
    if "members" in found:
        found["members"] = [
            member | {"iterations": round(float(np.median([each["members"][place]["iterations"] for each in learned])))}
            for place, member in enumerate(found["members"])
        ]
    return found


def wants_folds(spec: LifecycleSpec, rows: int) -> bool:
    """Is the training judged in folds, with so many rows beside the test part?"""
    method = spec.validation.method
    return method == "folds" or (method == "auto" and rows <= LARGE)
