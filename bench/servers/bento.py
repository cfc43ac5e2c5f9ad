"""The graph as a BentoML service, as its documentation has it. Runs in BentoML's own environment."""

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1, traffic={"timeout": 60})
class Graph:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.graph = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.kinds = [(e.name, object if "string" in e.type else np.float64) for e in self.graph.get_inputs()]
        self.output = self.graph.get_outputs()[0].name

    @bentoml.api
    def predict(self, row: dict[str, Any]) -> list[float]:
        feed = {name: np.array([[row[name]]], kind) for name, kind in self.kinds}
        found: list[float] = self.graph.run([self.output], feed)[0][0].tolist()
        return found
