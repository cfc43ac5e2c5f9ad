"""The heavy place: loaded in job children only. A stage is a function `name(request, job)`."""

import ast
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from everloop.artifacts import Artifacts
from everloop.records import Lease

PRELOAD = tuple(
    "activities.compute." + name
    for name in ("data", "features", "training", "trainers.lightgbm", "evaluation", "export", "profile", "drift")
)
"""What a warm process loads first, in the order of a lifecycle's stages: its first job comes while it loads."""


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
        """Tell how far the job is. Never waits. Raises `Invalid` for what is no step or no number.

        Names that pages know: `train_<metric>` and `validation_<metric>` are learning curves, `most` is how many
        steps there will be at most, `rounds`, `epochs` and `trees` say what a step is.
        """


class Context(Job, Protocol):
    """What a trainer is given: ours and people's alike. A job that can go on where it was ended."""

    @property
    def lease(self) -> Lease:
        """The devices that the job holds, and its fence token."""

    @property
    def cores(self) -> int:
        """Threads that this process may use: its member's of the lease."""

    def limit(self) -> None:
        """Tell the libraries that are loaded by now how much of the GPU's memory is the lease's."""

    @property
    def rank(self) -> int:
        """Of this process among those that run the job together: 0 of 1, mostly."""

    @property
    def world_size(self) -> int: ...

    @property
    def rendezvous(self) -> Any:  # noqa: ANN401
        """Where the ranks meet: `host` of rank 0 and a `folder` that is new for every attempt."""

    def join(self, backend: str = "") -> None:
        """Make torch's process group of all ranks, once: nccl where there is a GPU, else gloo."""

    def checkpoint(
        self, step: int, state: Mapping[str, Any] | Callable[[], Mapping[str, Any]], *, at: str = ""
    ) -> bool:
        """Keep *state* after *step*, if one is due: the interval has passed, or the job is to stop. Was it kept?

        *state*: JSON values, texts and NumPy arrays by name; a function is called only when a checkpoint is due.
        *at*: what people call *step*, where it does not count what `report` counts.
        When the job is to stop this does not return: it ends once the checkpoint is kept.
        """

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest checkpoint that is whole, of this stage under any of its leases."""

    def should_stop(self) -> bool:
        """Somebody wants the slot, or the job, to end: keep a checkpoint and return. What is returned then is dropped.

        Until the first call of this or of `checkpoint`, a job that is no longer wanted is ended at once.
        """

    def shrink(self, most: int = 3) -> int:
        """How often this stage has run out of memory: halve the batch so often, and accumulate.

        Who asks says that it can do with less: it is then run again, up to *most* times, before a person is asked.
        """

    def log_artifact(self, name: str, data: bytes | Path) -> None:
        """Keep a file beside the stage's result, for people."""


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


@contextmanager
def on_demand(*packages: str) -> Iterator[None]:
    """In the block, *packages* do not import all that they offer: a name's module is imported when it is asked for.

    Their modules run unchanged. For packages whose `__init__` only gathers names: Evidently gathers a thousand
    classes that a drift check never touches, 4 of its 7 seconds, in every check.
    """
    finder = _OnDemand(frozenset(packages))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _OnDemand(MetaPathFinder, Loader):
    def __init__(self, packages: frozenset[str]) -> None:
        self.packages = packages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.packages:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or found.origin is None:
            return None
        places = list(found.submodule_search_locations or ())
        return spec_from_file_location(fullname, found.origin, loader=self, submodule_search_locations=places)

    def exec_module(self, module: ModuleType) -> None:
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        gathered = {
            alias.asname or alias.name: ("." * node.level + (node.module or ""), alias.name)
            for node in ast.parse(source).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

        def get(name: str) -> object:
            if name not in gathered:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            where, own = gathered[name]
            value = _named(importlib.import_module(where, module.__name__), own)
            setattr(module, name, value)
            return value

        module.__getattr__ = get  # type: ignore[method-assign]  # PEP 562


def _named(module: ModuleType, name: str) -> object:
    """An attribute or a module of a package, as `from package import name` finds it."""
    try:
        return getattr(module, name)
    except AttributeError:
        return importlib.import_module(f"{module.__name__}.{name}")


GATHERED_BY_EVIDENTLY = tuple(
    "evidently" + part
    for part in (
        "",
        ".descriptors",
        ".legacy.descriptors",
        ".legacy.features",
        ".legacy.metric_preset",
        ".legacy.metrics",
        ".legacy.test_preset",
        ".legacy.tests",
        ".legacy.ui",
        ".llm",
        ".llm.utils",
        ".metrics",
        ".presets",
        ".tests",
        ".ui",
    )
)
