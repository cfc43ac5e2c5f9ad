"""API and serve load nothing that they should not."""

import subprocess
import sys

HEAVY = (
    *("dask", "distributed", "numpy", "pandas", "pyarrow", "scipy"),
    *("onnxruntime", "onnx", "sklearn", "lightgbm", "evidently", "torch"),
    *("duckdb", "optuna", "polars", "python_calamine", "safetensors", "xgboost"),
)


def loaded_by(module: str) -> set[str]:
    script = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_api_loads_no_heavy_library():
    assert loaded_by("api.app") == set()


def test_serve_loads_numpy_and_onnxruntime_only():
    assert loaded_by("api.serve") == {"numpy", "onnxruntime"}
