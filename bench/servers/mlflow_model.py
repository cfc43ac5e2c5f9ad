"""Saves the graph as an MLflow model, for `mlflow models serve`. Runs in MLflow's own environment: MODEL FOLDER."""

import sys

import mlflow.onnx
import onnx

if __name__ == "__main__":
    mlflow.onnx.save_model(onnx.load(sys.argv[1]), sys.argv[2])
