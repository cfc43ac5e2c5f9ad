"""What features say about the target, in a sample of the rows that are fitted on: higher is more, 0 is nothing.

Each answers [features] and is the same in any process.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute.features.goals import UNIT, Goal
from activities.compute.features.inputs import Feature, Floats
from activities.compute.features.sample import Sample
from activities.compute.features.table import PreparedRows
from everloop.specs import LifecycleSpec

BINS = 16
"""Of numbers, about as many rows in each."""
SHUFFLES = 3
"""Of the target, that say what chance alone would."""
PATH_ROWS, STEPS, SHRINK, MOST_STEPS = 3_000, 16, 0.7, 50
"""Of the L1 path: rows, penalties, how much weaker each is than the one before, and steps of the search at each."""
LEAST_WORTH = 1e-6
HELD_OUT = 5
"""Each so manieth row of the sample says when LightGBM stops."""


def scores(method: str, sample: Sample, spec: LifecycleSpec, most: int) -> Floats:
    """Of each feature of the sample, by a method of `Selection`. What is not among the *most* columns may have 0."""
    ways: dict[str, Callable[[], Floats]] = {
        "mutual_information": lambda: mutual_information(sample.matrix, sample.categorical, sample.goal),
        "correlation": lambda: correlation(sample),
        "importance": lambda: importance(sample, spec),
        "l1": lambda: l1(sample, spec, most),
    }
    return ways[method]()


# --- filters ----------------------------------------------------------------------------------------


def mutual_information(matrix: NDArray[np.float32], categorical: set[int], goal: Goal) -> Floats:
    """In nats, of each feature in bins with the class, or with the target in bins; less what chance alone would say."""
    told = goal.values.astype(np.int64) if goal.classes else binned(goal.values.astype(np.float64))
    shuffled = [np.random.default_rng([6, each]).permutation(told) for each in range(SHUFFLES)]
    found = []
    for place in range(matrix.shape[1]):
        own = matrix[:, place].astype(np.int64) if place in categorical else binned(matrix[:, place])
        chance = float(np.mean([_shared(own, each) for each in shuffled]))
        found.append(max(0.0, _shared(own, told) - chance))
    return np.array(found)


def binned(values: Feature | Floats) -> NDArray[np.int64]:
    """Numbers as places among quantiles; what is missing has a bin of its own."""
    there = values[~np.isnan(values)]
    if not len(there):
        return np.zeros(len(values), np.int64)
    edges = np.unique(np.quantile(there, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    return np.asarray(np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values)), np.int64)


def _shared(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    width, rows = int(other.max(initial=0)) + 1, len(one)
    table = np.bincount(one * width + other, minlength=(int(one.max(initial=0)) + 1) * width).reshape(-1, width)
    high, low = table.sum(axis=1, keepdims=True), table.sum(axis=0, keepdims=True)
    filled = table > 0
    expected = (high * low)[filled] / rows
    return float(np.sum(table[filled] / rows * np.log(table[filled] / expected)))


def correlation(sample: Sample) -> Floats:
    """Of ranks; of a category, the root of the share of the target's variance that lies between its values."""
    goal, columns = sample.goal, sample.matrix
    values = goal.values.astype(np.float64)
    if goal.outputs > 1:
        targets = [(values == each).astype(np.float64) for each in range(goal.classes)]
    else:
        targets = [ranks(values)]
    found = [
        max(
            _between(columns[:, place].astype(np.int64), target)
            if place in sample.categorical
            else _along(columns[:, place], target)
            for target in targets
        )
        for place in range(columns.shape[1])
    ]
    return np.array(found)


def ranks(values: Feature | Floats) -> Floats:
    """Equal values have the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return found


def _along(values: Feature, target: Floats) -> float:
    there = ~np.isnan(values)
    own, goal = ranks(values[there]), target[there]
    if not len(own) or own.std() == 0 or goal.std() == 0:
        return 0.0
    return abs(float(np.corrcoef(own, goal)[0, 1]))


def _between(codes: NDArray[np.int64], target: Floats) -> float:
    counts = np.bincount(codes)
    groups, rows, whole = int(np.count_nonzero(counts)), len(codes), float(target.var())
    if groups >= rows or whole == 0:
        return 0.0
    means = np.bincount(codes, target) / np.maximum(counts, 1)
    share = float(counts @ (means - target.mean()) ** 2) / rows / whole
    return float(np.sqrt(max(0.0, 1 - (1 - share) * (rows - 1) / (rows - groups))))


# --- embedded ---------------------------------------------------------------------------------------


class _Unseen:
    """The context of a model that nobody keeps."""

    cores = 1

    def report(self, step: int, /, **values: float) -> None: ...

    def checkpoint(self, step: int, state: object, *, at: str = "") -> bool:  # noqa: ARG002
        return False

    def restore(self) -> None:
        return None

    def should_stop(self) -> bool:
        return False


def _examples(sample: Sample, spec: LifecycleSpec, held_out: NDArray[np.bool_]) -> Any:  # noqa: ANN401
    from activities.compute.trainers import Examples  # it imports this package

    values, pipeline = sample.goal.values.astype(np.float64), sample.pipeline
    goal = values if sample.goal.classes else values / UNIT
    nothing = np.zeros(len(goal), np.int8)
    beside: dict[str, NDArray[Any]] = {
        "y": goal,
        "part": nothing,
        "fold": nothing,
        "row": sample.rows,
        "fresh": nothing > 0,
    }
    return Examples(
        spec=spec.model_copy(update={"trainer": "lightgbm", "params": {}}),
        pipeline=pipeline,
        rows=PreparedRows([sample.matrix], beside | {"fresh": nothing > 0}),
        train=np.flatnonzero(~held_out),
        validation=np.flatnonzero(held_out),
        goal=goal,
        raw=None,  # type: ignore[arg-type]  # nobody looks
    )


def importance(sample: Sample, spec: LifecycleSpec) -> Floats:
    """By how much LightGBM's loss of rows that it has not learned rises when the feature is shuffled among them.

    What its splits have saved while it learned would praise noise of many values; it only ranks what is worth nothing.
    """
    from activities.compute.importance import permuted
    from activities.compute.trainers import trainer

    held_out = np.arange(len(sample.rows)) % HELD_OUT == HELD_OUT - 1
    examples, pipeline = _examples(sample, spec, held_out), sample.pipeline
    fitted = trainer("lightgbm").fit(examples, {}, _Unseen())  # type: ignore[arg-type]
    plain = replace(pipeline, center=0.0, scale=1.0)  # the sample's target is in its units already
    worth = permuted(fitted, plain, examples.rows, examples.validation, seed=spec.training.seed)
    saved = fitted.importance(pipeline)
    whole = sum(saved.values()) or 1.0
    return np.array([worth.get(name, 0.0) + LEAST_WORTH * saved.get(name, 0.0) / whole for name in pipeline.names])


def l1(sample: Sample, spec: LifecycleSpec, most: int) -> Floats:
    """At which share of the strongest useful L1 penalty a linear model first looks at each feature.

    It ends when *most* columns are in.
    """
    from activities.compute.trainers.linear import Problem, design_of, encoding_of, sparse
    from everloop.families.linear import Params

    random = np.random.default_rng([spec.training.seed, 8])
    count = min(PATH_ROWS, len(sample.rows))
    places = np.sort(random.choice(len(sample.rows), count, replace=False))
    examples = _examples(sample, spec, np.zeros(len(sample.rows), np.bool_))
    chosen = Params(l1=1.0, knots=0)
    encoding = encoding_of(examples, places, chosen)
    problem = Problem.of(
        design_of(encoding, examples, places), examples.goal[places], np.ones(count), sample.pipeline, chosen
    )
    free = replace(problem, l1=0.0, l2=0.0)
    flat = np.zeros((problem.columns + 1) * problem.outputs)
    flat = sparse(replace(free, l1=1e6), flat, 50, lambda _: None)  # the intercepts alone
    strongest = float(np.abs(problem.parts(free.smooth(flat)[1])[0]).max())
    found, of = np.zeros(len(sample.pipeline.names)), _features_of(encoding)
    for step in range(1, STEPS + 1):
        share = SHRINK**step
        flat = sparse(replace(free, l1=strongest * share), flat, MOST_STEPS, lambda _: None)
        entered = np.unique(of[np.any(problem.parts(flat)[0] != 0, axis=1)])
        found[entered] = np.maximum(found[entered], share)
        if sum(score > 0 for score in sample.by_column(found).values()) >= most:
            break
    return found


def _features_of(encoding: Any) -> NDArray[np.int64]:  # noqa: ANN401  # of a module that imports this package
    """Of each column of a linear model, the place of its feature."""
    of = np.concatenate([np.arange(encoding.numbers), encoding.flagged])
    sizes = np.diff(np.append(encoding.starts, len(encoding.column)))
    level = np.zeros(encoding.levels, np.int64)
    level[encoding.column] = np.repeat(np.arange(len(sizes)), sizes) + encoding.numbers
    return np.concatenate([of, level]).astype(np.int64)
