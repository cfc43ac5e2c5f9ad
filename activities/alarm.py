"""Open workflows whose workflow task fails: nothing they are told has an effect, and only Temporal knows why."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC

from sqlmodel import col, delete, select
from temporalio.api.common.v1 import WorkflowExecution as Execution
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.lease import LeaseOnControl
from everloop import names
from everloop.store import AlarmRow, Store

log = logging.getLogger(__name__)

TYPES = (
    *(names.LIFECYCLE, names.APPROVAL, names.RELEASE, names.ROLL_BACK),
    *(names.DRIFT_CHECK, names.GPU_POOL, names.POOL_ORDER, names.SEARCH, names.SCORE),
)
QUERY = (
    "ExecutionStatus = 'Running' AND TemporalReportedProblems IS NOT NULL "
    f"AND TaskQueue = '{names.CONTROL}' AND WorkflowType IN ({', '.join(map(repr, TYPES))})"
)
MOST_ALARMS = 100
"""Looked at by one sweep; each costs two calls to Temporal, and a healthy deployment has none."""
LAST_EVENTS = 20
MESSAGE_CHARACTERS = 500
PATIENT_ATTEMPTS = 3
"""A task that only timed out (its worker was killed) is an alarm after so many attempts."""


class Alarms:
    """Writes an alarm for each wedged workflow, removes it when that goes on, and replaces a wedged pool."""

    def __init__(self, store: Store, client: Client, lease: LeaseOnControl) -> None:
        self._store = store
        self._client = client
        self._lease = lease
        self._told = False

    async def sweep(self) -> None:
        """One look. Costs one call to Temporal when nothing is wrong."""
        rows = [row async for row in self._wedged()]
        news = await asyncio.to_thread(_write, self._store, rows)
        for row in news:
            log.error("%s cannot go on: %s", row.workflow_id, row.message)
        for row in rows:
            if row.workflow_type == names.GPU_POOL:
                pool = row.workflow_id.removeprefix(names.pool_id(""))
                await self._lease.replace_pool(pool, row.run_id, row.message)

    async def _wedged(self) -> AsyncIterator[AlarmRow]:
        try:
            async for execution in self._client.list_workflows(QUERY, limit=MOST_ALARMS):
                if row := await self._alarm(execution):
                    yield row
        except RPCError as error:
            if error.status is not RPCStatusCode.INVALID_ARGUMENT:
                raise
            if not self._told:
                log.warning("this Temporal server keeps no TemporalReportedProblems: there are no alarms (%s)", error)
            self._told = True

    async def _alarm(self, execution: WorkflowExecution) -> AlarmRow | None:
        """What is wrong with it now; visibility is a little late."""
        described = await self._client.get_workflow_handle(execution.id, run_id=execution.run_id).describe()
        task = described.raw_description.pending_workflow_task
        if described.status is not WorkflowExecutionStatus.RUNNING or task.attempt <= 1:
            return None
        failed = await self._last_failure(execution)
        if failed is None and task.attempt <= PATIENT_ATTEMPTS:
            return None
        return AlarmRow(
            workflow_id=execution.id,
            run_id=execution.run_id,
            workflow_type=execution.workflow_type,
            lifecycle=_lifecycle(execution),
            message=_message(failed) if failed else "no worker has answered its workflow task in time",
            attempts=task.attempt - 1,
            since=(failed.event_time if failed else task.scheduled_time).ToDatetime(UTC),
        )

    async def _last_failure(self, execution: WorkflowExecution) -> HistoryEvent | None:
        """Why its last workflow task failed, when that was not followed by one that did not."""
        request = GetWorkflowExecutionHistoryReverseRequest(
            namespace=self._client.namespace,
            execution=Execution(workflow_id=execution.id, run_id=execution.run_id),
            maximum_page_size=LAST_EVENTS,
        )
        answer = await self._client.workflow_service.get_workflow_execution_history_reverse(request)
        for event in answer.history.events:
            if event.HasField("workflow_task_completed_event_attributes"):
                return None
            if event.HasField("workflow_task_failed_event_attributes"):
                return event
        return None


def _message(event: HistoryEvent) -> str:
    failure = event.workflow_task_failed_event_attributes.failure
    while failure.HasField("cause"):  # "Failed decoding arguments": what comes below says which and why
        failure = failure.cause
    kind = failure.application_failure_info.type
    return " ".join(f"{kind}: {failure.message}".removeprefix(": ").split())[:MESSAGE_CHARACTERS]


def _lifecycle(execution: WorkflowExecution) -> str:
    if execution.workflow_type == names.LIFECYCLE:
        return execution.id
    suffix = {names.APPROVAL: names.approval_id(""), names.SEARCH: names.search_id("")}.get(execution.workflow_type)
    return execution.id.removesuffix(suffix) if suffix else ""


def _write(store: Store, rows: list[AlarmRow]) -> list[AlarmRow]:
    """Make these the alarms. Returns those that are new."""
    with store.read() as session:
        known = {row.run_id: row for row in session.exec(select(AlarmRow))}
    if not rows and not known:
        return []
    copies = [AlarmRow.model_validate(row.model_dump()) for row in rows]
    with store.write() as session:
        session.exec(delete(AlarmRow).where(col(AlarmRow.run_id).not_in([row.run_id for row in rows])))
        for row in copies:
            session.merge(row)
    return [row for row in rows if row.run_id not in known]
