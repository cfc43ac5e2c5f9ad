"""Find a user's function and call it. Whatever goes wrong there is said in one line, with the place in their code."""

import asyncio
import importlib
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

import activities
from activities.jobs.checkpoints import Stopped
from everloop import disk, streams
from everloop.errors import ComputeLost, EverloopError, Invalid, TrainerFailed, text

IMPORTING = importlib.__file__
OURS = str(Path(str(activities.__file__)).parent)
AGAIN = "its log has the whole trace; mend the code and retry: it is read again, where `code` is a folder or a wheel"
OUT_OF_MEMORY = ("OutOfMemoryError", "OutOfMemoryException")
"""As torch and DuckDB call it."""
LEFT = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)
"""What ends a process, raised by code that is only a guest there."""
MOST_CHARACTERS = 600
MOST_NAMES = 8


def function_of(name: str) -> Callable[[Any], object]:
    """The function `package.module:function`. Raises `TrainerFailed`."""
    module_name, _, function_name = name.partition(":")
    module = _module(module_name)
    function = getattr(module, function_name, None)
    if function is None:
        there = [each for each, value in vars(module).items() if inspect.isfunction(value) and not each.startswith("_")]
        hint = f"it has {', '.join(there[:MOST_NAMES])}" if there else "it has no function"
        raise TrainerFailed(f"{module_name} has no function {function_name!r}", field="trainer", hint=hint)
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        hint = "def fit(training): ...; everloop.trainer says what it is given"
        raise TrainerFailed(f"{name} must take one argument, the training", field="trainer", hint=hint) from None
    except ValueError:  # built in: it has no signature to look at
        pass
    return cast("Callable[[Any], object]", function)


def _module(name: str) -> Any:  # noqa: ANN401  # a module
    _forget_lightgbm()
    try:
        with streams.guest(), _still_importing():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            hint = "`code` is the folder that the module is in, or the wheel that holds it"
            raise TrainerFailed(f"there is no module {missing!r}", field="trainer", hint=hint) from None
        hint = "name its package under `requirements`, as in requirements.txt"
        raise TrainerFailed(
            f"{name} needs the module {missing!r}, which is not installed", field="trainer", hint=hint
        ) from None
    except BaseException as error:
        _if_no_bug(error)
        raise _failed(f"{name} cannot be imported", error) from error


def _forget_lightgbm() -> None:
    """Our own process has it without scikit-learn, see `compute.without`: a user's import finds all of it."""
    for each in [each for each in sys.modules if each.partition(".")[0] == "lightgbm"]:
        del sys.modules[each]


def call(name: str, function: Callable[..., Any], *given: object) -> Any:  # noqa: ANN401  # whatever the user's code gives
    """Call the user's *function*. Raises `TrainerFailed` for what it raises, but see `_if_no_bug`."""
    try:
        with streams.guest(), _still_importing():
            return function(*given)
    except BaseException as error:  # a user may define one of their own
        _if_no_bug(error)
        raise _failed(name, error) from error


@contextmanager
def _still_importing() -> Iterator[None]:
    """What could be imported before the block can be after it, whatever it took away: our own code loads more."""
    kept = {name: list(getattr(sys, name)) for name in ("path", "meta_path", "path_hooks")}
    try:
        yield
    finally:
        for name, before in kept.items():
            now = getattr(sys, name, None)
            if not isinstance(now, list):
                setattr(sys, name, now := [])
            now.extend(each for each in before if each not in now)


def _if_no_bug(error: BaseException) -> None:
    """Raise *error* as what it is where the code is not to blame: ours, disk or memory that is out, a lost device.

    To blame it is for `Invalid` itself: so the training refuses what it was asked.
    """
    if isinstance(error, EverloopError | MemoryError | Stopped) and type(error) is not Invalid:
        raise error
    if type(error).__name__ in OUT_OF_MEMORY or disk.is_full(error):
        raise error
    if "torch" not in sys.modules:
        return
    from activities.compute.trainers.torch_tabular import faults

    if faults.is_out_of_memory(error):
        raise MemoryError(str(error).splitlines()[0]) from error
    if faults.is_peer_lost(error):
        raise ComputeLost(f"another rank of the gang is gone: {str(error).splitlines()[0][:300]}") from error
    if faults.is_lost(error):
        raise ComputeLost(f"the device failed: {str(error).splitlines()[0][:300]}") from error


def seed_everything(seed: int, cores: int) -> None:
    """Seed the generators that are loaded, and tell torch its threads."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # what the libraries of users draw from
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)
        torch.set_num_threads(cores)


def _failed(what: str, error: BaseException) -> TrainerFailed:
    """One line for people. The trace goes to the log, without the frames that are ours."""
    frames = traceback.extract_tb(error.__traceback__)
    while frames and frames[0].filename.startswith((OURS, IMPORTING, "<frozen importlib")):
        frames.pop(0)
    shown = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    print("Traceback of the trainer (most recent call last):", "".join(shown), sep="\n", flush=True)  # noqa: T201
    where = _where(frames)
    kind, hint = ("", error.hint) if isinstance(error, Invalid) else (type(error).__name__, "")
    said = ": ".join(filter(None, [kind, text(error)])).replace("\n", " ")[:MOST_CHARACTERS]
    if isinstance(error, LEFT):
        said = f"the trainer ended the process ({said})"
    return TrainerFailed(f"{what}: {said}{where}", field="trainer", hint="; ".join(filter(None, [hint, AGAIN])))


def _where(frames: "traceback.StackSummary | list[traceback.FrameSummary]") -> str:
    """The last place in the user's own files, and below it the place that raised; never one of ours."""
    frames = [frame for frame in frames if not frame.filename.startswith(OURS)]
    own = [frame for frame in frames if "-packages" not in frame.filename and not frame.filename.startswith("<")]
    told = dict.fromkeys(_place(frame) for frame in [*own[-1:], *frames[-1:]])
    return f" ({'; '.join(told)[:MOST_CHARACTERS]})" if told else ""


def _place(frame: traceback.FrameSummary) -> str:
    line = f": {frame.line}" if frame.line else ""
    return f"{Path(frame.filename).name} line {frame.lineno}, in {frame.name}{line}"
