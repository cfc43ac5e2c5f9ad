"""What control writes: events that workflows record, and what a run's journal lacks from its history."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client, WorkflowExecution

from activities.execution import Execution, Executions
from activities.journal.histories import CLOSED, TYPES, history_of
from activities.journal.rows import Run, append, archived, journaled, merge, must_go_on, unknown
from everloop import names, views
from everloop.artifacts import Artifacts
from everloop.contracts import AppendRequest, JournalActivities
from everloop.errors import Forbidden
from everloop.payloads import converter
from everloop.store import HistoryRow, Store

log = logging.getLogger(__name__)

OVERLAP = timedelta(minutes=10)
"""Visibility is a little late: a sweep looks this much further back than when the one before began."""


class JournalOnControl(JournalActivities):
    """Appends what workflows record, and fills what a run's journal lacks from its history."""

    def __init__(self, store: Store, artifacts: Artifacts, client: Client) -> None:
        self._store = store
        self._artifacts = artifacts
        self._client = client
        self._executions = Executions(client)
        self._swept_until: datetime | None = None

    @activity.defn(name=names.JOURNAL_APPEND)
    async def append(self, request: AppendRequest) -> None:
        """Append the events of this run. Safe to run twice; the same key with other content is an alarm.

        A run that Temporal made by a Reset starts with copied events that were never appended under its
        own id: they are filled in first. Raises `JournalConflict`, and `Forbidden` for another workflow than the
        one that has this id: a lifecycle's id is never used again.
        """
        caller = await self._executions.caller()
        await self._must_be_ours(caller)
        run = Run(caller.workflow_id, caller.run_id, caller.started_at, request.events)
        if not await asyncio.to_thread(append, self._store, run):
            await self.repair(caller.workflow_id, caller.run_id)

    async def repair(self, workflow_id: str, run_id: str) -> None:
        """Append whatever of an open run's history is not in the journal yet."""
        execution = await self._executions.of(workflow_id, run_id)
        await self._must_be_ours(execution)
        history = await history_of(self._client, workflow_id, run_id)
        events = tuple(views.project(history.events, converter))
        await asyncio.to_thread(append, self._store, Run(workflow_id, run_id, execution.started_at, events))

    async def _must_be_ours(self, execution: Execution) -> None:
        """Raise `Forbidden` unless the run goes on with its lifecycle, or is the gate that a lifecycle of ours opened.

        Our worker carries out a gate for every parent that asks: one of another worker may bear a lifecycle's name.
        """
        await asyncio.to_thread(must_go_on, self._store, execution)
        if execution.workflow_type != names.APPROVAL:
            return
        try:
            parent = await self._executions.of(execution.parent_id, execution.parent_run_id)
        except Forbidden:
            # Temporal's retention may have taken the run that a Reset replaced: then the journal knows it.
            if await asyncio.to_thread(journaled, self._store, execution.parent_id, execution.parent_run_id):
                return
            raise
        if not parent.ours or parent.workflow_type != names.LIFECYCLE:
            raise Forbidden(f"{execution.workflow_id} was opened by a {parent.workflow_type} of another worker")
        await asyncio.to_thread(must_go_on, self._store, parent)

    async def sweep(self) -> int:
        """Catch what workflows could not write themselves. Returns how many runs were looked at.

        A run ended from outside (terminated in Temporal's UI) gets its last fact; a run made by a Reset gets
        its copied events; each closed run's history is archived before Temporal's retention takes it.
        """
        swept, began, all_read = 0, datetime.now(UTC), True
        async for execution in self._client.list_workflows(f"{TYPES} AND ExecutionStatus = 'Running'"):
            if await asyncio.to_thread(unknown, self._store, execution.id, execution.run_id):
                swept += await _one(self.repair(execution.id, execution.run_id), execution) is True
        async for execution in self._unarchived():  # last: what is shown goes straight to a run that a Reset made
            done = await _one(self._archive(execution), execution)
            swept, all_read = swept + (done is True), all_read and done is not None
        if all_read:
            self._swept_until = began
        return swept

    async def archive(self, execution: WorkflowExecution) -> None:
        """Keep a closed run's history, and write the last fact if it could not. One that cannot be read is logged."""
        if not await asyncio.to_thread(archived, self._store, execution.id, execution.run_id):
            await _one(self._archive(execution), execution)

    async def _unarchived(self) -> AsyncIterator[WorkflowExecution]:
        """All closed runs at first, then those that closed since the last whole sweep.

        What the archive holds does not say how far a sweep came: single runs are put into it as they end.
        """
        since = self._swept_until
        newer = f" AND CloseTime > '{(since - OVERLAP).isoformat()}'" if since else ""
        async for execution in self._client.list_workflows(f"{CLOSED}{newer}"):
            if not await asyncio.to_thread(archived, self._store, execution.id, execution.run_id):
                yield execution

    async def _archive(self, execution: WorkflowExecution) -> None:
        key = (execution.id, execution.run_id)
        await self._must_be_ours(await self._executions.of(*key))
        history = await history_of(self._client, *key)
        events = tuple(views.project(history.events, converter))
        await asyncio.to_thread(append, self._store, Run(*key, execution.start_time, events))
        blob = await asyncio.to_thread(self._artifacts.put, history.to_json().encode(), "history.json")
        row = HistoryRow(
            workflow_id=execution.id,
            run_id=execution.run_id,
            workflow_type=execution.workflow_type,
            started_at=execution.start_time,
            closed_at=execution.close_time or execution.start_time,
            sha256=blob.sha256,
        )
        await asyncio.to_thread(merge, self._store, row)


async def _one(work: Awaitable[None], execution: WorkflowExecution) -> bool | None:
    """Do *work* on one run; a history that cannot be read must not keep the others from being swept.

    True when it is done, False when the run is none of ours, None when it must be tried again.
    """
    try:
        await work
    except Forbidden as error:
        log.debug("%s", error)  # said when it asked; a sweep looks at it again and again
        return False
    except Exception:
        log.exception("%s (run %s) could not be swept; it is tried again", execution.id, execution.run_id)
        return None
    return True
