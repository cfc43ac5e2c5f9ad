"""LightGBM: fitted until the validation rows say stop, exported threshold by threshold.

Inputs are float32: the exported graph compares float32 with its thresholds, and only a model that was fitted
on the same values can be converted exactly.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from activities.compute import UNUSED_BY_LIGHTGBM, Context, without
from activities.compute.features import Floats, Pipeline
from activities.compute.features.graph import Graph
from activities.compute.trainers import Examples, Question
from activities.compute.trainers.lightgbm.conversion import converted
from activities.compute.trainers.lightgbm.learning import Course, Learner
from activities.compute.trainers.lightgbm.parameters import Part, dataset, parameters
from everloop.families.lightgbm import Params

with without(*UNUSED_BY_LIGHTGBM):
    import lightgbm

THREADS = re.compile(r"\[num_threads: \d+\]")


def fit(examples: Examples, params: Mapping[str, Any], context: Context) -> "Fitted":
    """Trees for the train rows; early stopping looks at the validation rows. Goes on from the context's checkpoint."""
    spec, pipeline, rows = examples.spec, examples.pipeline, examples.rows
    chosen = parameters(spec, pipeline, len(examples.train), params, cores=context.cores)
    weights = None if examples.weights is None else examples.weights[examples.train]
    data = dataset(rows, examples.train, examples.goal[examples.train], pipeline, chosen, weights)
    course = Course.of(context.restore())
    if examples.iterations is not None:
        Learner(data, None, chosen, context).take(course, examples.iterations)
        return Fitted(course.booster(), pipeline, course.rounds)
    held_out = lightgbm.Dataset(Part(rows, examples.validation), examples.goal[examples.validation], reference=data)
    most = Params.model_validate(dict(params)).num_iterations or spec.training.rounds
    learner = Learner(data, held_out, chosen, context, spec.training.early_stopping, _rung(examples))
    learner.take(course, most)
    return Fitted(course.booster(), pipeline, course.best or course.rounds)


def _rung(examples: Examples) -> Callable[[int, float], None]:
    """Tells the loss of a round as every family does: LightGBM's of numbers is squared."""
    if examples.pipeline.task == "regression":
        return lambda rounds, loss: examples.reached(rounds, math.sqrt(loss))
    return examples.reached


def load(dumped: bytes, pipeline: Pipeline) -> "Fitted":
    """The booster in LightGBM's own text."""
    booster = lightgbm.Booster(model_str=dumped.decode())
    return Fitted(booster, pipeline, booster.current_iteration())


class Fitted:
    """A booster."""

    file = "model.txt"
    unit = "round"

    def __init__(self, booster: "lightgbm.Booster", pipeline: Pipeline, iterations: int) -> None:
        self.booster, self.pipeline, self.iterations = booster, pipeline, iterations

    def predict(self, asked: Question) -> Floats:
        """Probabilities [rows, classes], or values [rows] as they were learned."""
        raw = np.asarray(self.booster.predict(asked.matrix, num_iteration=self.iterations, num_threads=1), np.float64)
        if self.pipeline.task == "regression":
            return raw
        return np.stack([1 - raw, raw], axis=1) if raw.ndim == 1 else raw

    def dump(self) -> bytes:
        text: str = self.booster.model_to_string(num_iteration=self.iterations)
        return THREADS.sub("[num_threads: 1]", text).encode()  # another lease may have more

    def onnx(self, graph: Graph, pipeline: Pipeline) -> str:
        """The trees as one node after the pipeline's nodes."""
        node = converted(self.booster, len(pipeline.names))
        node.input[:] = [pipeline.in_graph(graph)]
        other = sum(each.op_type == node.op_type for each in graph.nodes)  # other members of an ensemble
        last = str(other) if other else ""
        node.name += last
        if pipeline.task == "regression":
            node.output[:] = [graph.free(f"everloop:learned{last}")]
            graph.nodes.append(node)
            return str(node.output[0])
        node.output[:] = [graph.free(f"everloop:label{last}"), graph.free(f"everloop:told{last}")]
        graph.nodes.append(node)
        return str(node.output[1])

    def importance(self, pipeline: Pipeline) -> Mapping[str, float]:
        """By how much the splits of each feature reduced the loss."""
        gains = np.asarray(self.booster.feature_importance("gain"), np.float64)
        return dict(zip(pipeline.names, gains.tolist(), strict=True))

    def thresholds(self) -> Mapping[int, list[float]]:
        """Of the splits, read from LightGBM's own text."""
        found: dict[int, set[float]] = {}
        features: list[int] = []
        for line in self.booster.model_to_string().splitlines():
            if line.startswith("split_feature="):
                features = [int(word) for word in line.partition("=")[2].split()]
            if line.startswith("threshold="):
                for place, word in zip(features, line.partition("=")[2].split(), strict=True):
                    found.setdefault(place, set()).add(float(word))
        return {place: sorted(values) for place, values in found.items()}
