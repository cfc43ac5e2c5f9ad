"""The processes of the prediction server: one, or `EVERLOOP_SERVE_WORKERS` that take connections from one socket.

With several, a parent holds the sockets, starts again whoever ends, and answers nothing itself. A connection that waits
to be accepted waits in the kernel, so another process takes it when one is killed.
"""

import gc
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from types import FrameType

import uvicorn

from api import connections
from api.serve.app import create_app
from api.serve.siblings import Siblings, ear
from everloop.children import die_with
from everloop.settings import SERVE, Settings

log = logging.getLogger("everloop.serve")

GRACE_SECONDS = 8
"""How long the processes may take to end in order: longer than a server's own patience (see `connections.config`)."""
STEADY_SECONDS = 10.0
"""A process that lives this long has started well: its next end counts as the first again."""
GIVE_UP_AFTER = 5
"""Ends in a row, each soon after its start, after which all end."""
FIRST_PAUSE_SECONDS = 0.1
BACKLOG = 2048
SWITCH_SECONDS = 0.001
"""How long a thread that loads a version may keep the interpreter from the one that answers. (Python: 0.005.)"""


def run(settings: Settings, limits: connections.Limits) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not look through it while somebody waits
    if settings.serve_workers == 1:
        uvicorn.Server(connections.config(create_app(settings), settings.port(SERVE), limits)).run()
        return 0
    return Parent(settings, limits).run()


@dataclass
class Parent:
    """Several processes, by their places."""

    settings: Settings
    limits: connections.Limits
    _children: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By process id: place, and when it was started."""
    _quick_ends: dict[int, int] = field(default_factory=dict)
    """By place."""
    _ending: bool = False

    def __post_init__(self) -> None:
        self._public = _public(self.settings.port(SERVE))
        self._ears = tuple(ear() for _ in range(self.settings.serve_workers))

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.signal(signal.SIGALRM, self._kill)
        for place in range(len(self._ears)):
            self._start(place)
        code = 0
        while self._children:
            ended, status = os.wait()
            place, started = self._children.pop(ended, (-1, 0.0))
            if place < 0 or self._ending:
                continue
            code = self._again(place, started, os.waitstatus_to_exitcode(status)) or code
        return code

    def _start(self, place: int) -> None:
        parent = os.getpid()
        made = os.fork()
        if made:
            self._children[made] = (place, time.monotonic())
            if self._ending:  # the signal came while it was made
                os.kill(made, signal.SIGTERM)
            return
        code = 1
        try:
            self._serve(place, parent)
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _serve(self, place: int, parent: int) -> None:
        die_with(parent, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        app = create_app(self.settings, Siblings(place, self._ears))
        uvicorn.Server(connections.config(app, self.settings.port(SERVE), self.limits)).run([self._public])

    def _again(self, place: int, started: float, code: int) -> int:
        """Start a process again that has ended. 1, and all end, where it does not come up."""
        quick = self._quick_ends.get(place, 0) + 1 if time.monotonic() - started < STEADY_SECONDS else 1
        self._quick_ends[place] = quick
        said = f"process {place} of the prediction server ended ({code})"
        if quick >= GIVE_UP_AFTER:
            log.error("%s, the %dth time soon after its start: all end", said, quick)
            self._end(signal.SIGTERM, None)
            return 1
        log.warning("%s: starting it again", said)
        time.sleep(FIRST_PAUSE_SECONDS * 2 ** (quick - 1))
        if not self._ending:
            self._start(place)
        return 0

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self._ending = True
        self._tell(signal.SIGTERM)
        signal.alarm(GRACE_SECONDS)

    def _kill(self, _signal: int, _frame: FrameType | None) -> None:
        self._tell(signal.SIGKILL)

    def _tell(self, number: int) -> None:
        for child in list(self._children):
            os.kill(child, number)


def _public(port: int) -> socket.socket:
    """The socket that all accept from."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    made.listen(BACKLOG)
    made.set_inheritable(True)
    return made
