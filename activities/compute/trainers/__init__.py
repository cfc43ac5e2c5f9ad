"""What learns. One file per family; `train`, `refit`, `evaluate` and `export` know a family by this protocol alone.

A family's file is a module with the functions of `Trainer`. It is loaded when a job asks for it: torch alone would
put 200 MB into every warm process. Its words (`params:`, the space of a search) are the file of the same name in
everloop/families, which a search reads without its library. No family learns in a warm process before its fork:
OpenMP's threads do not survive one.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from activities.compute import Context
from activities.compute.data import Table
from activities.compute.features import Floats, Matrix, Pipeline, PreparedRows
from activities.compute.features.graph import Graph
from activities.compute.inference import Columns
from activities.compute.rows import opened
from everloop.artifacts import Artifacts
from everloop.errors import JobFailed
from everloop.families import FAMILIES, FILES
from everloop.records import Snapshot
from everloop.specs import LifecycleSpec

USER = "user"
"""The file that calls functions of users."""
SMALLEST = 1e-15
"""Probabilities are kept this far from 0 before their logarithm is taken."""


class Raw:
    """A door to the raw columns of a snapshot, of rows by their numbers in it. It is opened when somebody looks."""

    def __init__(self, table: Callable[[], Table]) -> None:
        self.table = table

    def __call__(self, names: list[str], rows: NDArray[np.int64]) -> Columns:
        """Columns as a model's graph takes them: {name: [rows]}."""
        return self.table().arrays(names, rows)


class Pruned(Exception):  # noqa: N818  # nothing went wrong
    """Who looks at a training's rungs wants no more of it."""


class Rungs(Protocol):
    """Who looks at a training while it runs, and may end it: a search's pruner."""

    def reached(self, step: int, loss: float) -> None:
        """The validation rows' loss after *step* rounds, epochs or trees: log loss, or the root of the mean squared
        error in standard deviations of the target. The same of every family. Raises `Pruned` to end the training.
        """


@dataclass(frozen=True)
class Examples:
    """Prepared rows to learn from."""

    spec: LifecycleSpec
    pipeline: Pipeline
    rows: PreparedRows
    train: NDArray[np.int64]
    """Places of the rows to learn, ascending."""
    validation: NDArray[np.int64]
    """Places of the rows that say when to stop, ascending. Empty in a refit, where `iterations` says it."""
    goal: Floats
    """Of every row: the class index, or the target as `Pipeline.center` and `Pipeline.scale` make it."""
    raw: Raw
    """Of the same snapshot; its row numbers are `rows.rows`."""
    iterations: int | None = None
    """Learn exactly so many rounds or epochs."""
    weights: Floats | None = None
    """Of every row: how much it counts while a family learns. None: each as 1. What is measured counts rows alike."""
    rungs: Rungs | None = None

    def weight(self, places: NDArray[np.int64]) -> Floats:
        """Of rows by their places."""
        return np.ones(len(places)) if self.weights is None else self.weights[places]

    def drawn(self, most_cells: int, why: str) -> NDArray[np.int64]:
        """Places of the rows to learn: of all, or of so many, drawn by the seed, that their features are at most
        *most_cells*, and never fewer than 1,000. *why*: for the log.
        """
        most = max(1000, most_cells // self.rows.features)
        if len(self.train) <= most:
            return self.train
        print(f"{most:,} of {len(self.train):,} rows are drawn: {why}")  # noqa: T201  # what a job prints is its log
        random = np.random.default_rng([self.spec.training.seed, 1])
        return np.sort(random.choice(self.train, most, replace=False))

    def reached(self, step: int, loss: float) -> None:
        """Tell the rungs, where somebody looks at them. Raises `Pruned`."""
        if self.rungs is not None:
            self.rungs.reached(step, loss)


@dataclass
class Question:
    """Rows to answer, as features and as raw columns; each is made when a model looks at it."""

    features: Callable[[], Matrix]
    raw: Callable[[], Columns]

    @cached_property
    def matrix(self) -> Matrix:
        """Features [rows, features]."""
        return self.features()

    @cached_property
    def columns(self) -> Columns:
        """Raw columns {name: [rows]}."""
        return self.raw()


class Fitted(Protocol):
    """A model that has learned."""

    @property
    def file(self) -> str:
        """What a person would call the dump: `model.txt`."""

    @property
    def iterations(self) -> int:
        """Rounds or epochs that it has learned: what a refit repeats."""

    @property
    def unit(self) -> str:
        """What it calls one of them: `round`, `epoch`. Known of what has just learned."""

    def predict(self, asked: Question) -> Floats:
        """Probabilities [rows, classes] in the pipeline's order, or values [rows] as `Examples.goal` has them."""

    def dump(self) -> bytes:
        """All of it, for `load`. The same model gives the same bytes."""

    def onnx(self, graph: Graph, pipeline: Pipeline) -> str:
        """Add nodes that compute `predict` from the graph's inputs; the name of their output.

        Classes: float [rows, classes]. Regression: [rows, 1], as the model has learned it.
        """

    def importance(self, pipeline: Pipeline) -> Mapping[str, float]:
        """What each feature is worth to the model, in any unit; empty where it does not say: then evaluation finds
        out by permuting features, and calls what is said here native.
        """

    def thresholds(self) -> Mapping[int, list[float]]:
        """Feature places to values at which the answer jumps: the export is compared on both sides of each."""


class Trainer(Protocol):
    """A family: the functions of its file."""

    def fit(self, examples: Examples, params: Mapping[str, Any], context: Context) -> Fitted:
        """Learn. The same examples, parameters and seed give the same bytes, also after `context.restore()`."""

    def load(self, dumped: bytes, pipeline: Pipeline) -> Fitted:
        """The model that `dump` has written."""


def loss_of(pipeline: Pipeline, goal: Floats, told: Floats) -> float:
    """Of answers as `Fitted.predict` gives them: log loss, or the root of the mean squared error. NaN of no rows."""
    if not len(goal):
        return float("nan")
    if pipeline.task == "regression":
        return float(np.sqrt(np.mean((told - goal) ** 2)))
    of_truth = told[np.arange(len(goal)), goal.astype(np.int64)]
    return float(-np.mean(np.log(np.clip(of_truth, SMALLEST, 1.0))))


def learned_with(fitted: Fitted, params: Mapping[str, Any]) -> dict[str, Any]:
    """The `params` that repeat *fitted* on other rows: as given, but where a family has found more (`settled`)."""
    return dict(getattr(fitted, "settled", None) or params)


def trainer(name: str) -> Trainer:
    """The family *name* of a spec: one of ours, or a function of a user (`package.module:function`)."""
    file = FILES.get(name, name) if name in FAMILIES else USER
    return cast("Trainer", importlib.import_module(f"{__name__}.{file}"))


@contextmanager
def raw_columns(artifacts: Artifacts, snapshot: Snapshot | None) -> Iterator[Raw]:
    """A door to the raw columns of *snapshot*, which is opened when somebody looks."""
    with ExitStack() as stack:
        tables: list[Table] = []

        def table() -> Table:
            if snapshot is None:
                raise JobFailed("the raw columns are not at hand: this stage was started by an older Everloop")
            if not tables:
                tables.append(stack.enter_context(opened(artifacts, snapshot)))
            return tables[0]

        yield Raw(table)


def answers(fitted: Fitted, pipeline: Pipeline, asked: Question) -> Floats:
    """Probabilities [rows, classes], or values [rows] of the target."""
    told = np.asarray(fitted.predict(asked), np.float64)
    return told * pipeline.scale + pipeline.center if pipeline.task == "regression" else told


def answers_of_rows(
    fitted: Fitted,
    pipeline: Pipeline,
    rows: PreparedRows,
    places: NDArray[np.int64],
    raw: Raw,
) -> Floats:
    """`answers` of prepared rows by their places (ascending), batch by batch."""
    names, found, step = [entry.name for entry in pipeline.inputs], [], 65_536
    for start in range(0, len(places), step):
        some = places[start : start + step]
        asked = Question(lambda some=some: rows.matrix(some), lambda some=some: raw(names, rows.rows[some]))  # type: ignore[misc]
        found.append(answers(fitted, pipeline, asked))
    return np.concatenate(found)
