"""Who asks. Deny by default: without a credential nothing answers but what says that the server is there.

Laptop mode: a bearer key in a file that only its owner reads, and a one-time link that becomes a cookie.
Credentials are 256 random bits and only their SHA-256 is kept. Host, Origin, body kind and security headers
are seen to here too, before any handler runs.
"""

import asyncio
import hashlib
import logging
import os
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from sqlmodel import Session, col, delete, select
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from everloop import disk
from everloop.errors import (
    CrossSite,
    EverloopError,
    NotAuthenticated,
    NotFound,
    StorageLow,
    UnsupportedMedia,
    WrongHost,
)
from everloop.settings import Settings
from everloop.store import AuditRow, CredentialRow, Store

log = logging.getLogger("everloop.api")

CLIENT, LOGIN, SESSION = "client", "login", "session"  # kinds of credentials
CLIENT_KEY = "client.key"
LOGIN_URL = "login.url"
LOGIN_LASTS = timedelta(hours=12)
SESSION_LASTS = timedelta(hours=12)
KNOWN_SECONDS = 2.0
"""A bearer key may be believed this long without looking again, where asked for (predictions)."""

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/login"})
OPEN_FOLDER = "/static/"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

JSON_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
"""On an answer that is no page."""
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Asker:
    """A person, and how they proved it."""

    person: str
    kind: str
    digest: str


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def cookie_name(settings: Settings) -> str:
    """Cookies do not know ports: two stacks on one machine must not sign each other out."""
    return f"everloop_{settings.port_base}"


def prepare(settings: Settings, store: Store) -> None:
    """Make what a laptop needs to sign in: the owner's key file, and a fresh one-time link in `login.url`.

    Safe to repeat: the key stays, the link is new.
    """
    settings.keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = settings.keys_dir / CLIENT_KEY
    key = path.read_text().strip() if path.exists() else ""
    if len(key) < 40:  # noqa: PLR2004  # absent, or torn by a crash while it was written: 256 bits are 43 characters
        key = secrets.token_urlsafe(32)
        _write_private(path, key)
    with store.write() as session:
        session.exec(delete(CredentialRow).where(col(CredentialRow.expires_at) < datetime.now(UTC)))
        row = session.get(CredentialRow, digest(key))
        if row is None:
            session.add(_credential(key, settings.person, CLIENT))
        else:
            row.person = settings.person
    url, _ = login_link(settings, store, settings.person)
    _write_private(settings.keys_dir / LOGIN_URL, url)


def login_link(settings: Settings, store: Store, person: str) -> tuple[str, datetime]:
    """A URL that signs *person* in once, and until when it may be used."""
    token = secrets.token_urlsafe(32)
    row = _credential(token, person, LOGIN, LOGIN_LASTS)
    with store.write() as session:
        session.add(row)
    return f"{settings.api_url}/login?token={token}", datetime.now(UTC) + LOGIN_LASTS


def issue(store: Store, person: str) -> str:
    """A new bearer key for *person*."""
    key = secrets.token_urlsafe(32)
    with store.write() as session:
        session.add(_credential(key, person, CLIENT))
    return key


def exchange(store: Store, token: str) -> str:
    """Use up a one-time login *token*; the answer is the session's cookie value.

    Raises `NotAuthenticated` when it is unknown, used or old.
    """
    now = datetime.now(UTC)
    session_key = secrets.token_urlsafe(32)
    with store.write() as session:
        row = session.get(CredentialRow, digest(token))
        if row is None or row.kind != LOGIN or row.used_at is not None or _over(row, now):
            raise NotAuthenticated(
                "this login link has been used or is too old", hint="`everloop login` prints a new one"
            )
        row.used_at = now
        session.add(_credential(session_key, row.person, SESSION, SESSION_LASTS))
    return session_key


def sign_out(store: Store, asker: Asker) -> None:
    """End a browser's session; other credentials of the person stay."""
    with store.write() as session:
        session.exec(delete(CredentialRow).where(col(CredentialRow.digest) == asker.digest))


def _credential(key: str, person: str, kind: str, lasts: timedelta | None = None) -> CredentialRow:
    now = datetime.now(UTC)
    return CredentialRow(
        digest=digest(key), person=person, kind=kind, created_at=now, expires_at=now + lasts if lasts else None
    )


def _over(row: CredentialRow, now: datetime) -> bool:
    return row.expires_at is not None and row.expires_at <= now


def _write_private(path: Path, text: str) -> None:
    """Write *text* so that it is whole and only its owner's at every moment."""
    staged = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as target:
        target.write(text)
    staged.replace(path)


@dataclass
class Guard:
    """The door of a process: every request passes here first, and every answer leaves here."""

    app: ASGIApp
    settings: Settings
    store: Store
    port: int
    cookies: bool = True
    """Browsers may sign in, and are sent pages."""
    audit: bool = True
    open_paths: bool = True
    """Login, health and static files ask for no credential."""
    headers: Mapping[str, str] = field(default_factory=lambda: HEADERS)
    """On every answer."""
    known_seconds: float = 0.0
    known: dict[str, tuple[float, Asker]] = field(default_factory=dict)
    """Bearer keys by their digest: until when they are believed, and whose they are. Guards may share it."""
    _renewing: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid.uuid4().hex
        scope["everloop_request_id"] = request_id
        scope["everloop_pages"] = self.cookies and scope["path"] not in ("/healthz", "/readyz")
        exchange = _Exchange(self, scope, send, request_id)
        try:
            await self.admit(scope)
            await self.app(scope, receive, exchange.send)
        except EverloopError as error:
            await problems.answer(error, scope)(scope, receive, exchange.send)
        except Exception as error:
            log.exception("%s: %s %s", request_id, scope["method"], scope["path"])
            if exchange.started:
                raise
            await problems.answer(unforeseen(error, request_id), scope)(scope, receive, exchange.send)

    async def admit(self, scope: Scope) -> None:
        """Raise unless who asks may. Sets `everloop_person` for handlers."""
        self._check_host(scope)
        await self._admit(scope)
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:  # Postgres knows no text with it
            raise NotFound("nothing has a name with NUL in it", hint="leave %00 out of the address")

    def believes(self, key: str) -> bool:
        """Is this bearer key known at this moment, without looking? A key that is used is looked at again meanwhile."""
        found = self.known.get(digest(key))
        left = found[0] - time.monotonic() if found else 0.0
        if found is None or left <= 0:
            return False
        if left < self.known_seconds / 2 and found[1].digest not in self._renewing:
            self._renewing[found[1].digest] = asyncio.create_task(self._renew(found[1].digest))
        return True

    async def _renew(self, wanted: str) -> None:
        try:
            if await self._look(wanted, CLIENT) is None:
                self.known.pop(wanted, None)
        except Exception:  # whatever the driver raises: it is believed for its two seconds and no longer
            log.exception("a credential could not be looked up")
        finally:
            del self._renewing[wanted]

    def _check_host(self, scope: Scope) -> None:
        """A page elsewhere that makes its own name point to us (DNS rebinding) still sends its own name."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        names = ("127.0.0.1", "localhost", "[::1]")
        if len(hosts) != 1 or hosts[0].lower() not in {f"{name}:{self.port}" for name in names}:
            raise WrongHost(hint=f"use http://127.0.0.1:{self.port}")

    async def _admit(self, scope: Scope) -> None:
        """Find out who asks, and raise unless they may. Sets `everloop_person` for handlers."""
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMedia("the body must not be compressed", hint="leave out Content-Encoding")
        asker = await self._asker(headers)
        if asker is None and not (self.open_paths and _is_open(scope["path"])):
            elsewhere = "open the link that `everloop login` prints, then come back here"
            raise NotAuthenticated(
                hint=f"send `Authorization: Bearer` with the key in {CLIENT_KEY}" if self.open_paths else elsewhere
            )
        if asker is None:
            return
        if asker.kind == SESSION and scope["method"] not in SAFE_METHODS:
            self._check_origin(headers)
        scope["everloop_person"] = asker.person
        scope["everloop_asker"] = asker

    async def _asker(self, headers: Headers) -> Asker | None:
        bearer = headers.getlist("authorization")
        if bearer:
            scheme, _, key = bearer[0].partition(" ")
            if len(bearer) != 1 or scheme.lower() != "bearer" or not key.strip():
                raise NotAuthenticated("exactly one `Authorization: Bearer` header is understood")
            found = await self._look_up(key.strip(), CLIENT)
            if found is None:
                raise NotAuthenticated("this key is not known here", hint=f"the key is in the file {CLIENT_KEY}")
            return found
        key = _cookie(headers, cookie_name(self.settings)) if self.cookies else ""
        return await self._look_up(key, SESSION) if key else None

    async def _look_up(self, key: str, kind: str) -> Asker | None:
        known = self.known.get(digest(key))
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        return await self._look(digest(key), kind)

    async def _look(self, wanted: str, kind: str) -> Asker | None:
        asked_at = time.monotonic()
        found = await run_in_threadpool(_stored, self.store, wanted, kind)
        if found is not None and self.known_seconds:
            self.known[found.digest] = (asked_at + self.known_seconds, found)
        return found

    def _check_origin(self, headers: Headers) -> None:
        """A cookie is sent by the browser whoever asks: what changes something must come from our own page."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        own = origin == f"http://{headers['host'].lower()}" if origin is not None else site == "same-origin"
        if not own or site not in (None, "same-origin"):
            raise CrossSite(hint="use the page itself, or the bearer key")


@dataclass
class _Exchange:
    """One request on its way out: security headers, and the audit row before the answer is sent."""

    guard: Guard
    scope: Scope
    _send: Send
    request_id: str
    started: bool = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in self.guard.headers.items():
                headers.setdefault(name, value)
            headers["x-request-id"] = self.request_id
            if self.guard.audit and self.scope["method"] not in SAFE_METHODS:
                await run_in_threadpool(self._record, int(message["status"]))
        await self._send(message)

    def _record(self, status: int) -> None:
        route = self.scope.get("route")
        action = f"{self.scope['method']} {getattr(route, 'path', '')}".strip()
        subject = "".join(char if char.isprintable() else "?" for char in self.scope["path"])[:500]
        row = AuditRow(
            at=datetime.now(UTC),
            person=str(self.scope.get("everloop_person", "")),
            action=action,
            subject=subject,
            status=status,
            request_id=self.request_id,
        )
        try:
            with self.guard.store.write() as session:
                session.add(row)
        except Exception:  # the answer is true whether or not it could be noted: say so where operators look
            log.exception("%s: could not write the audit row of %s", self.request_id, action)


def unforeseen(error: Exception, request_id: str) -> EverloopError:
    """What a caller is told about an error that is none of ours."""
    return StorageLow(hint=disk.HINT) if disk.is_full(error) else problems.unexpected(request_id)


def _stored(store: Store, wanted: str, kind: str) -> Asker | None:
    with store.read() as session:
        row = _live(session, wanted, kind)
        return Asker(row.person, row.kind, row.digest) if row else None


def _live(session: Session, wanted: str, kind: str) -> CredentialRow | None:
    query = select(CredentialRow).where(CredentialRow.digest == wanted, CredentialRow.kind == kind)
    row = session.exec(query).first()
    return None if row is None or _over(row, datetime.now(UTC)) else row


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _cookie(headers: Headers, name: str) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def session_cookie(response: Response, settings: Settings, value: str) -> None:
    """Give the browser its session. Not `Secure`: loopback has no TLS; nothing else is listened on."""
    response.set_cookie(
        cookie_name(settings),
        value,
        max_age=int(SESSION_LASTS.total_seconds()) if value else 0,
        path="/",
        httponly=True,
        samesite="lax",
    )
