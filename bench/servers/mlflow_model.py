"""Saves the graph as an MLflow model, for `mlflow models serve`. Runs in MLflow's own environment: MODEL FOLDER.

As a model of one's own and not by `mlflow.onnx`: that makes float32 of numbers, and this graph takes float64.
"""

import sys
from typing import Any

import mlflow.pyfunc


class Graph(mlflow.pyfunc.PythonModel):
    """The same session as the others have."""

    def load_context(self, context: Any) -> None:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = context.artifacts["graph"]
        self.graph = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.kinds = [(e.name, object if "string" in e.type else np.float64) for e in self.graph.get_inputs()]
        self.output = self.graph.get_outputs()[0].name

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002
        feed = {name: model_input[[name]].to_numpy(kind) for name, kind in self.kinds}
        return self.graph.run([self.output], feed)[0]


if __name__ == "__main__":
    mlflow.pyfunc.save_model(sys.argv[2], python_model=Graph(), artifacts={"graph": sys.argv[1]}, pip_requirements=[])
