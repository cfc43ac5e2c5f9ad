# ruff: noqa: T201  # what a job prints is its log
"""torch: a network for tables, learned until the validation rows say stop, exported node by node.

`params:` are those of `everloop.families.torch.Params`. Of `training:` it takes the seed.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from activities.compute import Context
from activities.compute.features import Floats, Matrix, Pipeline, PreparedRows
from activities.compute.features.graph import Graph
from activities.compute.trainers import Examples, Question
from activities.compute.trainers.torch_tabular import faults, network
from activities.compute.trainers.torch_tabular.learning import JUDGED_ROWS, Learning, Network, Task, bytes_of, lost
from activities.compute.trainers.torch_tabular.network import InGraph, Scaling, Shape
from everloop.errors import IntegrityError, OutOfMemory, TargetUnusable
from everloop.families.torch import Params as TorchParams

IMPORTANCE = 3
"""The stream of random numbers that importance is drawn from."""
IMPORTANCE_ROWS, IMPORTANCE_ANSWERS = 2000, 400_000
"""Rows that are looked at, and at most so many answers."""


def fit(examples: Examples, params: Mapping[str, Any], context: Context) -> "Fitted":
    """The network of the epoch with the least validation loss, or after exactly `examples.iterations` epochs."""
    chosen = TorchParams.model_validate(dict(params))
    device = _start(context.cores)
    _check_goal(examples)
    pipeline, rows = examples.pipeline, examples.rows
    found = network.look(pipeline, rows, examples.train)
    task = Task(
        shape=Shape.of(chosen, pipeline, found),
        scaling=Scaling.of(found),
        params=chosen,
        seed=examples.spec.training.seed,
        device=device,
        rows=rows,
        goal=examples.goal,
        train=examples.train,
        validation=examples.validation,
        counts=found.counts,
        iterations=examples.iterations,
        weights=None if examples.weights is None else examples.weights / examples.weights[examples.train].mean(),
        reached=examples.reached,
    )
    try:
        faults.check_room(bytes_of(task.shape), context.lease.members[0].memory_mib << 20)
        with faults.named(f"this training, whose weights alone take {bytes_of(task.shape):,} bytes"):
            return _learned(task, context)
    except OutOfMemory:
        context.shrink(0)  # it has tried with less already
        raise


def _learned(task: Task, context: Context) -> "Fitted":
    learning = Learning(task, context)
    precision = "bfloat16" if task.bfloat16 else "float32"
    weights = len(learning.network.flat)
    print(f"{weights:,} weights on {task.device}, {precision}, {learning.steps:,} steps in an epoch")
    learning.run()
    fitted = Fitted(Network(task.shape, learning.network.flat.cpu()), task.scaling, learning.iterations)
    fitted.worth = _worth(task, fitted)
    return fitted


def load(dumped: bytes, pipeline: Pipeline) -> "Fitted":  # noqa: ARG001  # the network holds all it needs
    """The network in safetensors. Raises `IntegrityError`."""
    _start(1)
    try:
        arrays = safetensors.numpy.load(dumped)
        about = json.loads(arrays.pop("about").tobytes())
        told: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in about["shape"].items()}
        shape = Shape(**told)
        scaling = Scaling(arrays.pop("numbers.mean"), arrays.pop("numbers.spread"))
        flat = np.concatenate([arrays[name].reshape(-1) for name in shape.parameters()])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"the model cannot be read: {str(error)[:200]}") from None
    fitted = Fitted(Network(shape, torch.from_numpy(flat)), scaling, about["iterations"])
    fitted.worth = about["worth"]
    return fitted


class Fitted:
    """A network."""

    file = "model.safetensors"
    unit = "epoch"

    def __init__(self, held: Network, scaling: Scaling, iterations: int) -> None:
        self.network, self.scaling, self.iterations = held, scaling, iterations
        self.worth: list[float] = []
        """Of each feature; none where there were no validation rows to ask."""

    def predict(self, asked: Question) -> Floats:
        """Probabilities [rows, classes], or values [rows] as they were learned."""
        return self._told(asked.matrix)

    def _told(self, matrix: Matrix) -> Floats:
        shape, found = self.network.shape, []
        with faults.named("the model and a few rows"):
            for start in range(0, len(matrix), JUDGED_ROWS):
                some = np.ascontiguousarray(matrix[start : start + JUDGED_ROWS])
                outputs = self.network.answers(*self.scaling.features(shape, some, "cpu"))
                found.append((torch.softmax(outputs, 1) if shape.outputs > 1 else outputs[:, 0]).numpy())
        empty = np.zeros((0, shape.outputs) if shape.outputs > 1 else 0, np.float32)
        return np.concatenate([empty, *found]).astype(np.float64)

    def dump(self) -> bytes:
        """In safetensors, with a text beside the arrays: the order of its own metadata is not the same each time."""
        about = {"shape": asdict(self.network.shape), "iterations": self.iterations, "worth": self.worth}
        arrays = {name: np.ascontiguousarray(each.numpy()) for name, each in self.network.parts().items()}
        arrays |= {"numbers.mean": self.scaling.mean, "numbers.spread": self.scaling.spread}
        arrays["about"] = np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)
        written: bytes = safetensors.numpy.save(arrays)
        return written

    def onnx(self, graph: Graph, pipeline: Pipeline) -> str:
        """The network's nodes after the pipeline's."""
        shape = self.network.shape
        do = InGraph(graph, self.network.parts())
        outputs = network.body(do, shape, do.entered(shape, self.scaling, pipeline.in_graph(graph)))
        return graph.add("Softmax", outputs, axis=1) if shape.outputs > 1 else outputs

    def importance(self, pipeline: Pipeline) -> Mapping[str, float]:
        """By how much the validation loss rises when the feature's values are shuffled among the rows."""
        return dict(zip(pipeline.names, self.worth, strict=True)) if self.worth else {}

    def thresholds(self) -> Mapping[int, list[float]]:
        """None: the answer never jumps."""
        return {}


def _start(cores: int) -> str:
    """Let torch use *cores* threads and give the same bytes each time; the device to learn on."""
    torch.set_num_threads(cores)
    torch.use_deterministic_algorithms(True)
    if not torch.cuda.is_available():
        return "cpu"
    # cuBLAS sums in one order only with this; it looks when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return "cuda"


def _check_goal(examples: Examples) -> None:
    wrong = sum(int((~np.isfinite(examples.goal[places])).sum()) for places in (examples.train, examples.validation))
    if wrong:
        target = examples.spec.target
        hint = "leave those rows out of the source, or mend them"
        raise TargetUnusable(f"{target!r} is NaN or infinite in {wrong:,} rows", field="target", hint=hint)


def _worth(task: Task, fitted: Fitted) -> list[float]:
    """Of each feature, on a sample of the validation rows; a feature that helps nothing is worth 0."""
    rows: PreparedRows = task.rows
    most = max(100, min(IMPORTANCE_ROWS, IMPORTANCE_ANSWERS // rows.features))
    random = np.random.default_rng([task.seed, IMPORTANCE])
    places = np.sort(random.choice(task.validation, min(most, len(task.validation)), replace=False))
    if not len(places):
        return []
    goal = torch.from_numpy(task.goal[places])
    goal = goal.long() if task.shape.outputs > 1 else goal.float()
    matrix = rows.matrix(places)

    def loss() -> float:
        return float(lost(task.shape, fitted.network.answers(*task.scaling.features(task.shape, matrix, "cpu")), goal))

    plain, found = loss(), []
    for place in range(rows.features):
        own = matrix[:, place].copy()
        matrix[:, place] = random.permutation(own)
        found.append(max(0.0, (loss() - plain) / len(places)))
        matrix[:, place] = own
    return found
