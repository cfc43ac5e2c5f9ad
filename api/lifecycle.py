"""Lifecycles: submit one, look at them, tell a parked one what to do."""

import re
import uuid
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse
from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError

from api import alarm, journal, pages
from api.bodies import body_schema, json_body, read_form
from api.dependencies import RPC_TIMEOUT, Here, Parts, Person, ask, soon
from api.refusals import HELP, refusals
from everloop import disk, names, signing, starts
from everloop.contracts import AttendRequest, LifecycleRequest
from everloop.errors import IdempotencyMismatch, Invalid, NotFound, NotWaiting, StorageLow
from everloop.payloads import converter
from everloop.records import Wait
from everloop.specs import JOB_STAGES, SKIPPABLE, STAGES, LifecycleSpec
from everloop.store import (
    ApprovalRow,
    DriftRow,
    LeaseRequestRow,
    LifecycleRow,
    RouteRow,
    StageRow,
    VersionRow,
)

router = APIRouter(tags=["lifecycles"])
page = APIRouter(include_in_schema=False)

KEY = re.compile(r"[A-Za-z0-9._-]{1,128}")
OPEN = ("running", "waiting_approval", "needs_attention")
"""Statuses of a lifecycle that has not ended."""
ROOM = "room on the disk"
"""What `workflows.disk` says that it waits for."""
MOST_ID = 1000
"""Characters that Temporal takes as an id."""
SUMMARY_BYTES = 200
REFRESH_SECONDS = 3
RECENT = 12

Status = Literal[
    "running",
    "waiting_approval",
    "needs_attention",
    "released",
    "rejected",
    "expired",
    "not_better",
    "aborted",
    "cancelled",
    "terminated",
    "failed",
]
Action = Literal["retry", "skip", "abort", "cancel"]

EXAMPLE = {
    "model": "credit",
    "task": "binary",
    "target": "status",
    "source": {"path": "/data/credit.csv"},
    "time": "applied_at",
    "features": {"exclude": ["account_id"]},
}


class Submitted(BaseModel):
    """The lifecycle that was started, or that this key started before."""

    id: str
    url: str
    temporal_url: str


class StageView(BaseModel):
    """A stage of the latest run, as often as it was started."""

    stage: str
    status: str
    started_at: datetime
    ended_at: datetime | None
    seconds: float | None
    summary: str
    metrics: dict[str, float]
    blobs: dict[str, str]
    ran: dict[str, Any]
    error: dict[str, Any]


class LifecycleSummary(BaseModel):
    """A lifecycle in a list."""

    id: str
    project: str
    model: str
    task: str
    trigger: str
    status: str
    reason: str
    stage: str
    version: int | None
    submitted_by: str
    submitted_at: datetime
    updated_at: datetime
    wait: str
    """One sentence: for what, since when, what unblocks it. Empty when nothing is waited for."""
    metrics: dict[str, float]
    alarm: str = ""
    """Why it cannot go on although it is open, and what helps. Empty when nothing is wrong."""


class LifecycleList(BaseModel):
    items: list[LifecycleSummary]


class LifecycleView(LifecycleSummary):
    """All there is to say about a lifecycle."""

    objective: str
    body_digest: str
    spec: dict[str, Any]
    stages: list[StageView]
    comparison: dict[str, Any]
    error: dict[str, Any]
    """Of the parked stage: stage, error, message, field, hint, log, and `log_tail`, its last lines."""
    approval: dict[str, Any] | None
    refused: str = ""
    """Why the prediction server does not answer with its release, if it is the model's latest."""
    help: str
    """The command that helps now, or empty."""
    links: dict[str, str]


class Attend(BaseModel):
    """What else to say with a retry, a skip, an abort or a cancel."""

    model_config = ConfigDict(extra="forbid")

    stage: Annotated[str, StringConstraints(max_length=100)] = ""
    """When given, must be the stage that is parked."""
    reason: Annotated[str, StringConstraints(max_length=2000)] = ""


class Attended(BaseModel):
    id: str
    action: Action
    url: str


# --- HTTP ---------------------------------------------------------------------------------------


@router.post(
    "/lifecycles",
    status_code=202,
    openapi_extra=body_schema(LifecycleSpec, EXAMPLE),
    responses={200: {"model": Submitted, "description": "This key has started this lifecycle before"}},
)
async def submit(
    here: Here,
    person: Person,
    response: Response,
    spec: Annotated[LifecycleSpec, Depends(json_body(LifecycleSpec))],
    idempotency_key: Annotated[
        str, Header(description="Becomes the lifecycle's id; the same key and body again answer the same")
    ] = "",
) -> Submitted:
    """Start a lifecycle; when this answers, Temporal has it.

    The same key with another body is refused. While Temporal is down nothing is acknowledged (503).
    """
    key = _key(idempotency_key)
    known = await run_in_threadpool(_known_spec, here, key)
    if known is None:
        await run_in_threadpool(_must_have_room, here)
        request = LifecycleRequest(spec=spec, body_digest=signing.digest(spec), submitted_by=person)
        known = await _start(here, key, starts.signed(here.signer, key, request))
    else:
        response.status_code = 200
    if known != spec:
        raise IdempotencyMismatch(
            f"the key {key} has started a lifecycle with another spec",
            field="Idempotency-Key",
            hint="use a new key for a new lifecycle",
        )
    return Submitted(id=key, url=_api_url(key), temporal_url=temporal_url(here, key))


@router.get("/lifecycles")
def listed(
    here: Here,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    status: Status | None = None,
    model: Annotated[str | None, Query(max_length=63)] = None,
) -> LifecycleList:
    """Lifecycles, newest first."""
    with here.store.read() as session:
        query = select(LifecycleRow).order_by(col(LifecycleRow.submitted_at).desc(), col(LifecycleRow.id)).limit(limit)
        if status:
            query = query.where(LifecycleRow.status == status)
        if model:
            query = query.where(LifecycleRow.model == model)
        low = _low(here)
        return LifecycleList(items=[_summary(here, session, row, low) for row in session.exec(query)])


router.include_router(journal.router)  # its addresses end in words; the next one takes whatever is left


@router.get("/lifecycles/{id:path}")
async def shown(id: str, here: Here) -> LifecycleView:  # noqa: A002
    """A lifecycle as it is now."""
    found = await run_in_threadpool(stored, here, id)
    return found or await _not_yet_written(here, id)


@router.post(
    "/lifecycles/{id:path}/{action}",
    status_code=202,
    openapi_extra=body_schema(Attend, {"reason": "the file is repaired"}, required=False),
)
async def attend(
    id: str,  # noqa: A002
    action: Action,
    here: Here,
    person: Person,
    body: Annotated[Attend, Depends(json_body(Attend, optional=True))],
) -> Attended:
    """Tell a parked lifecycle to retry, skip or abort its failed stage; or cancel a running one."""
    await tell(here, id, action, person, body)
    return Attended(id=id, action=action, url=_api_url(id))


# --- pages --------------------------------------------------------------------------------------


@page.get("/")
def home(here: Here, person: Person, still: bool = False) -> HTMLResponse:
    """What needs me, what runs, what is live."""
    with here.store.read() as session:
        rows = _latest(session, OPEN, 200)
        running = [row for row in rows if row.status == "running"]
        low = _low(here)
        return pages.render(
            "home.html",
            person=person,
            refresh=REFRESH_SECONDS if running and not still else 0,
            gates=session.exec(
                select(ApprovalRow)
                .join(LifecycleRow, col(LifecycleRow.id) == ApprovalRow.lifecycle)
                .where(ApprovalRow.status == "open", LifecycleRow.stage == "approve")  # not what a Reset left behind
                .order_by(col(ApprovalRow.opened_at))
            ).all(),
            refused=list(refusals(here.settings).values()),
            refusal_help=HELP,
            alarms=alarm.all_of(session, here.settings),
            parked=[row for row in rows if row.status == "needs_attention"],
            running=[(_summary(here, session, row, low), progress(session, row)) for row in running],
            live=[_live(session, route) for route in session.exec(select(RouteRow).order_by(col(RouteRow.model)))],
            recent=_recent(here, session),
            serve_url=here.settings.serve_url,
            temporal_url=here.settings.temporal_ui_url,
        )


@page.get("/lifecycles/{id:path}")
async def lifecycle_page(id: str, here: Here, person: Person, still: bool = False) -> HTMLResponse:  # noqa: A002
    """A lifecycle: its stages, what it waits for, what happened, what can be done."""
    view = await run_in_threadpool(stored, here, id) or await _not_yet_written(here, id)
    return await run_in_threadpool(_page, here, person, view, still)


@page.post("/lifecycles/{id:path}/{action}")
async def attend_by_form(id: str, action: Action, request: Request, here: Here, person: Person) -> Response:  # noqa: A002
    """A button of the page was pressed."""
    form = await read_form(request)
    before = await run_in_threadpool(_updated, here, id)
    await tell(
        here, id, action, person, Attend(stage=form.get("stage", "")[:100], reason=form.get("reason", "")[:2000])
    )
    await soon(lambda: _updated(here, id) != before)
    return RedirectResponse(page_url(id), 303)


def _updated(here: Parts, id: str) -> datetime | None:  # noqa: A002
    with here.store.read() as session:
        row = session.get(LifecycleRow, id)
        return row.updated_at if row else None


def _page(here: Parts, person: str, view: LifecycleView, still: bool) -> HTMLResponse:
    with here.store.read() as session:
        row = session.get(LifecycleRow, view.id)
        events = journal.events_of(session, row) if row else []
    return pages.render(
        "lifecycle.html",
        person=person,
        refresh=REFRESH_SECONDS if view.status == "running" and not still else 0,
        view=view,
        rail=_rail(view),
        events=events,
        skippable=view.error.get("stage") in SKIPPABLE,
        open=view.status in OPEN,
    )


# --- submitting ---------------------------------------------------------------------------------


def _key(given: str) -> str:
    if not KEY.fullmatch(given) or set(given) == {"."}:
        raise Invalid(
            "the header Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 . _ -"
            if given
            else "Idempotency-Key is missing",
            field="Idempotency-Key",
            hint="send a fresh random key with each submission, and the same one when you repeat it",
        )
    return given


def _must_have_room(here: Parts) -> None:
    """Raise `StorageLow` before anything starts that could only wait."""
    if (found := _low(here)) is not None:
        raise StorageLow(f"nothing is started: {found}", hint="free some space, then submit again")


def _low(here: Parts) -> StorageLow | None:
    return disk.low(here.settings.written, here.settings.disk_floor_bytes)


def _known_spec(here: Parts, key: str) -> LifecycleSpec | None:
    """The spec that the key stands for, read as specs are read now: one of before lacks the fields of today."""
    with here.store.read() as session:
        row = session.get(LifecycleRow, key)
        return LifecycleSpec.model_validate_json(row.spec) if row else None


async def _start(here: Parts, key: str, request: LifecycleRequest) -> LifecycleSpec | None:
    """Start the workflow, or find it started: the spec that the key stands for. None: no lifecycle has that id."""
    try:
        await ask(_starting(here, key, request))
    except WorkflowAlreadyStartedError:
        return await ask(_started_with(here, key))
    return request.spec


async def _started_with(here: Parts, key: str) -> LifecycleSpec | None:
    events = here.temporal.get_workflow_handle(key).fetch_history_events(page_size=1, rpc_timeout=RPC_TIMEOUT)
    async for event in events:
        given = event.workflow_execution_started_event_attributes.input.payloads
        try:
            (request,) = converter.payload_converter.from_payloads(given, [LifecycleRequest])
        except Exception:  # noqa: BLE001  # whatever somebody has typed as its input
            return None
        return LifecycleSpec.model_validate(request.spec)
    return None


async def _starting(here: Parts, key: str, request: LifecycleRequest) -> WorkflowHandle[Any, Any]:
    spec = request.spec
    return await here.temporal.start_workflow(
        names.LIFECYCLE,
        request,
        id=key,
        task_queue=names.CONTROL,
        id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
        memo={"body_digest": request.body_digest, "submitted_by": request.submitted_by, "spec": _spec_memo(spec)},
        search_attributes=TypedSearchAttributes(
            [
                SearchAttributePair(names.PROJECT, spec.project),
                SearchAttributePair(names.MODEL, spec.model),
                SearchAttributePair(names.STAGE, "submitted"),
                SearchAttributePair(names.TRIGGER, request.trigger),
            ]
        ),
        static_summary=_clipped(
            f"{spec.model}: {spec.task} on `{spec.target}`, submitted by {request.submitted_by}", SUMMARY_BYTES
        ),
        static_details=_details(request),
        rpc_timeout=RPC_TIMEOUT,
    )


def _spec_memo(spec: LifecycleSpec) -> dict[str, str]:
    return {"project": spec.project, "model": spec.model, "task": spec.task, "objective": spec.objective}


def _details(request: LifecycleRequest) -> str:
    spec = request.spec
    lines = [
        f"**{spec.model}** of project {spec.project}: {spec.task} on `{spec.target}`, decided by {spec.objective}.",
        "",
        f"- data: `{spec.source.path}`",
        f"- submitted by {request.submitted_by} ({request.trigger})",
        f"- watched: {f'each {spec.monitor.window}' if spec.monitor else 'no'}",
    ]
    return _clipped("\n".join(lines), 8000)


def _clipped(text: str, limit_bytes: int) -> str:
    """*text* in at most *limit_bytes* of UTF-8, cut between characters."""
    data = text.encode()
    return text if len(data) <= limit_bytes else data[: limit_bytes - 3].decode(errors="ignore") + "…"


# --- telling ------------------------------------------------------------------------------------


async def tell(here: Parts, id: str, action: Action, person: str, body: Attend) -> None:  # noqa: A002
    """Do *action*. Raises `NotWaiting` when the lifecycle has ended or is not parked."""
    if not await run_in_threadpool(_is_open, here, id):
        # Other workflows have ids too: nobody may cancel a pool from here.
        _must_be_open(id, (await _not_yet_written(here, id)).status)
    handle = here.temporal.get_workflow_handle(id)
    missing, hint = f"no running lifecycle {id}", "`everloop list` shows what there is"
    if action == "cancel":
        await ask(handle.cancel(rpc_timeout=RPC_TIMEOUT, reason=_reason(person, body)), missing=missing, hint=hint)
        return
    request = AttendRequest(action=action, person=person, stage=body.stage, reason=body.reason)
    update = handle.execute_update(names.ATTEND, request, id=f"attend-{uuid.uuid4()}")
    await ask(update, missing=missing, hint=hint)


def _reason(person: str, body: Attend) -> str:
    return f"cancelled by {person}" + (f": {body.reason}" if body.reason else "")


def _is_open(here: Parts, id: str) -> bool:  # noqa: A002
    """Is it known and running? Raises `NotWaiting` when it has ended."""
    with here.store.read() as session:
        row = session.get(LifecycleRow, id)
    if row is None:
        return False
    _must_be_open(id, row.status)
    return True


def _must_be_open(id: str, status: str) -> None:  # noqa: A002
    if status not in OPEN:
        raise NotWaiting(
            f"{id} has already ended ({pages.words(status)})", hint="submit again to start a new lifecycle"
        )


# --- looking ------------------------------------------------------------------------------------


def stored(here: Parts, id: str) -> LifecycleView | None:  # noqa: A002
    """The lifecycle as the read models have it, or None when they do not know it (yet)."""
    with here.store.read() as session:
        row = session.get(LifecycleRow, id)
        if row is None:
            return None
        gate = session.get(ApprovalRow, names.approval_id(id))
        spec = LifecycleSpec.model_validate_json(row.spec)
        return LifecycleView(
            **_summary(here, session, row, _low(here)).model_dump(),
            objective=spec.objective,
            body_digest=row.body_digest,
            spec=spec.model_dump(mode="json"),
            stages=[_stage(stage) for stage in journal.stage_rows(session, id)],
            comparison=row.comparison,
            error=_error(here, session, row),
            approval=_gate(gate),
            refused=_refused(here, session, row),
            help=_help_now(here, session, row),
            links=links(here, id, gate=gate is not None),
        )


def _refused(here: Parts, session: Session, row: LifecycleRow) -> str:
    route = session.get(RouteRow, (row.project, row.model))
    if route is None or route.lifecycle != row.id:
        return ""
    found = refusals(here.settings).get((row.project, row.model))
    return found.sentence if found else ""


async def _not_yet_written(here: Parts, id: str) -> LifecycleView:  # noqa: A002
    """A lifecycle that Temporal has accepted and whose first event is still on its way. Raises `NotFound`."""
    missing = f"there is no lifecycle {id[:200]}"
    hint = "`everloop list` shows what there is"
    if not id or len(id) > MOST_ID:  # known without Temporal
        raise NotFound(missing, field="id", hint=hint)
    handle = here.temporal.get_workflow_handle(id)
    described = await ask(handle.describe(rpc_timeout=RPC_TIMEOUT), missing=missing, hint=hint)
    if described.workflow_type != names.LIFECYCLE:
        raise NotFound(missing, field="id", hint=hint)
    view = _first_view(here, described, await described.memo())
    wedged = await run_in_threadpool(_alarm, here, id)
    return view.model_copy(update={"alarm": wedged.sentence, "help": wedged.help}) if wedged else view


def _alarm(here: Parts, id: str) -> alarm.Alarm | None:  # noqa: A002
    with here.store.read() as session:
        return alarm.of(session, here.settings, id)


def _first_view(here: Parts, described: WorkflowExecutionDescription, memo: Any) -> LifecycleView:  # noqa: ANN401
    spec = memo.get("spec", {})
    running = described.status is WorkflowExecutionStatus.RUNNING
    since = described.start_time
    wait = Wait(what="a control worker to begin", since=since, unblocks="one picks it up; `everloop up` starts one")
    return LifecycleView(
        id=described.id,
        project=str(spec.get("project", "")),
        model=str(spec.get("model", "")),
        task=str(spec.get("task", "")),
        trigger="manual",
        status="running" if running else str(described.status.name if described.status else "failed").lower(),
        reason="",
        stage="",
        version=None,
        submitted_by=str(memo.get("submitted_by", "")),
        submitted_at=since,
        updated_at=since,
        wait=wait.sentence() if running else "",
        metrics={},
        objective=str(spec.get("objective", "")),
        body_digest=str(memo.get("body_digest", "")),
        spec={},
        stages=[],
        comparison={},
        error={},
        approval=None,
        help="",
        links=links(here, described.id, gate=False),
    )


def links(here: Parts, id: str, *, gate: bool) -> dict[str, str]:  # noqa: A002
    """Where else to look."""
    found = {
        "self": _api_url(id),
        "page": page_url(id),
        "events": f"{_api_url(id)}/events",
        "logs": f"{_api_url(id)}/logs",
        "metrics": f"{_api_url(id)}/metrics",
        "temporal": temporal_url(here, id),
    }
    return found | ({"approval": approval_url(id)} if gate else {})


def temporal_url(here: Parts, workflow_id: str) -> str:
    """The workflow in Temporal's own UI."""
    settings = here.settings
    return (
        f"{settings.temporal_ui_url}/namespaces/{settings.temporal_namespace}/workflows/{quote(workflow_id, safe='')}"
    )


def page_url(id: str) -> str:  # noqa: A002
    return f"/lifecycles/{quote(id)}"


def approval_url(id: str) -> str:  # noqa: A002
    return f"/approvals/{quote(id)}"


def _api_url(id: str) -> str:  # noqa: A002
    return f"/api/v1/lifecycles/{quote(id)}"


def _summary(here: Parts, session: Session, row: LifecycleRow, low: StorageLow | None = None) -> LifecycleSummary:
    wedged = alarm.of(session, here.settings, row.id) if row.status in OPEN else None
    return LifecycleSummary(
        id=row.id,
        project=row.project,
        model=row.model,
        task=row.task,
        trigger=row.trigger,
        status=row.status,
        reason=row.reason,
        stage=row.stage,
        version=row.version,
        submitted_by=row.submitted_by,
        submitted_at=row.submitted_at,
        updated_at=row.updated_at,
        wait=_wait(session, row, low),
        metrics=row.metrics,
        alarm=wedged.sentence if wedged else "",
    )


def _wait(session: Session, row: LifecycleRow, low: StorageLow | None) -> str:
    if row.status not in OPEN:
        return ""
    if low is not None and row.status == "running":  # on a disk that is quite full the wait cannot be written down
        since = row.wait_since if row.wait_what == ROOM and row.wait_since else row.updated_at
        return Wait(what=ROOM, since=since, unblocks=f"{low}; it goes on by itself when there is room").sentence()
    if row.wait_what and row.wait_since:
        return Wait(what=row.wait_what, since=row.wait_since, unblocks=row.wait_unblocks).sentence()
    return _queued(session, row)


def _queued(session: Session, row: LifecycleRow) -> str:
    """The place in the queue for a slot, where the lifecycle stands in one."""
    mine = session.exec(
        select(LeaseRequestRow).where(LeaseRequestRow.workflow_id == row.id, LeaseRequestRow.state == "queued")
    ).first()
    if mine is None:
        return ""
    before = session.exec(
        select(LeaseRequestRow.id).where(
            LeaseRequestRow.pool == mine.pool,
            LeaseRequestRow.state == "queued",
            col(LeaseRequestRow.arrival) < mine.arrival,
        )
    ).all()
    unblocks = f"{len(before)} before it in pool {mine.pool}; it goes on when a slot is free"
    return Wait(what="a slot", since=mine.requested_at, unblocks=unblocks).sentence()


def _stage(row: StageRow) -> StageView:
    return StageView(
        stage=row.stage,
        status=row.status,
        started_at=row.started_at,
        ended_at=row.ended_at,
        seconds=(row.ended_at - row.started_at).total_seconds() if row.ended_at else None,
        summary=row.summary,
        metrics=row.metrics,
        blobs=row.blobs,
        ran=row.ran,
        error=row.error,
    )


def _error(here: Parts, session: Session, row: LifecycleRow) -> dict[str, Any]:
    if not row.error:
        return {}
    path = journal.log_path(session, row, str(row.error.get("stage", "")), here.settings.logs_dir)
    return row.error | {"log_tail": journal.tail_of(path, journal.FAILURE_LINES) if path else []}


def _gate(row: ApprovalRow | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        "status": row.status,
        "url": f"/api/v1/approvals/{quote(row.lifecycle)}",
        "page": approval_url(row.lifecycle),
        "evidence_digest": row.evidence_digest,
        "deadline": row.deadline,
        "decisions": row.decisions,
    }


def _help_now(here: Parts, session: Session, row: LifecycleRow) -> str:
    wedged = alarm.of(session, here.settings, row.id) if row.status in OPEN else None
    return wedged.help if wedged else _help(row)


def _help(row: LifecycleRow) -> str:
    if row.status == "waiting_approval":
        return f"everloop approve {row.id}"
    if row.status == "needs_attention":
        return f"everloop retry {row.id}"
    if row.status in ("failed", "aborted", "cancelled", "terminated"):
        return f"everloop {'logs' if row.stage in JOB_STAGES else 'events'} {row.id}"
    return ""


def _latest(session: Session, statuses: tuple[str, ...], limit: int) -> list[LifecycleRow]:
    query = select(LifecycleRow).where(col(LifecycleRow.status).in_(statuses))
    return list(session.exec(query.order_by(col(LifecycleRow.submitted_at).desc()).limit(limit)))


def _recent(here: Parts, session: Session) -> list[LifecycleSummary]:
    query = select(LifecycleRow).where(col(LifecycleRow.status).not_in(OPEN))
    rows = session.exec(query.order_by(col(LifecycleRow.updated_at).desc()).limit(RECENT)).all()
    return [_summary(here, session, row) for row in rows]


def _live(session: Session, route: RouteRow) -> dict[str, Any]:
    """A model that answers now: its version, its objective's figure, the last look at drift."""
    version = session.get(VersionRow, (route.project, route.model, route.version))
    lifecycle = session.get(LifecycleRow, version.lifecycle if version else route.lifecycle)
    drift = session.exec(
        select(DriftRow)
        .where(DriftRow.project == route.project, DriftRow.model == route.model)
        .order_by(col(DriftRow.window_start).desc())
        .limit(1)
    ).first()
    objective = LifecycleSpec.model_validate_json(lifecycle.spec).objective if lifecycle else ""
    figure = lifecycle.metrics.get(objective) if lifecycle else None
    return {"route": route, "objective": objective, "figure": figure, "drift": drift}


def progress(session: Session, row: LifecycleRow) -> tuple[int, int]:
    """Stages behind it, and stages in all."""
    done = {stage.stage for stage in journal.stage_rows(session, row.id) if stage.status in ("done", "skipped")}
    return len(done), len(STAGES)


def _rail(view: LifecycleView) -> list[dict[str, Any]]:
    """Every stage in order, whether or not it has come up yet, with its attempts."""
    ended = view.status not in OPEN
    found = []
    for name in STAGES:
        attempts = [stage for stage in view.stages if stage.stage == name]
        last = attempts[-1] if attempts else None
        status = last.status if last else "not reached" if ended else "to come"
        found.append({"name": name, "status": status, "last": last, "attempts": attempts})
    return found
