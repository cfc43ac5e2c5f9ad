"""Connections that never finish, never send or never read: others are answered meanwhile, and they are let go."""

import contextlib
import http.client
import json
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import httpx
import psutil
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api import connections, identity, serve
from api.app import create_app
from api.connections import Limits
from everloop import signing
from everloop.artifacts import Artifacts
from everloop.settings import API, SERVE
from tests import api_parts as parts
from tests import stores

LIMITS = Limits(header_seconds=1.0, body_seconds=1.5, write_seconds=1.0, waiting=100, young_seconds=0.3, requests=40)
ROW = {"age": 40, "purpose": "car"}


@pytest.fixture(scope="module", params=[H11Protocol, HttpToolsProtocol], ids=["h11", "httptools"])
def servers(request, tmp_path_factory):
    """Both servers, with little patience."""
    settings = parts.settings_in(tmp_path_factory.mktemp("connections"))
    store = stores.migrated(settings.database)
    signing.create_keys(settings.keys_dir)
    identity.prepare(settings, store)
    parts.release(store, Artifacts(settings.artifacts), signing.Signer(settings.keys_dir))
    with (
        parts.running(create_app(settings), settings.port(API), LIMITS, request.param) as api_url,
        parts.running(serve.create_app(settings), settings.port(SERVE), LIMITS, request.param) as serve_url,
        parts.client_of(settings, serve_url) as predictions,
        parts.client_of(settings, api_url) as pages,
    ):
        assert pages.get("/").status_code == 200  # the first one compiles the page
        yield SimpleNamespace(settings=settings, predictions=predictions, pages=pages)


def head(settings, port: int, path: str = "/models/credit/predict", length: int = 1000) -> bytes:
    """The head of an honest POST."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {parts.key_of(settings)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


@contextlib.contextmanager
def flood(port: int, count: int, first: Callable[[int], bytes]) -> Iterator[list[socket.socket]]:
    """*count* connections, each with its first bytes."""
    with contextlib.ExitStack() as stack:
        found = []
        for index in range(count):
            opened = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            if data := first(index):
                opened.sendall(data)
            found.append(opened)
        yield found


def closed(sockets: list[socket.socket], seconds: float) -> bool:
    """Are all of them closed by the server, within *seconds*?"""
    left = {each.fileno(): each for each in sockets}
    poll = select.poll()
    for number in left:
        poll.register(number, select.POLLIN)
    deadline = time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        for number, _ in poll.poll(100):
            try:
                over = not left[number].recv(1 << 16)
            except OSError:
                over = True
            if over:
                poll.unregister(number)
                del left[number]
    return not left


def honest(servers, seconds: float) -> list[float]:
    """Predict, look at the home page and at the health, at least twice; how long each took. Nothing may fail."""
    slow = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(slow) < 8:
        for ask in (
            lambda: servers.predictions.post("/models/credit/predict", json={"row": ROW}).status_code,
            lambda: servers.pages.get("/").status_code,
            lambda: healthy(servers.settings.port(API)),
            lambda: healthy(servers.settings.port(SERVE)),
        ):
            began = time.monotonic()
            status = ask()
            slow.append(time.monotonic() - began)
            assert status == 200
    return slow


def healthy(port: int) -> int:
    """The status of a health check over a connection of its own, as a monitor asks."""
    opened = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    opened.request("GET", "/healthz")
    try:
        return opened.getresponse().status
    finally:
        opened.close()


def test_a_flood_of_half_open_connections_harms_nobody_and_is_gone_in_time(servers):
    halves = (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1", b"POST /x HTTP/1.1\r\n")
    port = servers.settings.port
    with (
        flood(port(SERVE), 600, lambda index: halves[index % 3]) as first,
        flood(port(API), 600, lambda index: halves[index % 3]) as second,
    ):
        slow = honest(servers, 0.8)
        assert sorted(slow)[int(len(slow) * 0.95)] < 10, slow
        assert closed(first + second, 60)


def test_a_byte_now_and_then_buys_no_time(servers):
    settings, port = servers.settings, servers.settings.port(SERVE)
    long = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"a" * 1000
    with (
        flood(port, 30, lambda _: b"") as heads,
        flood(port, 30, lambda _: head(settings, port)) as bodies,
        # Refused before its body is read: what comes of it is drained, and not for long.
        flood(port, 30, lambda _: head(settings, port).replace(b"Bearer ", b"Bearer x")) as refused,
    ):
        every = heads + bodies + refused
        began = time.monotonic()
        ended: list[float] = []

        def drip() -> None:
            for index in range(len(long)):  # most of a minute, if nobody hangs up
                for each in every:
                    with contextlib.suppress(OSError):
                        each.send(long[index : index + 1])
                time.sleep(0.05)
                if ended:
                    return

        sender = threading.Thread(target=drip)
        sender.start()
        honest(servers, 0.5)
        over = closed(every, 30)
        ended.append(time.monotonic() - began)
        sender.join()
    assert over
    assert ended[0] > 0.8


def test_a_slow_link_is_waited_for_as_long_as_it_moves_and_who_never_reads_is_let_go(servers):
    settings, port = servers.settings, servers.settings.port(SERVE)
    body = json.dumps({"rows": [ROW] * 400}).encode()
    with never_reading(settings) as deaf, socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(head(settings, port, length=len(body)))
        began = time.monotonic()
        for at in range(0, len(body), 600):  # six times the least that is waited for
            link.sendall(body[at : at + 600])
            time.sleep(0.1)
        assert time.monotonic() - began > LIMITS.body_seconds + 0.4
        assert link.recv(12) == b"HTTP/1.1 200"

        deadline = time.monotonic() + 60  # the kernel takes some megabytes of answers first
        while held(settings.port(API), deaf):
            assert time.monotonic() < deadline, "who never reads is still held"
            time.sleep(0.1)


@contextlib.contextmanager
def never_reading(settings) -> Iterator[socket.socket]:
    """A client that asks the API for more than the kernel keeps for it, and reads nothing."""
    port = settings.port(API)
    ask = (
        f"GET /api/v1/openapi.json HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {parts.key_of(settings)}\r\n\r\n"
    ).encode()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(ask * 250)
        yield deaf


def held(port: int, client: socket.socket) -> bool:
    """Does the server (in this process) hold its end of *client* open?"""
    ends = [each for each in psutil.Process().net_connections("tcp") if each.raddr]
    return any((each.laddr.port, each.raddr.port) == (port, client.getsockname()[1]) for each in ends)


def test_health_is_told_while_every_place_is_taken(servers):
    settings, port = servers.settings, servers.settings.port(SERVE)

    def ask() -> httpx.Response:
        return servers.predictions.post("/models/credit/predict", json={"row": ROW})

    with flood(port, LIMITS.requests, lambda _: head(settings, port)) as taken:
        deadline = time.monotonic() + LIMITS.body_seconds
        while (answer := ask()).status_code == 200 and time.monotonic() < deadline:  # not all have their places yet
            time.sleep(0.02)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"]
        assert servers.predictions.get("/healthz").status_code == 200
        assert closed(taken, 60)
    assert ask().status_code == 200


def test_a_server_takes_as_many_files_as_it_may():
    """Shells give 1,024 open files or fewer, which a flood of connections would use up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        limits = connections.with_files()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised > 512 or hard == 512
    assert limits.connections <= raised - connections.OWN_FILES


def test_the_head_of_an_answer_is_sent_also_where_no_body_follows(servers):
    """It is held back for its body: a HEAD of a file says how long one would be."""
    whole = servers.pages.get("/static/everloop.css")

    head = servers.pages.head("/static/everloop.css")
    unchanged = servers.pages.get("/static/everloop.css", headers={"If-None-Match": whole.headers["etag"]})

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert (unchanged.status_code, unchanged.content) == (304, b"")
