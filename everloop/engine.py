"""Start one of the engine's own processes.

`workflows`, `activities`, `api` and `workers` are plain names that a user's project may use too,
so they are importable only in the processes started here (and in a checkout).
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


def source() -> Path:
    """Where the four packages are: inside us in a wheel, beside us in a checkout."""
    packaged = HERE / "_engine"
    return packaged if packaged.is_dir() else HERE.parent


def command(module: str, *args: str) -> list[str]:
    """The command line of `python -m module` as one of the engine's processes."""
    return [sys.executable, "-m", module, *args]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of an engine process: our packages first, no stray folder on the path."""
    path = os.pathsep.join(filter(None, [str(source()), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"} | (extra or {})


def become(module: str, *args: str, extra: dict[str, str] | None = None) -> None:
    """Replace this process by `python -m module`. Does not return."""
    os.execve(sys.executable, command(module, *args), environment(extra))  # noqa: S606
