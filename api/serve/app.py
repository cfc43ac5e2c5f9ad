"""The prediction server as an ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from api import problems
from api.bodies import describe
from api.identity import JSON_HEADERS, KNOWN_SECONDS, Asker, Guard
from api.serve import routes
from api.serve.door import Door
from api.serve.fleet import Fleet
from api.serve.metrics import Measures
from api.serve.requests import PredictRequest
from api.serve.siblings import Siblings
from everloop import settings as configuration
from everloop.artifacts import Artifacts
from everloop.settings import Settings
from everloop.store import Store


def create_app(settings: Settings | None = None, siblings: Siblings | None = None) -> Door:
    """The prediction server. It may start before there is any route.

    *siblings*: the other processes that serve the same port.
    """
    settings = settings or configuration.load()
    store = Store(settings.database)

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        fleet = Fleet(settings, store, Artifacts(settings.artifacts, settings.disk_floor_bytes))
        app.state.fleet = fleet
        await run_in_threadpool(fleet.start)
        ear = await app.state.siblings.listen(lambda: routes.told(app))
        door.fleet = fleet
        yield
        if ear is not None:
            ear.close()
        await run_in_threadpool(fleet.close)
        store.close()

    app = FastAPI(title="Everloop predictions", version="1", docs_url=None, redoc_url=None, lifespan=run)
    app.state.siblings = siblings or Siblings()
    app.state.measures = Measures()
    app.include_router(routes.router)
    known: dict[str, tuple[float, Asker]] = {}

    def guarded(inner: ASGIApp) -> Guard:
        return Guard(
            inner,
            settings,
            store,
            settings.port(configuration.SERVE),
            cookies=False,
            audit=False,
            headers=JSON_HEADERS,
            known_seconds=KNOWN_SECONDS,
            known=known,
        )

    app.add_middleware(guarded)
    problems.install(app)
    describe(app, (PredictRequest,))
    door = Door(app, guarded(app), app.state.measures)
    return door
