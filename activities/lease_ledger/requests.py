"""Who waits: requests are the inbox of the pool."""

from typing import Any

from sqlalchemy import func
from sqlmodel import Session, select

from activities import lease_budgets
from activities.caller import Caller
from activities.lease_gpus import gpus
from activities.lease_ledger import rows
from activities.lease_ledger.ends import ended
from everloop import isolation, names
from everloop.budgets import Bounds
from everloop.contracts import LeaseRequest
from everloop.errors import Forbidden
from everloop.store import LeaseRequestRow, Store

NOT_SAID = -1
"""In `milli_gpu`: a whole GPU where the pool has any."""


def enqueue(store: Store, request: LeaseRequest, asks: Caller) -> str:
    """Put the request in the queue. The same id again changes nothing, unless who asks still waits for it in vain.

    Returns why it had left the queue, where that is worth a word. Raises `Forbidden` for another workflow's id.
    """
    with store.write() as session:
        rows.alone(session, request.pool)
        known = session.get(LeaseRequestRow, request.id)
        if known is None:
            session.add(_request(session, request, asks))
            bounds = Bounds(request.budget_core_ms, request.budget_gpu_ms, request.budget_micros)
            lease_budgets.begin(
                session, request.pool, names.lifecycle_of(asks.workflow_id), bounds, rows.ms(rows.now())
            )
            return ""
        if known.workflow_id != asks.workflow_id:
            raise Forbidden(f"request {request.id} is not one of {asks.workflow_id}")
        if not request.again or (known.run_id == asks.run_id and not _in_vain(session, known)):
            return ""
        known.sqlmodel_update(_wanted(session, request))  # another stage may ask in the old place
        return _owned_by(session, known, asks)


def _request(session: Session, request: LeaseRequest, asks: Caller) -> LeaseRequestRow:
    last = session.exec(select(func.max(LeaseRequestRow.arrival)).where(LeaseRequestRow.pool == request.pool)).one()
    return LeaseRequestRow(
        id=request.id,
        pool=request.pool,
        arrival=(last or 0) + 1,
        kind=request.kind,
        holder=asks.holder,
        workflow_id=asks.workflow_id,
        run_id=asks.run_id,
        state="queued",
        requested_at=rows.now(),
        **_wanted(session, request),
    )


def _wanted(session: Session, request: LeaseRequest) -> dict[str, Any]:
    """What is asked for, and for what."""
    if request.isolation == "E4":
        one = isolation.slice_for(request.milli_gpu, request.gpu_mib, gpus(session, request.pool))
        request = request.model_copy(update={"milli_gpu": one.milli_gpu, "gpu_mib": one.gpu_mib})
    return {
        "queue": request.queue,
        "priority": request.priority,
        "preemptible": request.preemptible,
        "cores": request.cores or 0,
        "memory_mib": request.memory_mib,
        "milli_gpu": NOT_SAID if request.milli_gpu is None else request.milli_gpu,
        "gpu_mib": request.gpu_mib,
        "members_min": request.members,
        "members_max": max(request.members, request.members_most),
        "max_runtime_ms": request.max_runtime_s * 1000,
        "stage": request.stage,
        "model": request.model,
    }


def _in_vain(session: Session, request: LeaseRequestRow) -> bool:
    """Nobody serves the request any more: it has ended, or what was granted for it has."""
    if request.state == "granted":
        return not session.exec(rows.granted(request.id)).all()
    return request.state in rows.ENDED


def _owned_by(session: Session, request: LeaseRequestRow, asks: Caller) -> str:
    """Queue *request* again, in its old place, for the run that waits now. What was granted to the other lapses.

    Who had its lease has not waited all that time: it waits since now.
    """
    reason, request.reason = request.reason, ""
    if request.state in ("granted", "done"):
        request.requested_at = rows.now()
    request.state, request.run_id, request.holder = "queued", asks.run_id, asks.holder
    request.code, request.detail, request.position = "", [], 0
    session.add(request)
    return reason


def cancel(store: Store, request_id: str, asks: Caller) -> str:
    """Take a request back, and whatever was granted for it. Returns its pool, or nothing when it had ended before.

    Raises `Forbidden` for another workflow's request.
    """
    with store.write() as session:
        request = rows.alone_with(session, session.get(LeaseRequestRow, request_id))
        if request is not None and request.workflow_id != asks.workflow_id:
            raise Forbidden(f"request {request_id} is not one of {asks.workflow_id}")
        if request is None or request.state in rows.ENDED:
            return ""
        for row in session.exec(rows.granted(request_id)).all():
            ended(session, row, "released" if row.state == "offered" else "fenced", "its request was taken back")
        request.state = "cancelled"
        session.add(request)
        rows.changed(session, request.pool)
        return request.pool
