"""The API: its parts, its addresses, its pages."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy import text
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.staticfiles import StaticFiles
from temporalio.client import Client

from api import (
    advice,
    approval,
    budget,
    cost,
    data,
    drift,
    fork,
    identity,
    kept,
    labels,
    lifecycle,
    pages,
    pool,
    predictions,
    problems,
    release,
    score,
    search,
    spending,
)
from api.bodies import body_schema, describe, json_body, read_form
from api.dependencies import Here, Parts, Person, ask
from api.identity import Asker, Guard
from everloop import isolation, signing
from everloop import settings as configuration
from everloop.artifacts import Artifacts
from everloop.errors import Forbidden, NotAuthenticated, Unavailable
from everloop.payloads import converter
from everloop.settings import Settings
from everloop.signing import Signer
from everloop.specs import LifecycleSpec
from everloop.store import Store

VERSION = "/api/v1"


class Problem(BaseModel):
    """What every error looks like (application/problem+json)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str
    hint: str
    request_id: str


class LoginLink(BaseModel):
    """A URL that signs a browser in once."""

    url: str
    expires_at: datetime


class CredentialRequest(BaseModel):
    """For whom a new key is."""

    model_config = ConfigDict(extra="forbid")

    person: Annotated[str, StringConstraints(pattern=r"^[\w@.+'\u2019-][\w @.+'\u2019-]{0,98}[\w@.+'\u2019-]$")]


class Credential(BaseModel):
    """A new bearer key. It is shown this once: only its digest is kept."""

    person: str
    key: str


BODIES: tuple[type[BaseModel], ...] = (
    LifecycleSpec,
    lifecycle.Attend,
    fork.ForkAsked,
    approval.DecisionRequest,
    release.RollBackRequest,
    labels.LabelsRequest,
    drift.Lift,
    score.ScoreFile,
    budget.BudgetAsked,
    budget.PricesAsked,
    *pool.BODIES,
    CredentialRequest,
)

session = APIRouter(tags=["identity"])
page = APIRouter(include_in_schema=False)


@session.post("/login-links", status_code=201)
def login_link(here: Here, person: Person) -> LoginLink:
    """A one-time link that signs a browser in as the person who asks."""
    url, expires_at = identity.login_link(here.settings, here.store, person)
    return LoginLink(url=url, expires_at=expires_at)


@session.post(
    "/credentials", status_code=201, openapi_extra=body_schema(CredentialRequest, {"person": "demo approver"})
)
def credential(
    here: Here, asker: Person, body: Annotated[CredentialRequest, Depends(json_body(CredentialRequest))]
) -> Credential:
    """A new key that stands for *person*. On a laptop whoever holds a key may do that, the owner's name excepted."""
    owner = here.settings.person
    if body.person == owner != asker and here.settings.user_code != "all":
        raise Forbidden(f"only {owner} may make a key for {owner}, whose code runs here", field="person")
    return Credential(person=body.person, key=identity.issue(here.store, body.person))


@page.get("/login")
def login(here: Here, token: str = "") -> Response:
    """Use up a one-time token: a session cookie, and on to the first page."""
    try:
        value = identity.exchange(here.store, token)
    except NotAuthenticated as error:
        return pages.problem(error, 401, "")
    response = RedirectResponse("/", 303)
    identity.session_cookie(response, here.settings, value)
    return response


@page.post("/logout")
async def logout(request: Request, here: Here) -> HTMLResponse:
    """End the browser's session."""
    await read_form(request)
    asker: Asker = request.scope["everloop_asker"]
    if asker.kind == identity.SESSION:
        identity.sign_out(here.store, asker)
    response = pages.problem(NotAuthenticated("you are signed out", hint="`everloop login` prints a new link"), 200, "")
    identity.session_cookie(response, here.settings, "")
    return response


@page.get("/healthz")
async def healthz() -> dict[str, str]:  # not in a thread: it answers while all threads are taken
    """The process answers."""
    return {"status": "ok"}


@page.get("/readyz")
async def readyz(here: Here) -> JSONResponse:
    """Temporal and the store answer, or 503 with which does not."""
    found = {"temporal": await _temporal_answers(here), "store": _store_answers(here)}
    ready = all(found.values())
    return JSONResponse({name: "ok" if ok else "does not answer" for name, ok in found.items()}, 200 if ready else 503)


async def _temporal_answers(here: Parts) -> bool:
    try:
        return await ask(here.temporal.service_client.check_health())
    except Unavailable:
        return False


def _store_answers(here: Parts) -> bool:
    try:
        with here.store.read() as opened:
            opened.connection().execute(text("SELECT digest FROM credential LIMIT 1"))
    except Exception:  # noqa: BLE001  # whatever the database's driver raises: not ready
        return False
    return True


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API as an ASGI application. Its store must have been migrated; Temporal may come later."""
    settings = settings or configuration.load()
    pages.say_on_every_page(isolation.BANNER if settings.devices.startswith("sim:") else "")
    store = Store(settings.database)
    app = FastAPI(
        title="Everloop",
        version="1",
        description="Durable, closed-loop machine learning. Every error is application/problem+json.",
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{VERSION}/openapi.json",
        lifespan=_lifespan(settings, store),
        responses={"default": {"model": Problem, "description": "What went wrong, and what to do"}},
    )
    for router in (
        fork.router,
        search.router,
        lifecycle.router,
        approval.router,
        drift.router,
        labels.router,
        predictions.router,
        score.router,
        release.router,
        pool.router,
        cost.router,
        budget.router,
        advice.router,
        session,
    ):
        app.include_router(router, prefix=VERSION)
    for router in (
        lifecycle.page,
        approval.page,
        data.page,
        search.page,
        kept.page,
        drift.page,
        score.page,
        release.page,
        pool.page,
        spending.page,
        page,
    ):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=pages.STATIC), name="static")
    app.add_middleware(Guard, settings=settings, store=store, port=settings.port(configuration.API))
    problems.install(app)
    describe(app, BODIES)
    return app


def _lifespan(settings: Settings, store: Store) -> Any:  # noqa: ANN401
    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        signing.create_keys(settings.keys_dir)
        identity.prepare(settings, store)
        app.state.parts = Parts(
            settings=settings,
            store=store,
            artifacts=Artifacts(settings.artifacts, settings.disk_floor_bytes),
            temporal=await Client.connect(
                settings.temporal, namespace=settings.temporal_namespace, data_converter=converter, lazy=True
            ),
            signer=Signer(settings.keys_dir),
        )
        yield
        store.close()

    return run
