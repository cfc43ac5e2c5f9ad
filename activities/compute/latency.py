"""How long one row takes in ONNX Runtime, and what a model costs: measured, on one thread."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from activities.compute.features import Pipeline
from activities.compute.inference import Columns, Model
from activities.compute.trainers import Fitted
from everloop.errors import GraphTooSlow
from everloop.specs import LifecycleSpec

WARM, RUNS, TIMES = 20, 60, 5
MOST_SECONDS = 2.0
"""A graph that takes long is asked less often."""
DIFFERENT_ROWS = 32


def single_row_ms(session: "onnxruntime.InferenceSession", columns: Columns) -> float:
    """The median of many runs of one row each. Of several such the least: others use the machine too.

    *columns*: raw rows, by the names of the graph's inputs.
    """
    rows = min(DIFFERENT_ROWS, len(next(iter(columns.values()))))
    feeds = [
        {name: values.reshape(-1, 1)[place : place + 1] for name, values in columns.items()} for place in range(rows)
    ]
    output, begun = [session.get_outputs()[0].name], time.perf_counter()
    for run in range(WARM):
        session.run(output, feeds[run % rows])
    found: list[float] = []
    while len(found) < TIMES and (not found or time.perf_counter() - begun < MOST_SECONDS):
        taken = []
        for run in range(RUNS):
            start = time.perf_counter_ns()
            session.run(output, feeds[run % rows])
            taken.append(time.perf_counter_ns() - start)
        found.append(float(np.median(taken)) / 1e6)
    return min(found)


def must_be_quick(spec: LifecycleSpec, family: str, milliseconds: float, hint: str) -> None:
    """Raises `GraphTooSlow` where one row takes longer than the spec allows."""
    if spec.latency_ms is not None and milliseconds > spec.latency_ms:
        message = f"one row takes {milliseconds:.3g} ms in the graph of {family}, more than latency_ms allows"
        raise GraphTooSlow(f"{message} ({spec.latency_ms:g})", field="latency_ms", hint=f"{hint}, or raise latency_ms")


# --- what a member of an ensemble costs -------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of a graph, or of what a member adds to one."""

    bytes: int
    milliseconds: float


def cost(pipeline: Pipeline, fitted: Fitted, columns: Columns) -> Cost:
    """What *fitted* adds to the pipeline's own nodes, which members of an ensemble share."""
    from activities.compute.export import build  # it imports this module

    whole, shared = _measured(build(pipeline, fitted), columns), features_cost(pipeline, columns)
    return Cost(max(0, whole.bytes - shared.bytes), max(0.0, whole.milliseconds - shared.milliseconds))


def features_cost(pipeline: Pipeline, columns: Columns) -> Cost:
    """Of the pipeline's nodes alone."""
    from activities.compute.export import graph_of_features

    return _measured(graph_of_features(pipeline), columns)


def limits(spec: LifecycleSpec, pipeline: Pipeline, columns: Columns) -> dict[str, Any]:
    """What members may cost together, as `ensemble.selection.select` takes it."""
    shared = features_cost(pipeline, columns)
    quick = None if spec.latency_ms is None else max(0.0, spec.latency_ms - shared.milliseconds)
    return {"most_bytes": max(0, (spec.model_mib << 20) - shared.bytes), "most_milliseconds": quick}


def _measured(graph: Any, columns: Mapping[str, Any]) -> Cost:  # noqa: ANN401  # a ModelProto
    data = graph.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return Cost(len(data), single_row_ms(session, dict(columns)))


def of_model(model: Model, columns: Columns) -> float:
    """`single_row_ms` of an exported model: *columns* by the names of its fields."""
    return single_row_ms(
        model.session,
        {name: columns[field.name] for name, field in zip(model.inputs, model.signature.fields, strict=True)},
    )
