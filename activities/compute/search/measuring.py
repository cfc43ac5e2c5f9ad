"""What a trial's model would cost where it answers: bytes of its graph, and milliseconds of one row in ONNX Runtime."""

import time
from statistics import median

import numpy as np
import onnxruntime

from activities.compute.export import TEXTS, build
from activities.compute.features import Pipeline
from activities.compute.trainers import Examples, Fitted

TIMES, FIRST = 30, 5
"""How often one row is answered, and how many of these only warm it up."""


def measured(fitted: Fitted, pipeline: Pipeline, examples: Examples) -> tuple[int, float]:
    """Bytes and milliseconds (the median)."""
    graph = build(pipeline, fitted).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    columns = examples.raw([entry.name for entry in pipeline.inputs], examples.rows.rows[:1])
    kinds = {entry.name: object if entry.kind in TEXTS else np.float64 for entry in pipeline.inputs}
    row = {
        given.name: np.asarray(columns[entry.name], kinds[entry.name]).reshape(1, 1)
        for given, entry in zip(session.get_inputs(), pipeline.inputs, strict=True)
    }
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        session.run(None, row)
        taken.append(time.perf_counter() - began)
    return len(graph), median(taken[FIRST:]) * 1000
