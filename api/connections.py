"""Connections of both servers: who does not send, or does not read, in time is let go.

uvicorn has a timeout between requests and none within one: 500 connections that never finish their headers ended
both servers for everybody. The rules here hold for either of its protocols (h11, httptools).
"""

import asyncio
import enum
import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from api import problems
from everloop.errors import Unavailable

log = logging.getLogger("everloop.connections")

HEALTH = frozenset({"/healthz", "/readyz"})
FILES = 16_384
"""Open files that a server asks the kernel for, where it may."""
OWN_FILES = 256
"""Open files that connections leave to databases, logs and libraries."""
LOOPBACK = ("127.", "::1")
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True)
class Limits:
    """How patient a server is."""

    header_seconds: float = 10.0
    """From the connection, or the first byte of a later request, to the end of its headers."""
    body_seconds: float = 20.0
    """A body may take this long, and a second more for each `body_bytes_per_second` that came."""
    body_bytes_per_second: int = 1024
    """Slower than the slowest link that is worth waiting for."""
    write_seconds: float = 30.0
    """How long a client may leave an answer unread once its buffers are full."""
    idle_seconds: int = 30
    """Between two requests on one connection."""
    waiting: int = 256
    """Connections without a whole request. More than this: the oldest go, if they are a second old."""
    waiting_per_peer: int = 64
    """The same for one address; not for loopback, where everybody has the same."""
    young_seconds: float = 1.0
    connections: int = 4096
    requests: int = 500
    """Requests that are being answered. More than this are told to come again; health checks never are."""


class State(enum.Enum):
    """What a connection is at."""

    WAITING = "no whole request has come"
    BODY = "the headers have come, the body is coming"
    BUSY = "a request is being answered"
    IDLE = "between two requests"
    CLOSING = "the last bytes are on their way out"


@dataclass
class Doors:
    """The connections of one server that it can do without: oldest first."""

    limits: Limits
    open: int = 0
    waiting: dict["Patience", float] = field(default_factory=dict)
    """Since when, by the loop's clock."""
    idle: dict["Patience", None] = field(default_factory=dict)
    peers: dict[str, int] = field(default_factory=dict)
    """Waiting connections by address."""
    dropped: int = 0
    _said_at: float = 0.0

    def forget(self, one: "Patience") -> None:
        self.idle.pop(one, None)
        if self.waiting.pop(one, None) is not None:
            left = self.peers[one.peer] - 1
            if left:
                self.peers[one.peer] = left
            else:
                del self.peers[one.peer]

    def wait(self, one: "Patience", now: float) -> None:
        self.waiting[one] = now
        self.peers[one.peer] = self.peers.get(one.peer, 0) + 1

    def make_room(self, newest: "Patience", now: float) -> None:
        """Let the oldest go that send nothing, as far as there are too many. What is being answered stays."""
        limits = self.limits
        if not newest.peer.startswith(LOOPBACK) and self.peers[newest.peer] > limits.waiting_per_peer:
            self._drop(next(one for one in self.waiting if one.peer == newest.peer))
        while len(self.waiting) > limits.waiting:
            oldest, since = next(iter(self.waiting.items()))
            if now - since < limits.young_seconds:  # its request may be on the way: a burst is no flood
                break
            self._drop(oldest)
        if self.open > limits.connections:
            self._drop(next(iter(self.waiting if len(self.waiting) > 1 else self.idle or self.waiting)))

    def _drop(self, one: "Patience") -> None:
        one.drop()
        self.dropped += 1
        if time.monotonic() - self._said_at > 60:  # noqa: PLR2004  # a flood must not fill the log too
            self._said_at = time.monotonic()
            log.warning("too many connections without a request: the oldest are closed (%d so far)", self.dropped)


class Joined(asyncio.Transport):
    """Sends the head of an answer of known length together with its body.

    uvicorn writes them one after the other: two system calls, and a client that wakes up for half an answer.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.set_write_buffer_limits = transport.set_write_buffer_limits  # type: ignore[method-assign]

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held + data)
        elif data.startswith(b"HTTP/1.") and b"\ncontent-length: " in data:
            self._held = data  # its body, or its end, follows
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send what is held: there is no body to wait for."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self.flush()
        self._transport.abort()


class Patience:
    """What is added to a protocol of uvicorn: its connection's state, and one timer."""

    doors: Doors
    # Of uvicorn's protocols, which both have them:
    loop: asyncio.AbstractEventLoop
    transport: Joined
    cycle: Any
    flow: Any
    client: tuple[str, int] | None

    peer = ""
    _state = State.WAITING
    _timer: asyncio.TimerHandle | None = None
    _due = 0.0
    _began = 0.0
    _bytes = 0
    _stuck_since: float | None = None
    """The client has stopped reading: its buffers are full."""
    _gone = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        _next(self).connection_made(Joined(transport))
        self.peer = self.client[0] if self.client else ""
        self.doors.open += 1
        self._enter(State.WAITING)
        self.doors.make_room(self, self.loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._gone:
            self._gone = True
            self.doors.open -= 1
            self.doors.forget(self)
            self._stop_timer()
        _next(self).connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._gone:
            return
        self._bytes += len(data)
        _next(self).data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        self.transport.flush()
        _next(self).on_response_complete()
        if self.transport.is_closing():
            self._enter(State.CLOSING)
        elif self.cycle.response_complete:
            # A body that nobody has read (who asked was refused) may still be coming: it is not waited for long.
            self._enter(State.WAITING if self.cycle.more_body else State.IDLE)
        else:
            self._look()  # a pipelined request has begun

    def pause_writing(self) -> None:
        _next(self).pause_writing()
        self._stuck_since = self.loop.time()
        self._ring_in(self.doors.limits.write_seconds)

    def resume_writing(self) -> None:
        _next(self).resume_writing()
        self._stuck_since = None

    def timeout_keep_alive_handler(self) -> None:
        _next(self).timeout_keep_alive_handler()
        self._enter(State.CLOSING)  # an answer that nobody reads would keep it open for ever

    def drop(self) -> None:
        """End the connection now."""
        self.doors.forget(self)
        self._stop_timer()
        if self._may_be_told():
            self.transport.write(TIMED_OUT)
        self.transport.abort()

    def _look(self) -> None:
        """Which state the last bytes led to."""
        cycle = self.cycle
        if self.transport.is_closing():
            self._enter(State.CLOSING)
        elif cycle is not None and not cycle.response_complete:
            self._enter(State.BODY if cycle.more_body else State.BUSY)
        elif self._state is State.IDLE:
            self._enter(State.WAITING)

    def _enter(self, state: State) -> None:
        if self._gone or (state is self._state and self._began):
            return
        limits, now = self.doors.limits, self.loop.time()
        self.doors.forget(self)
        self._state, self._began = state, now
        if state is State.WAITING:
            self.doors.wait(self, now)
            self._ring_in(limits.header_seconds)
        elif state is State.BODY:
            self._bytes = 0
            self._ring_in(limits.body_seconds)
        elif state is State.CLOSING:
            self.doors.wait(self, now)
            self._ring_in(limits.write_seconds)
        elif state is State.IDLE:
            self._bytes = 0
            self.doors.idle[self] = None

    def _ring_in(self, seconds: float) -> None:
        due = self.loop.time() + seconds
        if self._timer is not None and self._due <= due:
            return  # it rings earlier, and looks then
        self._stop_timer()
        self._due = due
        self._timer = self.loop.call_later(seconds, self._ring)

    def _ring(self) -> None:
        self._timer = None
        left = self._seconds_left()
        if left is None:
            return
        if left > 0:
            self._ring_in(left)
        else:
            self.drop()

    def _seconds_left(self) -> float | None:
        """Until this connection is let go, or None while it may stay."""
        limits, spent = self.doors.limits, self.loop.time() - self._began
        if self._state is State.WAITING:
            return limits.header_seconds - spent
        if self._state is State.CLOSING:
            return limits.write_seconds - spent
        if self._state is State.BODY:
            if self.flow.read_paused:  # we do not read: it is not the sender who is slow
                return limits.body_seconds
            return limits.body_seconds + self._bytes / limits.body_bytes_per_second - spent
        return None if self._stuck_since is None else limits.write_seconds - (self.loop.time() - self._stuck_since)

    def _may_be_told(self) -> bool:
        """A part of a request has come, and nothing was answered to it."""
        if self._state not in (State.WAITING, State.BODY) or not self._bytes or self.transport.is_closing():
            return False
        cycle = self.cycle
        return cycle is None or not cycle.response_started or (cycle.response_complete and not cycle.more_body)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _next(one: Patience) -> Any:  # noqa: ANN401  # one of two classes without a common type
    return super(Patience, one)


def protocol(limits: Limits, base: type[asyncio.Protocol] | None = None) -> type[asyncio.Protocol]:
    """A protocol class for one server: *base* (of uvicorn; the fastest that is installed when left out), patient."""
    found = base or AutoHTTPProtocol
    made = type(f"Patient{found.__name__}", (Patience, found), {"doors": Doors(limits)})
    return cast("type[asyncio.Protocol]", made)


@dataclass
class Room:
    """Outermost: no more requests at one time than can be answered, and always room for a health check."""

    app: ASGIApp
    most: int
    now: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HEALTH:
            await self.app(scope, receive, send)
            return
        if self.now >= self.most:
            busy = Unavailable(f"{self.most} requests are being answered already", hint="send it again in a moment")
            await problems.response(busy, "")(scope, receive, send)
            return
        self.now += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.now -= 1


def config(
    app: ASGIApp | Callable[..., Any],
    port: int,
    limits: Limits | None = None,
    base: type[asyncio.Protocol] | None = None,
) -> uvicorn.Config:
    """How a server of ours runs, on loopback."""
    limits = limits or Limits()
    return uvicorn.Config(
        Room(cast("ASGIApp", app), limits.requests),
        host="127.0.0.1",
        port=port,
        http=protocol(limits, base),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks is who connects: both servers listen on loopback, behind nobody
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=5,
    )


def with_files() -> Limits:
    """The limits that this process can keep: its open files are raised as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = FILES if soft == resource.RLIM_INFINITY else soft
    return Limits(connections=max(64, min(Limits.connections, files - OWN_FILES)))
