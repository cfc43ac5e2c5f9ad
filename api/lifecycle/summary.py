"""A lifecycle's rows as people read them: what it waits for, what failed, which command helps."""

from typing import Any
from urllib.parse import quote

from sqlmodel import Session, col, select

from activities.lease_budgets import CODE as OVER_BUDGET
from api import alarm, journal
from api.dependencies import Parts
from api.kept import kept_of
from api.lifecycle.answers import LifecycleSummary, StageView
from api.lifecycle.links import approval_url
from api.pool.seen import explained_by
from everloop import disk, names
from everloop.errors import StorageLow
from everloop.records import Wait
from everloop.specs import JOB_STAGES
from everloop.store import ApprovalRow, LeaseRequestRow, LifecycleRow, StageRow
from everloop.views import OPEN_STATUSES

ROOM = "room on the disk"
"""What `workflows.disk` says that it waits for."""


def summary(here: Parts, session: Session, row: LifecycleRow, low: StorageLow | None = None) -> LifecycleSummary:
    wedged = alarm.of(session, here.settings, row.id) if row.status in OPEN_STATUSES else None
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
    if row.status not in OPEN_STATUSES:
        return ""
    if low is not None and row.status == "running":  # on a disk that is quite full the wait cannot be written down
        since = row.wait_since if row.wait_what == ROOM and row.wait_since else row.updated_at
        return Wait(what=ROOM, since=since, unblocks=f"{low}; it goes on by itself when there is room").sentence()
    if row.wait_what and row.wait_since and not row.wait_what.startswith(names.A_FREE_SLOT):
        return Wait(what=row.wait_what, since=row.wait_since, unblocks=row.wait_unblocks).sentence()
    return _queued(session, row)


def _queued(session: Session, row: LifecycleRow) -> str:
    """Why it waits in its queue, where it stands in one; else what it says itself."""
    asks = col(LeaseRequestRow.workflow_id).in_([row.id, names.search_id(row.id)])
    mine = session.exec(select(LeaseRequestRow).where(asks, LeaseRequestRow.state == "queued")).first()
    if mine is None:
        own = Wait(what=row.wait_what, since=row.wait_since, unblocks=row.wait_unblocks) if row.wait_since else None
        return own.sentence() if own else ""
    why, unblocks = explained_by(mine)
    again = "" if mine.code == OVER_BUDGET else row.wait_what.removeprefix(names.A_FREE_SLOT)  # why it had to ask again
    what = why.removeprefix("waits for ") + again
    return Wait(what=what, since=mine.requested_at, unblocks=unblocks).sentence()


def stage_view(row: StageRow) -> StageView:
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
        kept=kept_of(row),
    )


def error_of(here: Parts, session: Session, row: LifecycleRow) -> dict[str, Any]:
    if not row.error:
        return {}
    path = journal.log_path(session, row, str(row.error.get("stage", "")), here.settings.logs_dir)
    return row.error | {"log_tail": journal.tail_of(path, journal.FAILURE_LINES, journal.WIDTH) if path else []}


def gate_of(row: ApprovalRow | None) -> dict[str, Any] | None:
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


def help_now(here: Parts, session: Session, row: LifecycleRow) -> str:
    wedged = alarm.of(session, here.settings, row.id) if row.status in OPEN_STATUSES else None
    return wedged.help if wedged else _help(row)


def is_paused(row: LifecycleRow) -> bool:
    """Does it wait for the resume of a person?"""
    return row.status == "running" and row.wait_what.startswith(names.A_RESUME)


def _help(row: LifecycleRow) -> str:
    if row.status == "waiting_approval":
        return f"everloop approve {row.id}"
    if is_paused(row):
        return f"everloop resume {row.id}"
    if row.status == "needs_attention":
        return f"everloop retry {row.id}"
    if row.status in ("failed", "aborted", "cancelled", "terminated"):
        return f"everloop {'logs' if row.stage in JOB_STAGES else 'events'} {row.id}"
    return ""


def low_on_room(here: Parts) -> StorageLow | None:
    return disk.low(here.settings.written, here.settings.disk_floor_bytes)
