"""The histories that the journal is made from: Temporal's, and those of the archive."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from sqlmodel import select
from temporalio.client import Client, WorkflowExecution, WorkflowHistory
from temporalio.service import RPCError, RPCStatusCode

from activities.journal.rows import Run
from everloop import names, views
from everloop.artifacts import Artifacts
from everloop.payloads import converter
from everloop.store import HistoryRow, Store

JOURNALED = (
    names.LIFECYCLE,
    names.APPROVAL,
    names.RELEASE,
    names.ROLL_BACK,
    names.DRIFT_CHECK,
    names.SEARCH,
    names.SCORE,
)

TYPES = "WorkflowType IN ({}) AND TaskQueue = '{}'".format(", ".join(f"'{name}'" for name in JOURNALED), names.CONTROL)
"""Workflows of another worker may bear our names: they are none of ours."""

CLOSED = f"{TYPES} AND ExecutionStatus != 'Running'"
"""Temporal's query for the journaled runs that have ended."""


async def history_of(client: Client, workflow_id: str, run_id: str) -> WorkflowHistory:
    """The whole history of one run, from Temporal."""
    return await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()


async def runs(client: Client, store: Store, artifacts: Artifacts) -> AsyncIterator[Run]:
    """Every run that Temporal still knows, then those that only the archive knows."""
    executions = [execution async for execution in client.list_workflows(TYPES)]
    with store.read() as session:
        archived = session.exec(select(HistoryRow)).all()
    known: set[tuple[str, str]] = set()
    first = _first_runs(executions, archived)
    lifecycles = {one.run_id for one in executions if one.workflow_type == names.LIFECYCLE}
    lifecycles |= {row.run_id for row in archived if row.workflow_type == names.LIFECYCLE}
    for execution in executions:
        try:
            history = await history_of(client, execution.id, execution.run_id)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                continue  # retention has just taken it: the archive has it
            raise
        known.add((execution.id, execution.run_id))
        if _goes_on(history, first.get(execution.id)) and _is_a_gate_of(lifecycles, execution, history):
            yield _run(execution.id, execution.run_id, execution.start_time, history)
    for row in archived:
        if (row.workflow_id, row.run_id) not in known:
            data = await asyncio.to_thread(artifacts.get, row.sha256)
            history = WorkflowHistory.from_json(row.workflow_id, data.decode())
            yield _run(row.workflow_id, row.run_id, row.started_at, history)


def _first_runs(executions: Sequence[WorkflowExecution], archived: Sequence[HistoryRow]) -> dict[str, str]:
    """The first run of each lifecycle: what is started under its id later is another's."""
    started = [(one.start_time, one.id, one.run_id) for one in executions if one.workflow_type == names.LIFECYCLE]
    started += [
        (row.started_at, row.workflow_id, row.run_id) for row in archived if row.workflow_type == names.LIFECYCLE
    ]
    return {workflow_id: run_id for _, workflow_id, run_id in sorted(started, reverse=True)}


def _goes_on(history: WorkflowHistory, first_run: str | None) -> bool:
    if first_run is None or not history.events:
        return True
    attributes = history.events[0].workflow_execution_started_event_attributes
    return first_run in (attributes.first_execution_run_id, attributes.original_execution_run_id)


def _is_a_gate_of(lifecycles: set[str], execution: WorkflowExecution, history: WorkflowHistory) -> bool:
    """False for a gate that none of the runs *lifecycles* has opened; true for what is no gate."""
    if execution.workflow_type != names.APPROVAL or not history.events:
        return True
    attributes = history.events[0].workflow_execution_started_event_attributes
    return attributes.parent_workflow_execution.run_id in lifecycles


def _run(workflow_id: str, run_id: str, started_at: datetime, history: WorkflowHistory) -> Run:
    events = views.project(history.events, converter)
    return Run(workflow_id, run_id, started_at, tuple(events), tuple(views.routed(history.events, converter)))
