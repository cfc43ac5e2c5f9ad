"""The short way of a predict request: straight from the server to its answer.

Every other request, and whatever of a predict request is not as usual, goes the long way through FastAPI, or through
the same functions that it calls: `tests/unit/test_serve_corpus.py` holds both to the same bytes.
"""

import itertools
import logging
import os
import re
import time
from http import HTTPStatus
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.bodies import parse_plain, read_body, require_json, validated
from api.identity import Guard, unforeseen
from api.serve.answering import answer
from api.serve.fleet import Fleet
from api.serve.metrics import Measures
from api.serve.proof import Name
from api.serve.requests import PredictRequest
from everloop.errors import EverloopError

log = logging.getLogger("everloop.serve")

PREDICT_BYTES = 16 << 20
INLINE_BYTES = 16 << 10
"""A larger body is read, and answered, in a thread: others are answered meanwhile."""
INLINE_SECONDS = 0.002
"""So is what takes the model longer. Below it a thread costs more than it gives."""
LONGEST_PROJECT = 63

_PREDICT = re.compile(r"/(?:projects/([^/]+)/)?models/([^/]+)/predict")


class Door:
    """Answers predict requests; gives every other one to *app*."""

    def __init__(self, app: ASGIApp, guard: Guard, measures: Measures) -> None:
        """*guard*: says who may ask here; the one within *app* may be another."""
        self.app = app
        self.guard = guard
        self.measures = measures
        self.fleet: Fleet | None = None
        """Set once it serves."""
        self._ids, self._asked = os.urandom(8).hex(), itertools.count()
        hosts = ("127.0.0.1", "localhost", "[::1]")
        self._hosts = frozenset(f"{host}:{guard.port}".encode() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = _asked_for(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if name is None or self.fleet is None:
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status, headers, body = await self._answered(self.fleet, name, scope, receive)
        known = name if name in self.fleet.served else ("", "")
        self.measures.answered(known, status, time.perf_counter() - began)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answered(
        self, fleet: Fleet, name: Name, scope: Scope, receive: Receive
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, headers and body of the answer. Raises nothing."""
        request_id = f"{self._ids}{next(self._asked):016x}"
        said = [(b"x-request-id", request_id.encode())]
        try:
            plain = self._is_plain(scope)
            if not plain:
                await self.guard.admit(scope)
            first = await receive()
            if first["type"] == "http.request" and not first.get("more_body") and len(first["body"]) <= PREDICT_BYTES:
                data = first["body"]
            else:
                data = await _whole(first, scope, receive)
            if not plain:
                require_json(Request(scope))
            if len(data) > INLINE_BYTES:
                body = await run_in_threadpool(_answer_to, fleet, name, data, request_id)
            else:
                asked = _read(data)
                rows = len(asked.rows) if asked.rows else 1
                if rows * fleet.get(name).row_seconds <= INLINE_SECONDS:
                    body = answer(fleet, name, asked, request_id)
                else:
                    body = await run_in_threadpool(answer, fleet, name, asked, request_id)
        except EverloopError as error:
            if problems.status(error) == HTTPStatus.INTERNAL_SERVER_ERROR:
                log.exception("%s", request_id)
            told = problems.response(error, request_id)
        except Exception as error:
            log.exception("%s: POST %s", request_id, scope["path"])
            told = problems.response(unforeseen(error, request_id), request_id)
        else:
            return 200, [(b"content-type", b"application/json"), *said], body
        headers = [(each, value) for each, value in told.raw_headers if each != b"content-length"]
        return told.status_code, headers + said, bytes(told.body)

    def _is_plain(self, scope: Scope) -> bool:
        """Is all about a request as it usually is, the person known, and what it sends JSON? Else it is looked at."""
        host = key = media = b""
        for name, value in scope["headers"]:
            if name == b"host":
                if host:
                    return False
                host = value
            elif name == b"authorization":
                if key or not value.startswith(b"Bearer "):
                    return False
                key = value
            elif name == b"content-type":
                if media:
                    return False
                media = value
            elif name == b"content-encoding":
                return False
        if host not in self._hosts or media != b"application/json" or not key:
            return False
        return self.guard.believes(key[7:].decode("latin-1").strip())


def _asked_for(scope: Scope) -> Name | None:
    """Project and model of a predict request. None: it is none, or its address needs a closer look."""
    found = _PREDICT.fullmatch(scope["path"])
    if found is None:
        return None
    project = found[1]
    if scope["query_string"]:
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if project or len(pairs) != 1 or pairs[0][0] != "project" or len(pairs[0][1]) > LONGEST_PROJECT:
            return None
        project = pairs[0][1]
    return (project or "default", found[2])


async def _whole(first: Message, scope: Scope, receive: Receive) -> bytes:
    """A body that comes in pieces, of which *first* is there. Raises `TooLarge`."""
    waiting = [first]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return await read_body(Request(scope, again), PREDICT_BYTES)


def _read(data: bytes) -> PredictRequest:
    return validated(PredictRequest, parse_plain(data))


def _answer_to(fleet: Fleet, name: Name, data: bytes, request_id: str) -> bytes:
    return answer(fleet, name, _read(data), request_id)
