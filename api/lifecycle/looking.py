"""Look at lifecycles: the list, and one with all there is to say about it."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool
from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus

from api import alarm, data, journal, progress, search
from api.dependencies import RPC_TIMEOUT, Here, Parts, ask
from api.lifecycle.answers import LifecycleList, LifecycleView, Status
from api.lifecycle.links import links
from api.lifecycle.summary import error_of, gate_of, help_now, is_paused, low_on_room, stage_view, summary
from api.refusals import refusals
from everloop import names
from everloop.errors import NotFound
from everloop.records import Wait
from everloop.specs import LifecycleSpec
from everloop.store import ApprovalRow, LifecycleRow, RouteRow

every = APIRouter()
"""The list: its address is fixed, so it stands before those that take whatever is left."""
router = APIRouter()

MOST_ID = 1000
"""Characters that Temporal takes as an id."""


@every.get("/lifecycles")
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
        low = low_on_room(here)
        return LifecycleList(items=[summary(here, session, row, low) for row in session.exec(query)])


@router.get("/lifecycles/{id:path}")
async def shown(id: str, here: Here) -> LifecycleView:  # noqa: A002
    """A lifecycle as it is now."""
    found = await run_in_threadpool(stored, here, id)
    return found or await not_yet_written(here, id)


def stored(here: Parts, id: str) -> LifecycleView | None:  # noqa: A002
    """The lifecycle as the read models have it, or None when they do not know it (yet)."""
    with here.store.read() as session:
        row = session.get(LifecycleRow, id)
        if row is None:
            return None
        gate = session.get(ApprovalRow, names.approval_id(id))
        spec = LifecycleSpec.model_validate_json(row.spec)
        searched = search.summary(session, row)
        return LifecycleView(
            **summary(here, session, row, low_on_room(here)).model_dump(),
            objective=spec.objective,
            body_digest=row.body_digest,
            spec=spec.model_dump(mode="json"),
            stages=[stage_view(stage) for stage in journal.stage_rows(session, id)],
            comparison=row.comparison,
            error=error_of(here, session, row),
            approval=gate_of(gate),
            refused=_refused(here, session, row),
            help=help_now(here, session, row),
            notes=data.notes(here, session, row),
            links=links(here, id, gate=gate is not None, data=data.there(session, row), search=searched is not None),
            paused=is_paused(row),
            progress=progress.progress_of(session, row),
            search=searched,
        )


def _refused(here: Parts, session: Session, row: LifecycleRow) -> str:
    route = session.get(RouteRow, (row.project, row.model))
    if route is None or route.lifecycle != row.id:
        return ""
    found = refusals(here.settings).get((row.project, row.model))
    return found.sentence if found else ""


async def not_yet_written(here: Parts, id: str) -> LifecycleView:  # noqa: A002
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
        links=links(here, described.id, gate=False, data=False),
    )
