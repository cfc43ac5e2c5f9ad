"""The warm process of a Dask worker: started when a job comes, ended when none has come for a while.

It costs 130 MB while it is there, and a job without it would load for seconds what it has loaded once.
"""

import contextlib
import json
import math
import socket
import subprocess
import sys
import threading
import time

from activities.jobs import reaper

WARM = "activities.jobs.warm"  # not imported: this process stays light
IDLE_SECONDS = 30.0
"""Without a job for so long, the warm process is ended: the next job starts it again, in a second."""


class Warm:
    """The process that jobs are forked from, with the heavy place loaded."""

    def __init__(self, root: str, environment: dict[str, str]) -> None:
        """*environment*: all of it."""
        self.environment = environment
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WARM, root, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
        self.pid = self._process.pid

    def serves(self, environment: dict[str, str]) -> bool:
        return self._process.poll() is None and environment == self.environment

    def send(self, start: reaper.Start, fds: reaper.Pipes) -> None:
        socket.send_fds(self._control, [json.dumps(start).encode()], fds.given())

    def close(self) -> None:
        """It ends by itself; its jobs go on."""
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)


_warm: Warm | None = None
_warming = threading.Lock()
_used = 0.0
"""When a job was last sent to the warm process, or ended, in monotonic seconds."""


def warm_up(root: str, environment: dict[str, str]) -> Warm:
    """The warm process beside this Dask worker, started where there is none: the loading goes on meanwhile."""
    global _warm, _used  # noqa: PLW0603  # one per Dask worker process, like the worker itself
    with _warming:
        _used = math.inf  # until the job has ended
        if _warm is not None and not _warm.serves(environment):
            _warm.close()
            _warm = None
        if _warm is None:
            _warm = Warm(root, environment)
        return _warm


def pid() -> int:
    """Of the warm process; 0 when there is none."""
    return _warm.pid if _warm else 0


def cool_down_later() -> None:
    """End the warm process, 130 MB, unless another job comes within `IDLE_SECONDS`."""
    global _used  # noqa: PLW0603
    with _warming:
        _used = used = time.monotonic()

    def cool_down() -> None:
        global _warm  # noqa: PLW0603
        with _warming:
            if _warm is not None and _used == used:
                _warm.close()
                _warm = None

    timer = threading.Timer(IDLE_SECONDS, cool_down)
    timer.daemon = True
    timer.start()
