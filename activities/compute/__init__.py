"""The heavy place: loaded in job children only. A stage is a function `name(request, job)`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from everloop.artifacts import Artifacts


class Job(Protocol):
    """What a stage is given beside its request. The child process provides it."""

    @property
    def artifacts(self) -> Artifacts: ...

    @property
    def predictions_dir(self) -> Path: ...

    @property
    def scratch(self) -> Path:
        """A folder of this job alone, removed afterwards."""

    def report(self, step: int, /, **values: float) -> None:
        """Tell how far the job is. Never raises."""


@contextmanager
def without(*modules: str) -> Iterator[None]:
    """Imports in the block find none of *modules*.

    LightGBM tries scikit-learn, Dask and plotting libraries when it is imported and uses none of them for us:
    2 of its 2.5 seconds, in every job. What is imported already stays.
    """
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is how an import is forbidden
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


UNUSED_BY_LIGHTGBM = ("sklearn", "dask", "distributed", "matplotlib", "graphviz", "cffi", "pandas")
