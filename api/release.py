"""Models: which version answers, which there are, and how the route has changed."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from api import drift, labels, pages, predictions, watch
from api.bodies import body_schema, json_body, read_form, validated
from api.dependencies import RPC_TIMEOUT, Here, Parts, Person, ask
from api.drift import DriftView, Project
from api.lifecycle import page_url
from api.refusals import HELP, Refusal, refusals
from everloop import names
from everloop.errors import Conflict, NotFound
from everloop.records import RollBack, Route, RouteChange, SignedRollBack, Version
from everloop.specs import LifecycleSpec
from everloop.store import MonitorRow, ReleaseRow, RouteChangeRow, RouteRow, VersionRow
from everloop.windows import begins

ORDER_LASTS = timedelta(minutes=10)
"""A signed roll back that was not carried out by then is void: nobody is surprised by it tomorrow."""

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
    back_to: int | None
    """The version that a roll back returns to, where there is one."""


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
    rules: str
    """What keeps windows over the threshold from causing retrainings, in a sentence."""
    also: list[str] = []
    """Measures beside the share of columns that cause a retraining."""
    learns: str = ""
    """What a retraining learns from, in a sentence."""
    quarantined_at: datetime | None = None
    """End of the window whose data was broken first."""
    quarantine: list[dict[str, Any]] = []
    """Columns that are broken: column, kind, why."""
    held_back: str = ""
    """Why the last window caused none, where a person can change that."""


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
    """The last 200 drift checks, oldest window first; those before by `GET /models/MODEL/checks?before=NUMBER`."""
    releases: list[ReleaseView]
    links: dict[str, str]
    refused: str = ""
    """Why the latest release does not answer, and what answers instead; empty when it does."""


class RollBackRequest(BaseModel):
    """A person wants the version before."""

    model_config = ConfigDict(extra="forbid")

    release_seq: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """The release to undo, as the model shows it; the present one when left out."""
    reason: Annotated[str, StringConstraints(min_length=1, max_length=2000, strip_whitespace=True)]
    """Everybody reads it."""


class RolledBack(BaseModel):
    """The route after a roll back."""

    model: str
    project: str
    version: int
    """The version that answers again."""
    release_seq: int
    undone_seq: int
    person: str


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
def model_page(
    model: str,
    here: Here,
    person: Person,
    project: Project = "default",
    before: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
) -> HTMLResponse:
    """A model: what answers, how far the data has drifted, what there was before."""
    with here.store.read() as session:
        found = view(session, here.settings.serve_url, project, model, before)
        known = labels.view(session, here, project, model)
        came = watch.triggers(session, found.checks, known.performance)
        log = predictions.view(session, here, project, model)
    found.refused = _refused(refusals(here.settings), project, model)
    threshold = found.monitor.share if found.monitor else None
    latest = next((check for check in reversed(found.checks) if "report" in check.links), None)
    return pages.render(
        "model.html",
        person=person,
        view=found,
        drift=watch.drift_bars(found.checks, threshold),
        volume=watch.volume_bars(found.checks),
        performance=watch.performance_points(known.performance),
        labels=known,
        came=came,
        latest=latest,
        columns=watch.distributions(here.artifacts, latest.report) if latest else [],
        latency=watch.latency(here.settings, project, model),
        page_url=page_url,
        refusal_help=HELP,
        log=log,
    )


@router.post(
    "/models/{model}/roll-back",
    openapi_extra=body_schema(RollBackRequest, {"release_seq": 4, "reason": "it refuses every loan since noon"}),
)
async def roll_back(
    model: str,
    here: Here,
    person: Person,
    body: Annotated[RollBackRequest, Depends(json_body(RollBackRequest))],
    project: Project = "default",
) -> RolledBack:
    """Send the model's traffic back to the version before its latest release. Signed, and journaled.

    Raises `Conflict` when there is no version before, or when the latest release is another than the named one.
    """
    return await undo(here, project, model, person, body)


@page.post("/models/{model}")
async def roll_back_by_form(
    model: str, request: Request, here: Here, person: Person, project: Project = "default"
) -> Response:
    """The roll-back button of the page was pressed."""
    form = await read_form(request)
    given = {name: form[name] for name in ("release_seq", "reason") if name in form}
    await undo(here, project, model, person, validated(RollBackRequest, given))
    return RedirectResponse(f"/models/{quote(model)}?project={quote(project)}", 303)


async def undo(here: Parts, project: str, model: str, person: str, body: RollBackRequest) -> RolledBack:
    """Sign *person*'s order and let the model's rollout carry it out."""
    route = await run_in_threadpool(_present, here, project, model)
    if body.release_seq not in (None, route.release_seq):
        done = await run_in_threadpool(_done, here, project, model, person, body)
        if done is not None:
            return done
        raise Conflict(
            f"release {body.release_seq} of {model} is not the latest one: it is {route.release_seq}",
            field="release_seq",
            hint=f"look again: `everloop models`, or the page of {model}",
        )
    now = datetime.now(UTC)
    order = RollBack(
        project=project,
        model=model,
        release_seq=route.release_seq,
        person=person,
        reason=body.reason,
        ordered_at=now,
        expires_at=now + ORDER_LASTS,
    )
    try:
        change = await ask(_undoing(here, here.signer.order(order)))
    except WorkflowAlreadyStartedError:
        raise Conflict(
            f"a rollout of {model} runs right now",
            hint="it ends by itself once the prediction server answers; then order it again",
        ) from None
    return RolledBack(
        **change.model_dump(include={"model", "project", "version", "release_seq"}),
        undone_seq=route.release_seq,
        person=person,
    )


async def _undoing(here: Parts, order: SignedRollBack) -> RouteChange:
    told = order.order
    handle = await here.temporal.start_workflow(
        names.ROLL_BACK,
        order,
        id=names.release_id(told.project, told.model),
        task_queue=names.CONTROL,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
        result_type=RouteChange,
        execution_timeout=ORDER_LASTS,
        static_summary=f"{told.model}: {told.person} undoes release {told.release_seq}"[:200],
        rpc_timeout=RPC_TIMEOUT,
    )
    change: RouteChange = await handle.result()
    return change


def _present(here: Parts, project: str, model: str) -> RouteRow:
    with here.store.read() as session:
        route = session.get(RouteRow, (project, model))
    if route is None:
        raise NotFound(
            f"nothing is released as {model[:63]} in project {project[:63]}",
            field="model",
            hint="`everloop models` shows what is",
        )
    return route


def _done(here: Parts, project: str, model: str, person: str, body: RollBackRequest) -> RolledBack | None:
    """What the same order of the same person did before: its answer may have been lost."""
    query = select(RouteChangeRow).where(
        RouteChangeRow.project == project,
        RouteChangeRow.model == model,
        RouteChangeRow.undoes == body.release_seq,
        RouteChangeRow.person == person,
    )
    with here.store.read() as session:
        row = session.exec(query).first()
    if row is None:
        return None
    return RolledBack(
        **row.model_dump(include={"model", "project", "version", "release_seq", "person"}), undone_seq=row.undoes
    )


def view(session: Session, serve_url: str, project: str, model: str, before: int | None = None) -> ModelView:
    """Everything about a model; of its drift checks those ahead of the number *before*. Raises `NotFound`."""
    route = session.get(RouteRow, (project, model))
    versions = _versions(session, project, model, route.version if route else None)
    if route is None and not versions:
        raise NotFound(
            f"there is no model {model[:63]} in project {project}",
            field="model",
            hint="`everloop list` shows lifecycles",
        )
    monitor, found = session.get(MonitorRow, (project, model)), drift.checks(session, project, model, before=before)
    latest = found if before is None else drift.checks(session, project, model, 1)
    return ModelView(
        project=project,
        model=model,
        route=_route(route) if route else None,
        versions=versions,
        monitor=_monitor(monitor, latest) if monitor else None,
        checks=found,
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
        back_to=Route.model_validate_json(row.previous).version if row.previous else None,
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


def _monitor(row: MonitorRow, checks: list[drift.DriftView]) -> MonitorView | None:
    spec = LifecycleSpec.model_validate_json(row.spec)
    policy = spec.monitor
    if policy is None:
        return None
    last = checks[-1] if checks else None
    broken = last is not None and last.verdict == "breaker_open" and row.rearmed_at != last.window_end
    return MonitorView(
        cursor=begins(row.cursor, policy.window) if row.cursor else None,
        window=policy.window,
        every_seconds=policy.every.total_seconds(),
        share=policy.share,
        minimum_rows=policy.minimum_rows,
        rules=drift.rules(policy),
        also=list(policy.also),
        learns=drift.learns(spec.retrain),
        quarantined_at=row.quarantined_at,
        quarantine=row.quarantine,
        held_back=last.reason if last and broken else "",
    )


def _releases(session: Session, project: str, model: str) -> list[ReleaseView]:
    query = select(ReleaseRow).where(ReleaseRow.project == project, ReleaseRow.model == model)
    return [
        ReleaseView(**row.model_dump(include=set(ReleaseView.model_fields)))
        for row in session.exec(query.order_by(col(ReleaseRow.release_seq).desc()))
    ]
