"""The launcher's children: each runs a module as `python -m` would, forked from the launcher.

What several of them need is loaded once, in the launcher, before the first of them: a fork starts in milliseconds
and shares those pages for as long as it does not write to them. They stay separate processes with an address space,
a group and an end of their own; what is shared is never a thread, a connection or a lock.
"""

import gc
import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TypeVar, cast

from everloop import engine
from everloop.children import die_with
from everloop.errors import EverloopError
from everloop.loading import uncollected
from everloop.settings import Settings
from workers import process

T = TypeVar("T")

SHARED = ("workers.control", "workers.compute", "workers.cluster", "api.app", "api.connections", "api.temporal_ui")
"""Loaded in the launcher: what its children would each load. Nothing here starts a thread when it is imported."""
GRACE_SECONDS = 4.0
"""How long a group of children may take to end in order."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 30.0
"""Before a child is started again: twice as long after each quick end."""

_FORK = multiprocessing.get_context("fork")
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def load(modules: Sequence[str] = SHARED) -> None:
    """Load what the children share, and keep the collector's hands off it: a page it writes to is not shared.

    The second time it does nothing.
    """
    if all(module in sys.modules for module in modules):
        return
    with uncollected():
        for module in modules:
            importlib.import_module(module)
    gc.collect()
    gc.freeze()


@dataclass(eq=False)
class Child:
    """A process that is started again when it ends."""

    name: str
    module: str
    args: tuple[str, ...] = ()
    process: ForkProcess | None = None
    started_at: float = 0.0
    quick_ends: int = 0
    again_at: float = 0.0

    def alive(self) -> bool:
        return self.process is not None and self.process.is_alive()

    def start(self, settings: Settings) -> None:
        """Start it. Call from the main thread: it is told to die with the thread that made it."""
        log = os.open(log_of(settings, self.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self.process = _forked(_become, (self.module, self.args, settings, log, os.getpid()))
        finally:
            os.close(log)
        self.started_at = time.monotonic()


def pause(quick_ends: int) -> float:
    """Seconds before a child is started again that has ended so often, each time soon after its start."""
    doubled = 2.0 ** min(quick_ends, 100)  # no float is as large as what a night of quick ends would come to
    return min(FIRST_PAUSE_SECONDS * doubled, LONGEST_PAUSE_SECONDS)


def log_of(settings: Settings, name: str) -> Path:
    return settings.logs_dir / f"{name}.log"


def apart(work: Callable[[], T]) -> T:
    """What *work* returns or raises, done in a fork that then ends.

    For whatever starts threads (Temporal's client) or loads much for one moment (migrations): the launcher stays as
    it was, so that its forks are clean. What is raised and is not ours arrives as an `EverloopError`.
    """
    answer, theirs = _FORK.Pipe(duplex=False)
    with answer:
        worker = _forked(_answered, (work, theirs, os.getpid()))
        theirs.close()
        try:
            told = answer.recv()
        except EOFError:
            told = EverloopError("a process of the launcher ended without an answer")
        finally:
            worker.kill()  # also when Ctrl-C came first
            worker.join()
    if isinstance(told, Exception):
        raise told
    return cast("T", told[0])


def end(processes: Sequence[ForkProcess]) -> None:
    """TERM, wait, KILL the whole process group of each."""
    for each in processes:
        each.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for each in processes:
        each.join(max(0.01, deadline - time.monotonic()))
    for each in processes:
        with suppress(ProcessLookupError):
            os.killpg(each.pid or 0, signal.SIGKILL)  # the group outlives its leader: no stray grandchild
        each.join()


def how(code: int | None) -> str:
    """An exit code as words."""
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _forked(target: Callable[..., None], args: tuple[object, ...]) -> ForkProcess:
    made = _FORK.Process(target=target, args=args)
    with _signals_held():  # until the fork has handlers of its own, ours would unwind the launcher's code in it
        made.start()
    return made


@contextmanager
def _signals_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: int) -> None:
    """In the fork: no handler of the launcher's, and no life without it."""
    os.setpgid(0, 0)
    die_with(parent, signal.SIGKILL)
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _become(module: str, args: tuple[str, ...], settings: Settings, log: int, parent: int) -> None:
    _begin(parent)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, source in enumerate((nothing, log, log)):
        os.dup2(source, number)
    for each in os.listdir("/proc/self/fd"):  # noqa: PTH208  # the launcher's locks and doors
        with suppress(OSError):  # the one that listed them
            if int(each) not in (0, 1, 2):
                os.close(int(each))
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False)  # noqa: SIM115  # for as long as the process lives
        for number, mode in enumerate(("r", "w", "w"))
    )
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(engine.environment(settings.environment()))
    command = engine.command(module, *args)
    process.rename(command)
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _answered(work: Callable[[], object], answer: Connection, parent: int) -> None:
    _begin(parent)
    process.rename([sys.executable, "-m", "workers.dev", "(asks)"])
    try:
        told: object = (work(),)
    except (EverloopError, OSError) as error:
        told = error
    except Exception as error:  # noqa: BLE001  # some cannot be sent
        told = EverloopError(f"{type(error).__name__}: {error}")
    answer.send(told)
    answer.close()
    os._exit(0)  # threads of Temporal's client need not be waited for
