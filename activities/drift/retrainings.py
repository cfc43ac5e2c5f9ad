"""Retrainings that were decided on: the latest, and whether it runs still."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlmodel import col, select
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from everloop.contracts import TriggerRequest
from everloop.store import PerformanceRow, Store, TriggerRow

STARTING = timedelta(seconds=30)
"""A retraining may be decided and not started for this long."""


async def open_retraining(store: Store, client: Client, project: str, model: str) -> str:
    """The model's retraining that has not ended yet: a second one would only learn the same.

    Temporal says whether it runs: a check that was ended between its verdict and the start left none.
    """
    started = await asyncio.to_thread(_last_retraining, store, project, model)
    if started is None:
        return ""
    try:
        described = await client.get_workflow_handle(started.lifecycle).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return started.lifecycle if datetime.now(UTC) - started.decided_at < STARTING else ""
    return started.lifecycle if described.status is WorkflowExecutionStatus.RUNNING else ""


class Retrained(NamedTuple):
    """A retraining that was decided on."""

    lifecycle: str
    decided_at: datetime


def _last_retraining(store: Store, project: str, model: str) -> Retrained | None:
    """The latest that either ledger knows."""
    found: list[Retrained] = []
    with store.read() as session:
        drifted = select(TriggerRow).where(
            TriggerRow.project == project, TriggerRow.model == model, TriggerRow.verdict == "retrain"
        )
        row = session.exec(drifted.order_by(col(TriggerRow.window_start).desc())).first()
        found += [Retrained(row.lifecycle, row.decided_at)] if row else []
        judged = select(PerformanceRow).where(
            PerformanceRow.project == project, PerformanceRow.model == model, PerformanceRow.verdict == "retrain"
        )
        late = session.exec(judged.order_by(col(PerformanceRow.measured_at).desc())).first()
        found += [Retrained(late.lifecycle, late.measured_at)] if late else []
    return max(found, key=lambda one: one.decided_at, default=None)


def of_another_window(store: Store, request: TriggerRequest, lifecycle: str) -> bool:
    """Did a window of another length start *lifecycle*?"""
    with store.read() as session:
        return (
            session.exec(
                select(TriggerRow).where(
                    TriggerRow.project == request.project,
                    TriggerRow.model == request.model,
                    TriggerRow.window_start == request.window.start,
                    TriggerRow.window_end != request.window.end,
                    TriggerRow.lifecycle == lifecycle,
                )
            ).first()
            is not None
        )
