# ruff: noqa: T201  # what a job prints is its log
"""XGBoost: fitted until the validation rows say stop, exported node by node.

`params:` are those of `everloop.families.xgboost`. Of `training:` it takes the seed. It learns on the GPU where the
lease has one and the library was built for it. Categories enter as ranks (see `ordering`): all its splits are
comparisons of float32 with float32, which the graph repeats as they are.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from activities.compute import Context
from activities.compute.features import Floats, Pipeline
from activities.compute.features.graph import Graph
from activities.compute.trainers import Examples, Question, kept, splits
from activities.compute.trainers.ordering import Ordering
from everloop.errors import IntegrityError
from everloop.families.xgboost import Params

SEGMENT = 50
"""Rounds after which the booster is written down and read again, killed or not: so a training that goes on from a
checkpoint is the same as one that was never ended."""
REPORT_EVERY = 10
BATCH_ROWS = 65_536
OBJECTIVES = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
LOSSES = {"binary": "logloss", "multiclass": "mlogloss", "regression": "rmse"}


def fit(examples: Examples, params: Mapping[str, Any], context: Context) -> "Fitted":
    """Trees for the train rows; early stopping looks at the validation rows. Goes on from the context's checkpoint."""
    chosen = Params.model_validate(dict(params))
    ordering = Ordering.of(examples)
    told = _told(examples, chosen, context)
    data = _rows(examples, examples.train, ordering, chosen, context)
    held_out = None
    if examples.iterations is None:
        held_out = _rows(examples, examples.validation, ordering, chosen, context, like=data)
    course = Course.of(context.restore())
    Learner(examples, chosen, told, data, held_out, context).take(course)
    rounds = course.best if held_out is not None else course.rounds
    learned = _raw(_booster(told, course.model)[:rounds])
    return Fitted(learned, examples.pipeline, ordering, rounds)


def load(dumped: bytes, pipeline: Pipeline) -> "Fitted":
    """A booster in XGBoost's own format, and the ranks of the categories. Raises `IntegrityError`."""
    arrays, about = kept.unpacked(dumped)
    ordering = Ordering(about["first"], arrays["starts"], arrays["ranks"])
    return Fitted(arrays["model"], pipeline, ordering, about["iterations"])


class Fitted:
    """A booster, in XGBoost's own bytes: what is read and written again would not be the same ones."""

    file = "model.safetensors"
    unit = "round"

    def __init__(self, model: NDArray[np.uint8], pipeline: Pipeline, ordering: Ordering, iterations: int) -> None:
        """Raises `IntegrityError`."""
        self.model, self.pipeline, self.ordering, self.iterations = model, pipeline, ordering, iterations
        try:
            self.booster = _booster({}, model)
        except xgboost.core.XGBoostError as error:
            raise IntegrityError(f"the model cannot be read: {str(error)[:200]}") from None
        self.booster.set_param({"nthread": 1, "device": "cpu"})

    def predict(self, asked: Question) -> Floats:
        """Probabilities [rows, classes], or values [rows] as they were learned."""
        raw = np.asarray(self.booster.inplace_predict(self.ordering.apply(asked.matrix)), np.float64)
        if self.pipeline.task == "binary":
            return np.stack([1 - raw, raw], axis=1)
        return raw

    def dump(self) -> bytes:
        about = {"first": self.ordering.first, "iterations": self.iterations}
        ranks: kept.Arrays = {"starts": self.ordering.starts, "ranks": self.ordering.ranks}
        return kept.packed({"model": self.model, **ranks}, about)

    def onnx(self, graph: Graph, pipeline: Pipeline) -> str:
        """The trees as one node after the ranks; what makes probabilities of their sums after it."""
        trees, of_tree, base = _trees(self.booster)
        targets = max(1, len(pipeline.classes)) if pipeline.task == "multiclass" else 1
        features = self.ordering.in_graph(graph, pipeline.in_graph(graph))
        start = math.log(base / (1 - base)) if pipeline.task == "binary" else base
        sums = splits.in_graph(
            graph, features, trees, mode="BRANCH_LT", targets=targets, of_tree=of_tree, base=[start] * targets
        )
        if pipeline.task == "regression":
            return sums
        if pipeline.task == "multiclass":
            return graph.add("Softmax", sums, axis=1)
        likely = graph.add("Sigmoid", sums)
        return graph.add("Concat", graph.add("Sub", graph.constant([[1.0]], np.float32), likely), likely, axis=1)

    def importance(self, pipeline: Pipeline) -> Mapping[str, float]:
        """By how much the splits of each feature reduced the loss."""
        gains = self.booster.get_score(importance_type="total_gain")
        return {name: float(gains.get(f"f{place}", 0.0)) for place, name in enumerate(pipeline.names)}

    def thresholds(self) -> Mapping[int, list[float]]:
        """Of the splits by features that are numbers: those of ranks are reached by the categories' values."""
        first = self.ordering.first if len(self.ordering.starts) else None
        found = _trees(self.booster)[0].thresholds()
        return {place: values for place, values in found.items() if first is None or place < first}


# --- learning -------------------------------------------------------------------------------------


@dataclass
class Course:
    """How far the training is: all that it needs to go on at the beginning of a segment."""

    rounds: int = 0
    model: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    best: int = 0
    best_loss: float | None = None

    @classmethod
    def of(cls, restored: tuple[int, dict[str, Any]] | None) -> "Course":
        return cls() if restored is None else cls(**restored[1])


@dataclass(frozen=True)
class Learner:
    """What a training learns from, and when it stops."""

    examples: Examples
    params: Params
    told: dict[str, Any]
    data: "xgboost.DMatrix"
    held_out: "xgboost.DMatrix | None"
    context: Context

    def take(self, course: Course) -> None:
        """Take *course* to its last round, or to where it stops early."""
        most = self.examples.iterations or self.params.rounds
        while course.rounds < most and not self._over(course):
            self._segment(course, min(course.rounds + SEGMENT, most), most)
            if course.rounds < most and not self._over(course):
                self.context.checkpoint(course.rounds, lambda: dict(vars(course)))

    def _over(self, course: Course) -> bool:
        return self.held_out is not None and course.rounds - course.best >= self.params.early_stopping

    def _segment(self, course: Course, until: int, most: int) -> None:
        before, stopping = dict(vars(course)), False
        booster = _booster(self.told, course.model, (self.data, self.held_out))
        while course.rounds < until and not self._over(course):
            if not stopping and self.context.should_stop():
                stopping = True
                self.context.checkpoint(before["rounds"], before)
            booster.update(self.data, course.rounds)
            course.rounds += 1
            self._judge(booster, course, until, most)
        course.model = _raw(booster)

    def _judge(self, booster: "xgboost.Booster", course: Course, until: int, most: int) -> None:
        """Look at the validation loss after a round, and at both every so often."""
        told = {}
        if self.held_out is not None:
            loss = _loss(booster, self.held_out)
            if course.best_loss is None or loss < course.best_loss:
                course.best, course.best_loss = course.rounds, loss
            told[f"validation_{_named(self.examples)}"] = loss
        if course.rounds % REPORT_EVERY == 0 or course.rounds == until or self._over(course):
            told[f"train_{_named(self.examples)}"] = _loss(booster, self.data)
            self.context.report(course.rounds, rounds=course.rounds, most=most, **told)
        if self.held_out is not None:
            self.examples.reached(course.rounds, loss)


def _named(examples: Examples) -> str:
    return "rmse" if examples.pipeline.task == "regression" else "log_loss"


def _loss(booster: "xgboost.Booster", rows: "xgboost.DMatrix") -> float:
    return float(booster.eval(rows, "rows").rpartition(":")[2])


def _told(examples: Examples, chosen: Params, context: Context) -> dict[str, Any]:
    """XGBoost's parameters."""
    task, pipeline = examples.pipeline.task, examples.pipeline
    base = 0.0
    if task != "regression":
        base = 0.5
    if task == "binary":  # rounded as XGBoost writes it into its model
        share = np.average(examples.goal[examples.train], weights=examples.weight(examples.train))
        base = float(f"{min(max(float(share), 1e-6), 1 - 1e-6):.5g}")
    told = chosen.model_dump(exclude={"rounds", "early_stopping"}) | {
        "objective": OBJECTIVES[task],
        "eval_metric": LOSSES[task],
        "base_score": base,
        "seed": examples.spec.training.seed,
        "seed_per_iteration": True,  # what is drawn depends on the round, not on where the job began
        "nthread": context.cores,
        "tree_method": "hist",
        "device": "cuda" if _on_gpu(context) else "cpu",
        "verbosity": 0,
    }
    return told | ({"num_class": len(pipeline.classes)} if task == "multiclass" else {})


def _on_gpu(context: Context) -> bool:
    """Does the lease have a GPU, and can this build of the library use one?"""
    leased = any(member.milli_gpu for member in context.lease.members)
    if leased and not (able := bool(xgboost.build_info().get("USE_CUDA"))):
        print("this XGBoost was built without CUDA: it learns on the CPU")
    return leased and able


def _rows(  # noqa: PLR0917
    examples: Examples,
    places: NDArray[np.int64],
    ordering: Ordering,
    chosen: Params,
    context: Context,
    like: "xgboost.DMatrix | None" = None,
) -> "xgboost.DMatrix":
    """Rows by their places (ascending); only bins of them are kept in memory. *like*: take its bins."""

    class Batches(xgboost.DataIter):  # type: ignore[misc]  # XGBoost has no types for us
        def __init__(self) -> None:
            super().__init__()
            self.start = 0

        def next(self, input_data: Any) -> bool:  # noqa: ANN401
            some = places[self.start : self.start + BATCH_ROWS]
            if not len(some):
                return False
            input_data(
                data=ordering.apply(examples.rows.matrix(some)),
                label=examples.goal[some],
                weight=None if examples.weights is None or like is not None else examples.weights[some],
            )
            self.start += BATCH_ROWS
            return True

        def reset(self) -> None:
            self.start = 0

    return xgboost.QuantileDMatrix(Batches(), max_bin=chosen.max_bin, nthread=context.cores, ref=like)


def _booster(told: dict[str, Any], model: NDArray[np.uint8], rows: tuple[Any, ...] = ()) -> "xgboost.Booster":
    booster = xgboost.Booster(told, [each for each in rows if each is not None])
    if len(model):
        booster.load_model(bytearray(model.tobytes()))
        booster.set_param(told)
    return booster


def _raw(booster: "xgboost.Booster") -> NDArray[np.uint8]:
    return np.frombuffer(bytes(booster.save_raw("ubj")), np.uint8)


# --- from its trees to ours -------------------------------------------------------------------------


def _trees(booster: "xgboost.Booster") -> tuple[splits.Trees, NDArray[np.int64], float]:
    """All trees, the target that each adds to, and what the sums start with (of a binary target a probability)."""
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    model = learner["gradient_booster"]["model"]
    trees = splits.Trees.joined([_tree(each) for each in model["trees"]])
    base = float(learner["learner_model_param"]["base_score"].strip("[]").split(",")[0])
    return trees, np.asarray(model["tree_info"], np.int64), base


def _tree(told: Mapping[str, Any]) -> splits.Trees:
    left, right = (np.asarray(told[name], np.int32) for name in ("left_children", "right_children"))
    leaf, conditions = left == -1, np.asarray(told["split_conditions"], np.float32)
    return splits.Trees(
        starts=np.zeros(1, np.int64),
        feature=np.where(leaf, splits.LEAF, np.asarray(told["split_indices"], np.int32)).astype(np.int32),
        threshold=np.where(leaf, np.float32(0), conditions),
        left=np.where(leaf, 0, left).astype(np.int32),
        right=np.where(leaf, 0, right).astype(np.int32),
        missing_left=np.asarray(told["default_left"], bool) & ~leaf,
        value=np.where(leaf, conditions, np.float32(0))[:, None],
    )
