"""Models: which version answers, which there are, and how the route has changed."""

from datetime import datetime
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session, col, select
from starlette.responses import HTMLResponse

from api import drift, pages
from api.dependencies import Here, Person
from api.drift import DriftView, Project
from api.lifecycle import page_url
from api.refusals import HELP, Refusal, refusals
from everloop.errors import NotFound
from everloop.records import Route, Version
from everloop.specs import LifecycleSpec
from everloop.store import MonitorRow, ReleaseRow, RouteRow, VersionRow

router = APIRouter(tags=["models"])
page = APIRouter(include_in_schema=False)


class RouteView(BaseModel):
    """The version that answers now, and who said it may."""

    version: int
    release_seq: int
    model_digest: str
    lifecycle: str
    released_at: datetime
    approved_by: list[str]
    self_approved: bool


class VersionView(BaseModel):
    """A registered version."""

    number: int
    lifecycle: str
    model_digest: str
    registered_at: datetime
    metrics: dict[str, float]
    rows: int
    trained_until: datetime | None
    live: bool


class MonitorView(BaseModel):
    """The watch over the model."""

    cursor: datetime | None
    """Start of the next window to check."""
    window: str
    every_seconds: float
    share: float
    minimum_rows: int


class ReleaseView(BaseModel):
    """One change of the route."""

    version: int
    release_seq: int
    lifecycle: str
    approved_by: list[str]
    released_at: datetime
    rolled_back: str


class ModelSummary(BaseModel):
    """A model in a list."""

    project: str
    model: str
    version: int | None
    """The version that answers, or null before the first release."""
    release_seq: int | None
    released_at: datetime | None
    versions: int
    url: str
    refused: str = ""
    """Why the latest release does not answer, and what answers instead; empty when it does."""


class ModelList(BaseModel):
    items: list[ModelSummary]


class ModelView(BaseModel):
    """A model with its history."""

    project: str
    model: str
    route: RouteView | None
    versions: list[VersionView]
    monitor: MonitorView | None
    checks: list[DriftView]
    """Drift checks, oldest window first."""
    releases: list[ReleaseView]
    links: dict[str, str]
    refused: str = ""
    """Why the latest release does not answer, and what answers instead; empty when it does."""


@router.get("/models")
def listed(here: Here, limit: Annotated[int, Query(ge=1, le=200)] = 200) -> ModelList:
    """The models that have a version, by name."""
    with here.store.read() as session:
        counts: dict[tuple[str, str], int] = {}
        for key in session.exec(select(VersionRow.project, VersionRow.model)):
            counts[key] = counts.get(key, 0) + 1
        items = [_model_summary(session, project, model, count) for (project, model), count in sorted(counts.items())]
    refused = refusals(here.settings) if items else {}
    for item in items:
        item.refused = _refused(refused, item.project, item.model)
    return ModelList(items=items[:limit])


def _refused(found: dict[tuple[str, str], Refusal], project: str, model: str) -> str:
    refusal = found.get((project, model))
    return refusal.sentence if refusal else ""


@router.get("/models/{model}")
def shown(model: str, here: Here, project: Project = "default") -> ModelView:
    """A model: route, versions, monitor, drift checks, releases."""
    with here.store.read() as session:
        found = view(session, here.settings.serve_url, project, model)
    found.refused = _refused(refusals(here.settings), project, model)
    return found


@page.get("/models/{model}")
def model_page(model: str, here: Here, person: Person, project: Project = "default") -> HTMLResponse:
    """A model: what answers, how far the data has drifted, what there was before."""
    with here.store.read() as session:
        found = view(session, here.settings.serve_url, project, model)
    found.refused = _refused(refusals(here.settings), project, model)
    threshold = found.monitor.share if found.monitor else None
    return pages.render(
        "model.html",
        person=person,
        view=found,
        bars=drift.spark(found.checks[-60:], threshold),
        page_url=page_url,
        refusal_help=HELP,
    )


def view(session: Session, serve_url: str, project: str, model: str) -> ModelView:
    """Everything about a model. Raises `NotFound`."""
    route = session.get(RouteRow, (project, model))
    versions = _versions(session, project, model, route.version if route else None)
    if route is None and not versions:
        raise NotFound(
            f"there is no model {model[:63]} in project {project}",
            field="model",
            hint="`everloop list` shows lifecycles",
        )
    monitor = session.get(MonitorRow, (project, model))
    return ModelView(
        project=project,
        model=model,
        route=_route(route) if route else None,
        versions=versions,
        monitor=_monitor(monitor) if monitor else None,
        checks=drift.checks(session, project, model),
        releases=_releases(session, project, model),
        links={
            "self": f"/api/v1/models/{quote(model)}?project={quote(project)}",
            "page": f"/models/{quote(model)}?project={quote(project)}",
            "predict": f"{serve_url}/projects/{quote(project)}/models/{quote(model)}/predict",
        },
    )


def _model_summary(session: Session, project: str, model: str, versions: int) -> ModelSummary:
    route = session.get(RouteRow, (project, model))
    return ModelSummary(
        project=project,
        model=model,
        version=route.version if route else None,
        release_seq=route.release_seq if route else None,
        released_at=route.released_at if route else None,
        versions=versions,
        url=f"/api/v1/models/{quote(model)}?project={quote(project)}",
    )


def _route(row: RouteRow) -> RouteView:
    claims = [decision.claim for decision in Route.model_validate_json(row.record).decisions]
    return RouteView(
        version=row.version,
        release_seq=row.release_seq,
        model_digest=row.model_digest,
        lifecycle=row.lifecycle,
        released_at=row.released_at,
        approved_by=[claim.person for claim in claims],
        self_approved=any(claim.self_approved for claim in claims),
    )


def _versions(session: Session, project: str, model: str, live: int | None) -> list[VersionView]:
    query = select(VersionRow).where(VersionRow.project == project, VersionRow.model == model)
    found = []
    for row in session.exec(query.order_by(col(VersionRow.number).desc())):
        record = Version.model_validate_json(row.record)
        found.append(
            VersionView(
                number=row.number,
                lifecycle=row.lifecycle,
                model_digest=row.model_digest,
                registered_at=row.registered_at,
                metrics=record.evaluation.metrics,
                rows=record.snapshot.rows,
                trained_until=record.refitted.trained_until,
                live=row.number == live,
            )
        )
    return found


def _monitor(row: MonitorRow) -> MonitorView | None:
    policy = LifecycleSpec.model_validate_json(row.spec).monitor
    if policy is None:
        return None
    return MonitorView(
        cursor=row.cursor,
        window=policy.window,
        every_seconds=policy.every.total_seconds(),
        share=policy.share,
        minimum_rows=policy.minimum_rows,
    )


def _releases(session: Session, project: str, model: str) -> list[ReleaseView]:
    query = select(ReleaseRow).where(ReleaseRow.project == project, ReleaseRow.model == model)
    return [
        ReleaseView(**row.model_dump(include=set(ReleaseView.model_fields)))
        for row in session.exec(query.order_by(col(ReleaseRow.release_seq).desc()))
    ]
