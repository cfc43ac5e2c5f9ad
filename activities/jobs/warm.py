"""Where jobs come from: `python -m activities.jobs.warm ROOT CONTROL_FD`, one beside each Dask worker that has work.

It loads the heavy place once (seconds of processor time) and forks for each job (milliseconds): first the
job's reaper, which forks the job. No job ever runs in this process, so each starts from the same clean state.
It takes jobs while it still loads, and is ended when there was none for a while (`warming.IDLE_SECONDS`).
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
import traceback
from pathlib import Path

from activities.jobs import child, mark, reaper
from everloop import streams
from everloop.loading import uncollected

PR_SET_NAME = 15
MESSAGE_BYTES = 1 << 16


def main(root: str, control: socket.socket) -> None:
    """Load *root* and fork whenever told to, until *control* is closed at the other end."""
    os.nice(reaper.NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for reapers: their status pipe tells
    for name in _modules(root):
        _load(name)
        while _waits(control):  # a job need not wait for what other stages load: it loads the rest of its own
            if not _next(control):
                return
    gc.freeze()  # what is loaded now stays shared between all jobs
    while _next(control):
        pass


def _modules(root: str) -> list[str]:
    """Every module of the package *root*, what it lists as `PRELOAD` before the others."""
    package = importlib.import_module(root)
    modules = [f"{root}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    return list(dict.fromkeys([*getattr(package, "PRELOAD", ()), *modules]))


def _load(name: str) -> None:
    try:
        with uncollected():  # a job, which is forked between two of these, has it
            importlib.import_module(name)
    except Exception:  # noqa: BLE001  # the job that needs it will say so
        traceback.print_exc()


def _waits(control: socket.socket) -> bool:
    """Is there a job, or has the other end closed?"""
    return bool(select.select([control], [], [], 0)[0])


def _next(control: socket.socket) -> bool:
    """Fork the next job; False when there will be none."""
    message, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, len(reaper.Pipes._fields))
    if not message:
        return False
    start: reaper.Start = json.loads(message)
    missing = [name for name in start.get("modules", ()) if name not in sys.modules]
    for name in missing:
        _load(name)
    if missing:
        gc.freeze()
    if os.fork() == 0:
        control.close()
        os._exit(_reaper(start, reaper.Pipes(*fds)))
    for fd in fds:
        os.close(fd)
    return True


def _reaper(start: reaper.Start, fds: reaper.Pipes) -> int:
    """In the first fork: be the parent of one job until nothing of it is left."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fd in fds.given():
        os.set_inheritable(fd, False)
    mark.wear(start.get("lease", mark.BLANK))
    os.dup2(fds.log, 1)
    os.dup2(fds.log, 2)
    os.close(fds.log)
    os.write(fds.status, reaper.FORKED % os.getpid())
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
        streams.last()
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
