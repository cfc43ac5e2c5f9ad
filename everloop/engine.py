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


def build() -> str:
    """Which code decides here: our version and a digest of the words and the workflows. 72 characters at most.

    Each workflow task's record in a history names the build that made it.
    """
    from hashlib import sha256
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("everloop")
    except PackageNotFoundError:  # a copy of the folders
        number = "unknown"
    digest = sha256()
    for folder in (HERE, source() / "workflows"):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{number}+{digest.hexdigest()[:12]}"


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
