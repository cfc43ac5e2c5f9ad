"""The prediction server: answers from approved bytes only, and logs each answer before it sends it.

A process of its own. It follows the route rows; a route whose bytes, decisions or signatures do not fit is
refused, the last good version goes on answering, and `GET /status` says why.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr, StringConstraints
from sqlmodel import select
from starlette.concurrency import run_in_threadpool

from activities.compute.inference import Model, moment
from api import problems
from api.bodies import body_schema, json_body
from api.identity import KNOWN_SECONDS, Guard
from everloop import names, signing
from everloop import settings as configuration
from everloop.artifacts import Artifacts
from everloop.errors import (
    BadSignature,
    EverloopError,
    IntegrityError,
    InvalidPrediction,
    NotFound,
    Permanent,
    Unavailable,
)
from everloop.predictions import PredictionLog
from everloop.reading import ReadColumn
from everloop.records import Claim, Evidence, Route, Signature, Verdict, Version
from everloop.settings import Settings
from everloop.store import JournalRow, RouteRow, Store, VersionRow
from everloop.texts import is_missing, moment_of, trimmed

log = logging.getLogger("everloop.serve")

POLL_SECONDS = 0.25
AGAIN_SECONDS = 5.0
"""A refused route is looked at again after this long: its bytes may have been on their way."""
PREDICT_BYTES = 16 << 20
MAX_ROWS = 10_000
AHEAD = timedelta(days=1)
SKEW = timedelta(minutes=1)
"""Clocks differ: only what lies further ahead is said to be ahead of the clock."""
EARLIEST = datetime(1500, 1, 1, tzinfo=UTC)
"""What a table may say too, see `activities.compute.data`."""

UNITS_SAID = {
    "year": "a year (2013)",
    "day": "a day (20130131)",
    "seconds": "seconds since 1970",
    "milliseconds": "milliseconds since 1970",
}
"""How a number in a time column is told to people; see `activities.compute.inference.UNITS`."""

Name = tuple[str, str]
"""Project and model."""
Row = dict[str, Any]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Key = StrictStr | StrictInt | None


class PredictRequest(BaseModel):
    """Rows to answer: one `row`, or `rows`; and what the log keeps beside them."""

    model_config = ConfigDict(extra="forbid")

    row: Row | None = None
    rows: list[Row] | None = None
    request_id: Text | None = None
    """Names this request in the log: the same id again counts once. Made up when left out."""
    key: Key = None
    keys: list[Key] | None = None
    event_time: datetime | None = None
    """When it happened, for every row; a row may say `event_time` or the model's time column itself."""
    event_times: list[datetime] | None = None


class PredictAnswer(BaseModel):
    """Answers in the order of the rows."""

    model: str
    version: int
    release_seq: int
    request_id: str
    predictions: list[dict[str, Any]]
    ahead_of_clock: list[int] = []
    """Rows, by index, whose event time lies ahead of the server's clock: they close no window of the monitor."""


class ServedView(BaseModel):
    """What answers for a model now, and what was refused."""

    project: str
    model: str
    version: int | None
    release_seq: int | None
    model_digest: str
    loaded_at: datetime | None
    error: str
    """Why the latest route is not served, or empty."""
    refused_seq: int
    """The release that was refused for good, or 0."""


class StatusView(BaseModel):
    models: list[ServedView]


@dataclass(frozen=True)
class Served:
    """A version that answers."""

    route: Route
    signature: Signature
    model: Model
    loaded_at: datetime

    @property
    def named(self) -> set[str]:
        """Columns that are the model's own business though no features: its time and its key."""
        return {name for name in (self.signature.time, self.signature.key) if name}


@dataclass(frozen=True)
class Refused:
    """A release that is not served, and why."""

    release_seq: int
    why: str
    for_good: bool
    """It will not do by itself: false while only the disk or the store did not answer."""
    at: float
    """On the monotonic clock."""


@dataclass
class Fleet:
    """The models that this process serves. A swap replaces one entry: an answer is from one version whole."""

    settings: Settings
    store: Store
    artifacts: Artifacts
    served: dict[Name, Served] = field(default_factory=dict)
    refused: dict[Name, Refused] = field(default_factory=dict)
    _logs: dict[Name, PredictionLog] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: threading.Event = field(default_factory=threading.Event)
    _follower: threading.Thread | None = None

    def start(self) -> None:
        """Load what is routed now, then follow the routes."""
        self._look()
        self._follower = threading.Thread(target=self._follow, name="routes", daemon=True)
        self._follower.start()

    def close(self) -> None:
        self._closed.set()
        if self._follower is not None:
            self._follower.join(timeout=10)
        for opened in self._logs.values():
            opened.close()

    def get(self, name: Name) -> Served:
        """What answers for *name*. Raises `NotFound`, or `Unavailable` when its first route was refused."""
        found = self.served.get(name)
        if found is not None:
            return found
        if name in self.refused:
            raise Unavailable(
                f"no version of {name[1]} can be served: {self.refused[name].why}", hint="GET /status follows it"
            )
        raise NotFound(
            f"nothing is released as {name[1][:63]} in project {name[0][:63]}",
            field="model",
            hint="`everloop approve` releases a version; it answers here a moment later",
        )

    def log_of(self, name: Name) -> PredictionLog:
        with self._lock:
            if name not in self._logs:
                self._logs[name] = PredictionLog(self.settings.predictions_dir / name[0] / name[1])
            return self._logs[name]

    def status(self) -> StatusView:
        every = sorted(self.served.keys() | self.refused.keys())
        return StatusView(models=[self._status(name) for name in every])

    def _status(self, name: Name) -> ServedView:
        found, refused = self.served.get(name), self.refused.get(name)
        return ServedView(
            project=name[0],
            model=name[1],
            version=found.route.version if found else None,
            release_seq=found.route.release_seq if found else None,
            model_digest=found.route.model_digest if found else "",
            loaded_at=found.loaded_at if found else None,
            error=refused.why if refused else "",
            refused_seq=refused.release_seq if refused and refused.for_good else 0,
        )

    def _follow(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        try:
            with self.store.read() as session:
                routes = session.exec(select(RouteRow.project, RouteRow.model, RouteRow.release_seq)).all()
        except Exception:  # whatever the driver raises: what is loaded goes on answering
            log.exception("the routes could not be read")
            return
        self._forget({(project, model) for project, model, _ in routes})
        for project, model, release_seq in routes:
            if self._is_news((project, model), release_seq):
                self._take((project, model), release_seq)

    def _forget(self, routed: set[Name]) -> None:
        """Let go of models whose only release was rolled back."""
        for known in (self.served, self.refused):
            for name in known.keys() - routed:
                known.pop(name, None)

    def _is_news(self, name: Name, release_seq: int) -> bool:
        found, refused = self.served.get(name), self.refused.get(name)
        if refused is not None and refused.release_seq == release_seq:
            return time.monotonic() - refused.at > AGAIN_SECONDS
        return found is None or found.route.release_seq != release_seq

    def _take(self, name: Name, release_seq: int) -> None:
        try:
            loaded = self._load(name)
        except Exception as error:
            if not isinstance(error, EverloopError):  # no route may keep the others from being followed
                log.exception("release %d of %s/%s", release_seq, *name)
            why = f"release {release_seq} is refused: {error if isinstance(error, EverloopError) else 'unreadable'}"
            log.warning("%s/%s: %s", *name, why)
            self.refused[name] = Refused(release_seq, why, isinstance(error, Permanent), time.monotonic())
            return
        self.served[name] = loaded
        self.refused.pop(name, None)
        log.info("serving version %d of %s/%s (release %d)", loaded.route.version, *name, loaded.route.release_seq)

    def _load(self, name: Name) -> Served:
        """The routed version, proven: bytes by their digest, the digest by a signed decision."""
        with self.store.read() as session:
            row = session.get(RouteRow, name)
            version_row = session.get(VersionRow, (*name, row.version)) if row else None
        if row is None or version_row is None:
            raise IntegrityError("the route names a version that is not registered")
        route = Route.model_validate_json(row.record)
        version = Version.model_validate_json(version_row.record)
        if (row.version, row.release_seq, row.model_digest) != (route.version, route.release_seq, route.model_digest):
            raise IntegrityError("the route's columns are not what its record says")
        claim = must_be_approved(route, signing.trusted_keys(self.settings.keys_dir))
        data = self.artifacts.get(route.model_digest)
        signature = Signature.model_validate_json(self.artifacts.get(version.exported.signature))
        if claim.format > 1:
            must_mean_what_was_shown(name, route, claim, version, signature)
        else:
            must_be_of_the_model_shown(name, route, _shown_before(self.store, claim))
        return Served(route, signature, Model(data, signature), datetime.now(UTC))


def must_be_approved(route: Route, keys: Mapping[str, str]) -> Claim:
    """The person's signed yes for exactly these bytes at this lifecycle's gate. Raises `BadSignature`."""
    for decision in route.decisions:
        signing.verify(decision, dict(keys))
        claim = decision.claim
        if (claim.verdict, claim.model_digest, claim.gate) == (
            Verdict.APPROVE,
            route.model_digest,
            names.approval_id(route.lifecycle),
        ):
            return claim
    raise BadSignature("no signed approval is for these bytes", hint="decide on the approval page")


def _shown_before(store: Store, claim: Claim) -> Evidence:
    """The evidence of a gate that an earlier Everloop opened: its digest is signed, its text is in the journal.

    Raises `IntegrityError` when the journal has none with that digest.
    """
    with store.read() as session:
        opened = session.exec(
            select(JournalRow.body).where(JournalRow.workflow_id == claim.gate, JournalRow.type == "ApprovalOpened")
        ).all()
    for body in opened:
        shown = json.loads(body)["evidence"]
        if signing.digest(shown) == claim.evidence_digest:
            return Evidence.model_validate(shown)
    raise IntegrityError("the journal has no evidence that this approval is about")


def must_be_of_the_model_shown(name: Name, route: Route, shown: Evidence) -> None:
    """Raise `IntegrityError` unless the route is of the model, version and lifecycle that *shown* is about."""
    routed = (*name, route.version, route.model_digest, route.lifecycle)
    if routed != (shown.project, shown.model, shown.version, shown.model_digest, shown.lifecycle):
        raise IntegrityError("the model is another than the approved one")


def must_mean_what_was_shown(name: Name, route: Route, claim: Claim, version: Version, signature: Signature) -> None:
    """Raise `IntegrityError` unless the evidence that was signed is about this model's answers and what they mean.

    The bytes of a model say neither whose they are nor what their outputs stand for.
    """
    if signing.digest_of(route.evidence) != claim.evidence_digest:
        raise IntegrityError("the route's evidence is not what was signed")
    shown = Evidence.model_validate_json(route.evidence)
    must_be_of_the_model_shown(name, route, shown)
    exported = version.exported
    routed = {
        "task": (version.task, signature.task),
        "signature": (exported.signature.sha256, signature.classes),
        "reference": exported.reference.sha256,
    }
    approved = {
        "task": (shown.task, shown.task),
        "signature": (shown.signature_digest, shown.classes),
        "reference": shown.reference_digest,
    }
    for what, value in routed.items():
        if value != approved[what]:
            raise IntegrityError(f"the {what} is another than the approved one")


# --- answering ----------------------------------------------------------------------------------


router = APIRouter()


def fleet(request: Request) -> Fleet:
    found: Fleet = request.app.state.fleet
    return found


Serving = Annotated[Fleet, Depends(fleet)]
Body = Annotated[PredictRequest, Depends(json_body(PredictRequest, PREDICT_BYTES))]

_BODY = body_schema(
    PredictRequest,
    {"row": {"age": 41, "purpose": "car"}, "key": "a-1", "event_time": "2026-11-24T12:00:00Z"},
    {"rows": [{"age": 41, "purpose": "car"}, {"age": None, "purpose": "house"}]},
)


@router.get("/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:  # not in a thread: it answers while all threads are taken
    """The process answers."""
    return {"status": "ok"}


@router.get("/status")
def status(serving: Serving) -> StatusView:
    """What answers for each model, and what was refused."""
    return serving.status()


@router.get("/models/{model}/schema")
def schema(model: str, serving: Serving, project: Annotated[str, Query(max_length=63)] = "default") -> Signature:
    """The columns that the released version takes, and what it answers."""
    return serving.get((project, model)).signature


@router.post("/models/{model}/predict", openapi_extra=_BODY)
async def predict(
    model: str, serving: Serving, body: Body, project: Annotated[str, Query(max_length=63)] = "default"
) -> PredictAnswer:
    """Answer one row or up to 10,000. Errors name the field; an answer that cannot be logged is not given."""
    return await run_in_threadpool(answer, serving, (project, model), body)


@router.post("/projects/{project}/models/{model}/predict", openapi_extra=_BODY)
async def predict_of_project(project: str, model: str, serving: Serving, body: Body) -> PredictAnswer:
    """The same, with the project in the address."""
    return await run_in_threadpool(answer, serving, (project, model), body)


def answer(serving: Fleet, name: Name, body: PredictRequest) -> PredictAnswer:
    """Check, predict, log, answer; from one version throughout."""
    served = serving.get(name)
    rows = _rows(body)
    now = datetime.now(UTC)
    moments = _moments(body, rows, served.signature, now)
    keys = _keys(body, rows, served.signature)
    fields = {entry.name for entry in served.signature.fields}
    meant_for_the_log = {"event_time", "key"} - fields - served.named
    asked = [{name: value for name, value in row.items() if name not in meant_for_the_log} for row in rows]
    predictions = served.model.predict(served.model.check(asked, moments)).rows()
    request_id = body.request_id or uuid.uuid4().hex
    ahead = {index for index, moment in enumerate(moments) if moment > now + SKEW}
    serving.log_of(name).append(
        [
            {
                "request_id": request_id,
                "row": index,
                "key": keys[index],
                "event_time": moments[index].isoformat(),
                "logged_at": now.isoformat(),
                "version": served.route.version,
                "features": _features(row, served.signature, moments[index]),
                "prediction": prediction,
            }
            | ({"ahead_of_clock": True} if index in ahead else {})
            for index, (row, prediction) in enumerate(zip(asked, predictions, strict=True))
        ]
    )
    return PredictAnswer(
        model=name[1],
        version=served.route.version,
        release_seq=served.route.release_seq,
        request_id=request_id,
        predictions=predictions,
        ahead_of_clock=sorted(ahead),
    )


def _rows(body: PredictRequest) -> list[Row]:
    if (body.row is None) == (body.rows is None):
        raise InvalidPrediction("send either `row` or `rows`", field="rows", hint='{"row": {...}} or {"rows": [{...}]}')
    rows = [body.row] if body.row is not None else body.rows or []
    if not rows:
        raise InvalidPrediction("there are no rows", field="rows", hint="send at least one")
    if len(rows) > MAX_ROWS:
        raise InvalidPrediction(
            f"{len(rows):,} rows are too many", field="rows", hint=f"send at most {MAX_ROWS:,} in one request"
        )
    return rows


def _moments(body: PredictRequest, rows: Sequence[Row], signature: Signature, now: datetime) -> list[datetime]:
    """Each row's event time: its own time column, its `event_time`, the request's, else now."""
    _same_length("event_times", body.event_times, rows)
    columns = {field.name for field in signature.fields}
    found = []
    for index, row in enumerate(rows):
        where, value = "event_time", body.event_time or now
        if body.event_times is not None:
            where, value = f"event_times[{index}]", body.event_times[index]
        for name in filter(None, (signature.time, None if "event_time" in columns else "event_time")):
            own = name == signature.time
            if row.get(name) is not None and not (own and _no_time(row[name], signature.time_read)):
                layouts, read = (signature.time_layouts, signature.time_read) if own else ((), None)
                where, value = f"rows[{index}].{name}", _moment(row[name], layouts, f"rows[{index}].{name}", read)
                break
        found.append(_bounded(value, where, now))
    return found


def _no_time(value: object, read: ReadColumn | None) -> bool:
    """Does the table mean by *value* that the time is not known?"""
    if read is None or not isinstance(value, str | int | float):
        return False
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return is_missing(trimmed(text, read), read, quoted=isinstance(value, str))


def _moment(value: object, layouts: Sequence[str], where: str, read: ReadColumn | None = None) -> datetime:
    """*read*: how the table's own time is read; what is no time there is none here."""
    try:
        if read is not None and read.type == "datetime" and isinstance(value, str):
            return moment_of(trimmed(value, read), read.format)
        return moment(value, layouts)
    except ValueError:
        also = f", or {' or '.join(UNITS_SAID.get(one, one) for one in layouts)} as in the table" if layouts else ""
        raise InvalidPrediction(
            f"{where} is not a moment", field=where, hint=f"expected ISO 8601 text such as 2013-01-31T12:00:00Z{also}"
        ) from None


def _bounded(value: datetime, where: str, now: datetime) -> datetime:
    try:
        moment = (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        moment = None
    if moment is None or not EARLIEST <= moment <= now + AHEAD:
        raise InvalidPrediction(
            f"{where} must lie between 1500 and a day from now", field=where, hint="send when it happened, in UTC"
        )
    return moment


def _keys(body: PredictRequest, rows: Sequence[Row], signature: Signature) -> list[Key]:
    _same_length("keys", body.keys, rows)
    columns = {field.name for field in signature.fields}
    found: list[Key] = []
    for index, row in enumerate(rows):
        value = body.keys[index] if body.keys is not None else body.key
        for name in filter(None, (signature.key, None if "key" in columns else "key")):
            if row.get(name) is not None:
                value = row[name]
                break
        if value is not None and not isinstance(value, str | int | float):
            raise InvalidPrediction(f"the key of row {index} is neither text nor a number", field=f"rows[{index}].key")
        found.append(value)
    return found


def _same_length(name: str, given: Sequence[object] | None, rows: Sequence[Row]) -> None:
    if given is not None and len(given) != len(rows):
        raise InvalidPrediction(
            f"{name} has {len(given)} entries for {len(rows)} rows", field=name, hint="send one for each row"
        )


def _features(row: Row, signature: Signature, moment: datetime) -> Row:
    """What the model looked at, by column: also the time column, where the event time stood in for it."""
    found = {entry.name: row.get(entry.name) for entry in signature.fields}
    if signature.time in found and row.get(signature.time) is None:
        found[signature.time] = moment.isoformat()
    return found


# --- the application ----------------------------------------------------------------------------


def create_app(settings: Settings | None = None) -> FastAPI:
    """The prediction server as an ASGI application. It may start before there is any route."""
    settings = settings or configuration.load()
    store = Store(settings.database)

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        app.state.fleet = Fleet(settings, store, Artifacts(settings.artifacts, settings.disk_floor_bytes))
        await run_in_threadpool(app.state.fleet.start)
        yield
        await run_in_threadpool(app.state.fleet.close)
        store.close()

    app = FastAPI(title="Everloop predictions", version="1", docs_url=None, redoc_url=None, lifespan=run)
    app.include_router(router)
    app.add_middleware(
        Guard,
        settings=settings,
        store=store,
        port=settings.port(configuration.SERVE),
        cookies=False,
        audit=False,
        known_seconds=KNOWN_SECONDS,
    )
    problems.install(app)
    return app
