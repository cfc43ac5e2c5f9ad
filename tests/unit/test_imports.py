"""What each process may load: control, the CLI and the workflows start without anything heavy."""

import subprocess
import sys

import pytest

from everloop import engine
from workers.dev.__main__ import OURS
from workers.dev.children import SHARED

HEAVY = {"torch", "evidently", "sklearn", "pandas", "lightgbm", "onnx", "onnxruntime", "onnxmltools", "skl2onnx"}
HEAVY |= {"duckdb", "optuna", "polars", "python_calamine", "safetensors", "sympy", "xgboost"}
NUMBERS = {"numpy", "pyarrow", "scipy"}
DASK = {"dask", "distributed"}


def loaded_by(*modules: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh process that imported *modules*."""
    code = f"import {', '.join(modules)}, sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    command = [sys.executable, "-c", code]
    return set(
        subprocess.run(command, env=engine.environment(), capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (("workers.control", "workers.__main__", "workers.journal"), HEAVY | NUMBERS | DASK),
        (("everloop.client", "everloop.store", "everloop.views"), HEAVY | NUMBERS | DASK),
        (("everloop.cli",), HEAVY | NUMBERS | DASK | {"temporalio", "sqlalchemy"}),
        (("workers.compute",), HEAVY),
        (SHARED, HEAVY | {"pyarrow", "scipy"}),
        (("activities.jobs.supervisor", "activities.jobs.reaper"), HEAVY | {"temporalio", "sqlalchemy", "pydantic"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_process_loads_nothing_that_it_has_no_use_for(modules: tuple[str, ...], forbidden: set[str]) -> None:
    assert loaded_by(*modules) & forbidden == set()


def test_what_jobs_are_forked_from_has_not_loaded_torch() -> None:
    """217 MB in each warm process, for those who never say `trainer: torch`."""
    code = "import sys; from activities.jobs import warm; "
    code += "[warm._load(name) for name in warm._modules('activities.compute')]; "
    code += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=engine.environment(), capture_output=True, text=True, check=True
    )

    assert {"numpy", "duckdb"} <= set(done.stdout.split())
    assert not {"torch", "sympy"} & set(done.stdout.split())


def test_the_guard_itself_sees_what_is_loaded() -> None:
    assert {"numpy", "pandas", "duckdb"} <= loaded_by("duckdb", "pandas")


def test_what_the_launcher_shares_with_its_forks_starts_no_thread() -> None:
    code = f"import os, {', '.join(SHARED)}; print(len(os.listdir('/proc/self/task')))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=engine.environment(OURS), capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "1"
