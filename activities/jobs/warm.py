"""Where jobs come from: `python -m activities.jobs.warm ROOT CONTROL_FD`, one beside each Dask worker.

It loads the heavy place once (seconds of processor time) and then forks for each job (milliseconds): first the
job's reaper, which forks the job. No job ever runs in this process, so each starts from the same clean state.
It ends when the Dask worker's end of CONTROL_FD is closed; jobs do not depend on it.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from activities.jobs import child, reaper

PR_SET_NAME = 15
MESSAGE_BYTES = 1 << 16
WATCH_MILLISECONDS = 200


def main(root: str, control: socket.socket) -> None:
    """Load *root*, then fork whenever told to, until *control* is closed at the other end."""
    os.nice(reaper.NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _ending_with(control):
        _load(root)
    gc.freeze()  # what is loaded now stays shared between all jobs
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for reapers: their status pipe tells
    while True:
        message, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 5)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            os._exit(_reaper(json.loads(message), reaper.Pipes(*fds)))
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def _ending_with(control: socket.socket) -> Iterator[None]:
    """While the block runs (loading takes seconds): end at once when the Dask worker's end is closed.

    A message that waits meanwhile carries the lock of its slot: an orphan that went on would hold it.
    """
    loaded = threading.Event()

    def watch() -> None:
        hung_up = select.poll()
        hung_up.register(control, select.POLLRDHUP | select.POLLHUP)
        while not loaded.is_set():
            if hung_up.poll(WATCH_MILLISECONDS):
                os._exit(0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        loaded.set()
        watcher.join()  # no thread is left when the first job is forked


def _load(root: str) -> None:
    """Import every module of the package *root*, and what it lists as `PRELOAD`."""
    package = importlib.import_module(root)
    modules = [f"{root}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    for name in (*modules, *getattr(package, "PRELOAD", ())):
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001  # the job that needs it will say so
            traceback.print_exc()


def _reaper(start: reaper.Start, fds: reaper.Pipes) -> int:
    """In the first fork: be the parent of one job until nothing of it is left."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fd in fds:
        os.set_inheritable(fd, False)
    os.dup2(fds.log, 1)
    os.dup2(fds.log, 2)
    os.close(fds.log)
    os.write(fds.status, reaper.FORKED)
    reaper.become_parent()
    prepare = reaper.become_job(os.getpid())

    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            _job(start, prepare, fds)
        return pid

    code = reaper.reap(fork, fds.life, fds.events, start["grace_seconds"])
    with contextlib.suppress(BrokenPipeError):
        os.write(fds.status, str(code).encode())
    return 0


def _job(start: reaper.Start, prepare: reaper.Prepare, fds: reaper.Pipes) -> None:
    """In the second fork: be the job. Does not return. The slot's lock stays open: it lasts as long as we do."""
    code = 1
    try:
        prepare()
        os.close(fds.life)
        os.close(fds.status)
        ctypes.CDLL(None).prctl(PR_SET_NAME, start["name"][:15].encode())
        code = child.main(Path(start["folder"]), fds.events)
    except BaseException:  # noqa: BLE001  # nothing may unwind into the reaper's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a log is read while it is written
    main(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
