"""Temporal's Web UI behind the console's login: the development server's own has no idea who asks, or by which name.

Every request passes the same guard as the console's (Host, session cookie, Origin) and goes on to the UI, which
takes connections from this process alone (`workers/door.py`).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookies import CookieError, SimpleCookie

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from api import problems
from api.identity import SAFE_METHODS, Guard
from everloop.errors import Unavailable
from everloop.settings import TEMPORAL_UI, UNGUARDED_UI, Settings
from everloop.store import Store

GUARD_ADDRESS = "127.0.0.2"
"""Where we connect from: the door (`workers/door.py`) knows us by it, and no browser can use it."""
LONG_POLL_SECONDS = 120.0
POLICY = "default-src 'self' 'unsafe-inline' data: blob:; frame-ancestors 'none'; object-src 'none'; form-action 'self'"
"""Its own policy, in each page, names the one script that may run; ours keeps it from talking to anybody else."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
DROPPED = frozenset(
    ("host", "cookie", "authorization", "origin", "referer", "connection", "keep-alive", "te", "trailer", "upgrade")
)
"""Of a request: credentials of ours are none of the UI's business, and it must not answer to other origins."""
NOT_PASSED_BACK = frozenset(("connection", "keep-alive", "transfer-encoding", "upgrade", "server", "date"))


def create_app(settings: Settings) -> Starlette:
    """The guard as an ASGI application. Its store must have been migrated."""
    store = Store(settings.database)
    upstream = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{settings.port(UNGUARDED_UI)}",
        transport=httpx.AsyncHTTPTransport(local_address=GUARD_ADDRESS),
        timeout=httpx.Timeout(5.0, read=LONG_POLL_SECONDS),
        trust_env=False,
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await upstream.aclose()
        store.close()

    async def everything(request: Request) -> Response:
        return await _passed_on(request, upstream)

    app = Starlette(routes=[Route("/{path:path}", everything, methods=list(METHODS))], lifespan=lifespan)
    app.add_middleware(Guard, settings=settings, store=store, port=settings.port(TEMPORAL_UI), open_paths=False)
    return app


async def _passed_on(request: Request, upstream: httpx.AsyncClient) -> Response:
    path = request.scope["raw_path"] + (b"?" + request.scope["query_string"] if request.scope["query_string"] else b"")
    asked = upstream.build_request(
        request.method,
        upstream.base_url.copy_with(raw_path=path),
        headers=_headers(request),
        content=None if request.method in SAFE_METHODS else request.stream(),
    )
    try:
        answer = await upstream.send(asked, stream=True)
    except httpx.TransportError:
        unavailable = Unavailable("Temporal's UI does not answer", hint="it is started again by itself: look again")
        return problems.answer(unavailable, request.scope)
    response = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
    response.raw_headers = [
        (name.lower(), value)
        for name, value in answer.headers.raw
        if (said := name.lower().decode()) not in NOT_PASSED_BACK and not said.startswith("access-control-")
    ]
    response.headers["content-security-policy"] = POLICY
    return response


def _headers(request: Request) -> list[tuple[str, str]]:
    kept = [(name, value) for name, value in request.headers.items() if name not in DROPPED]
    cookies = _cookies(request.headers.getlist("cookie"))
    return [*kept, ("cookie", cookies)] if cookies else kept


def _cookies(sent: list[str]) -> str:
    """Those of the UI: another stack's session is no business of its either."""
    found: SimpleCookie = SimpleCookie()
    for each in sent:
        try:
            found.load(each)
        except CookieError:
            continue
    return "; ".join(f"{name}={one.coded_value}" for name, one in found.items() if not name.startswith("everloop_"))
