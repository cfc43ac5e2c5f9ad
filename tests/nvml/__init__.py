"""A library that answers as NVML does, compiled here: the product's own code runs over it, unmodified."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import missing


def compiled(folder: Path) -> Path:
    """The folder with `libnvidia-ml.so.1`. Without a compiler the test is skipped, and in CI it fails."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        missing("a C compiler")
    made = folder / "nvml"
    made.mkdir()
    source, target = Path(__file__).parent / "fake.c", made / "libnvidia-ml.so.1"
    command = [str(compiler), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(target), str(source)]
    subprocess.run(command, check=True)
    return made


def environment(library: Path, cards: Path) -> dict[str, str]:
    """Of a process that finds *cards*."""
    return {**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(cards)}
