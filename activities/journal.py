"""The journal: append from workflows, repair after a Reset, archive, rebuild and verify.

Temporal's history is the truth: an event is in it before it is here, and everything here can be made again from it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, SQLModel, col, delete, select
from temporalio import activity
from temporalio.client import Client, WorkflowExecution, WorkflowHistory
from temporalio.service import RPCError, RPCStatusCode

from activities.execution import Execution, Executions
from everloop import names, views
from everloop.artifacts import Artifacts
from everloop.contracts import AppendRequest, JournalActivities
from everloop.errors import Forbidden, JournalConflict
from everloop.events import Event
from everloop.payloads import converter
from everloop.records import RouteChange
from everloop.store import (
    READ_MODELS,
    ApprovalRow,
    DriftRow,
    HistoryRow,
    JournalRow,
    LifecycleRow,
    ReleaseRow,
    RouteRow,
    StageRow,
    Store,
)

log = logging.getLogger(__name__)

JOURNALED = (
    names.LIFECYCLE,
    names.APPROVAL,
    names.RELEASE,
    names.ROLL_BACK,
    names.DRIFT_CHECK,
    names.SEARCH,
    names.SCORE,
)
REBUILDS = 5
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
        await asyncio.to_thread(_must_go_on, self._store, execution)
        if execution.workflow_type != names.APPROVAL:
            return
        try:
            parent = await self._executions.of(execution.parent_id, execution.parent_run_id)
        except Forbidden:
            # Temporal's retention may have taken the run that a Reset replaced: then the journal knows it.
            if await asyncio.to_thread(_journaled, self._store, execution.parent_id, execution.parent_run_id):
                return
            raise
        if not parent.ours or parent.workflow_type != names.LIFECYCLE:
            raise Forbidden(f"{execution.workflow_id} was opened by a {parent.workflow_type} of another worker")
        await asyncio.to_thread(_must_go_on, self._store, parent)

    async def sweep(self) -> int:
        """Catch what workflows could not write themselves. Returns how many runs were looked at.

        A run ended from outside (terminated in Temporal's UI) gets its last fact; a run made by a Reset gets
        its copied events; each closed run's history is archived before Temporal's retention takes it.
        """
        swept, began, all_read = 0, datetime.now(UTC), True
        async for execution in self._client.list_workflows(f"{_TYPES} AND ExecutionStatus = 'Running'"):
            if await asyncio.to_thread(_unknown, self._store, execution.id, execution.run_id):
                swept += await _one(self.repair(execution.id, execution.run_id), execution) is True
        async for execution in self._unarchived():  # last: what is shown goes straight to a run that a Reset made
            done = await _one(self._archive(execution), execution)
            swept, all_read = swept + (done is True), all_read and done is not None
        if all_read:
            self._swept_until = began
        return swept

    async def archive(self, execution: WorkflowExecution) -> None:
        """Keep a closed run's history, and write the last fact if it could not. One that cannot be read is logged."""
        if not await asyncio.to_thread(_archived, self._store, execution.id, execution.run_id):
            await _one(self._archive(execution), execution)

    async def _unarchived(self) -> AsyncIterator[WorkflowExecution]:
        """All closed runs at first, then those that closed since the last whole sweep.

        What the archive holds does not say how far a sweep came: single runs are put into it as they end.
        """
        since = self._swept_until
        newer = f" AND CloseTime > '{(since - OVERLAP).isoformat()}'" if since else ""
        async for execution in self._client.list_workflows(f"{CLOSED}{newer}"):
            if not await asyncio.to_thread(_archived, self._store, execution.id, execution.run_id):
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
        await asyncio.to_thread(_merge, self._store, row)


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


@dataclass(frozen=True)
class Run:
    """One run of a journaled workflow, and facts of it in order."""

    workflow_id: str
    run_id: str
    started_at: datetime
    events: tuple[Event, ...]
    routes: tuple[RouteChange, ...] = ()
    """What it did to a model's route."""


_TYPES = "WorkflowType IN ({}) AND TaskQueue = '{}'".format(", ".join(f"'{name}'" for name in JOURNALED), names.CONTROL)
"""Workflows of another worker may bear our names: they are none of ours."""
CLOSED = f"{_TYPES} AND ExecutionStatus != 'Running'"
"""Temporal's query for the journaled runs that have ended."""


def _must_go_on(store: Store, execution: Execution) -> None:
    """Raise `Forbidden` for a lifecycle that is started anew under the id of another one.

    The API never does that. What goes on with a lifecycle is a run that a Reset made of its first one.
    """
    if execution.workflow_type != names.LIFECYCLE:
        return
    with store.read() as session:
        query = select(JournalRow.run_id, JournalRow.run_started_at)
        rows = session.exec(query.where(JournalRow.workflow_id == execution.workflow_id).distinct()).all()
    known = dict(rows)
    if not known or known.keys() & {execution.run_id, execution.first_run_id}:
        return
    if execution.started_at > min(known.values()):  # an earlier run may come later: a sweep begins with the newest
        raise Forbidden(
            f"run {execution.run_id} of {execution.workflow_id} is another lifecycle under the same id: "
            "nothing of it is recorded",
            hint="submit with a new Idempotency-Key; a Reset in Temporal goes on with the old one",
        )


def append(store: Store, run: Run) -> bool:
    """Write the run's events and the read models they change, in one transaction.

    False, and nothing written, when earlier events of the run are missing. Raises `JournalConflict`.
    """
    if not run.events:
        return True
    with store.write() as session:
        known = _bodies(session, run)
        if run.events[0].seq > len(known):
            return False
        fresh = [event for event in run.events if _is_new(known, event, run)]
        session.add_all(_row(run, event) for event in fresh)
        session.flush()
        if fresh:
            _refold(session, run.workflow_id)
    return True


def _bodies(session: Session, run: Run) -> dict[int, str]:
    found = session.exec(
        select(JournalRow.seq, JournalRow.body).where(
            JournalRow.workflow_id == run.workflow_id, JournalRow.run_id == run.run_id
        )
    )
    return dict(found.all())


def _is_new(known: dict[int, str], event: Event, run: Run) -> bool:
    if event.seq not in known:
        return True
    if not views.same(known[event.seq], event):
        log.critical("JOURNAL CONFLICT at %s %s number %s", run.workflow_id, run.run_id, event.seq)
        raise JournalConflict(
            f"the journal of {run.workflow_id} holds another event as number {event.seq} of run {run.run_id}",
            hint="`everloop journal verify` shows the difference; `everloop journal rebuild` makes the journal again",
        )
    return False


def _row(run: Run, event: Event) -> JournalRow:
    return JournalRow(
        workflow_id=run.workflow_id,
        run_id=run.run_id,
        run_started_at=run.started_at,
        seq=event.seq,
        type=event.type,
        at=event.at,
        body=views.body(event),
    )


def _refold(session: Session, workflow_id: str) -> None:
    """Replace the read-model rows of one workflow by what its journal folds to."""
    rows = session.exec(select(JournalRow).where(JournalRow.workflow_id == workflow_id)).all()
    session.exec(delete(LifecycleRow).where(col(LifecycleRow.id) == workflow_id))
    session.exec(delete(StageRow).where(col(StageRow.lifecycle) == workflow_id))
    session.exec(delete(ApprovalRow).where(col(ApprovalRow.id) == workflow_id))
    session.exec(delete(ReleaseRow).where(col(ReleaseRow.workflow_id) == workflow_id))
    session.exec(delete(DriftRow).where(col(DriftRow.workflow_id) == workflow_id))
    session.add_all(views.fold(rows))


def _journaled(store: Store, workflow_id: str, run_id: str) -> bool:
    with store.read() as session:
        mine = select(JournalRow.id).where(JournalRow.workflow_id == workflow_id, JournalRow.run_id == run_id)
        return session.exec(mine.limit(1)).first() is not None


def _unknown(store: Store, workflow_id: str, run_id: str) -> bool:
    """A run that has no event yet although an earlier run of the same workflow has: a Reset made it."""
    with store.read() as session:
        mine = select(func.count()).where(JournalRow.workflow_id == workflow_id, JournalRow.run_id == run_id)
        others = select(func.count()).where(JournalRow.workflow_id == workflow_id, JournalRow.run_id != run_id)
        return session.exec(mine).one() == 0 and session.exec(others).one() > 0


def _archived(store: Store, workflow_id: str, run_id: str) -> bool:
    with store.read() as session:
        return session.get(HistoryRow, (workflow_id, run_id)) is not None


def _merge(store: Store, row: SQLModel) -> None:
    with store.write() as session:
        session.merge(row)


async def history_of(client: Client, workflow_id: str, run_id: str) -> WorkflowHistory:
    """The whole history of one run, from Temporal."""
    return await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()


# --- rebuild and verify ---------------------------------------------------------------------------


@dataclass
class Findings:
    """What `verify` saw. Clean when `differences` is empty."""

    runs: int = 0
    events: int = 0
    rows: int = 0
    differences: list[str] = field(default_factory=list)


async def runs(client: Client, store: Store, artifacts: Artifacts) -> AsyncIterator[Run]:
    """Every run that Temporal still knows, then those that only the archive knows."""
    executions = [execution async for execution in client.list_workflows(_TYPES)]
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


async def rebuild(client: Client, store: Store, artifacts: Artifacts) -> int:
    """Make the journal and all read models again from the histories. Returns the number of events.

    Each try is one transaction. Control may go on meanwhile: what it appended between the reading of the
    histories and the transaction is found missing afterwards, and the next try has it.
    """
    for _ in range(REBUILDS):
        events = await _rebuild(client, store, artifacts)
        if not (await _compare(client, store, artifacts)).differences:
            break
    return events


async def _rebuild(client: Client, store: Store, artifacts: Artifacts) -> int:
    found = [run async for run in runs(client, store, artifacts)]
    rows = [_row(run, event) for run in found for event in run.events]
    rows.sort(key=lambda row: (row.at, row.workflow_id, row.run_id, row.seq))
    with store.write() as session:
        session.exec(delete(JournalRow))
        for table in READ_MODELS:
            session.exec(delete(table))
        session.add_all(rows)
        session.flush()
        for workflow_id in sorted({row.workflow_id for row in rows}):
            session.add_all(views.fold([row for row in rows if row.workflow_id == workflow_id]))
    return len(rows)


async def verify(
    client: Client, store: Store, artifacts: Artifacts, models: Callable[[str], bool] = lambda _model: True
) -> Findings:
    """Compare journal and routes with histories, and read models with what the journal folds to.

    A run that is writing right now may be ahead in its history by the append in flight; that is said only
    when it is still so a moment later. *models*: whose routes are compared, where several stores share a Temporal.
    """
    findings = await _compare(client, store, artifacts, models)
    for _ in range(10):
        if not findings.differences:
            break
        await asyncio.sleep(0.5)
        findings = await _compare(client, store, artifacts, models)
    return findings


async def _compare(
    client: Client, store: Store, artifacts: Artifacts, models: Callable[[str], bool] | None = None
) -> Findings:
    findings = Findings()
    found = [run async for run in runs(client, store, artifacts)]
    with store.read() as session:
        journal = session.exec(select(JournalRow)).all()
        routes = session.exec(select(RouteRow)).all()
        kept = {
            (table.__name__, _identity(row)): views.plain(row)
            for table in READ_MODELS
            for row in session.exec(select(table)).all()
        }
    _compare_journal(findings, found, journal)
    _compare_rows(findings, journal, kept)
    if models is not None:
        _compare_routes(findings, found, routes, models)
    return findings


def _compare_journal(findings: Findings, found: list[Run], journal: Sequence[JournalRow]) -> None:
    rows = {(row.workflow_id, row.run_id, row.seq): row.body for row in journal}
    for run in found:
        findings.runs += 1
        for event in run.events:
            findings.events += 1
            key = (run.workflow_id, run.run_id, event.seq)
            body = rows.pop(key, None)
            if body is None:
                findings.differences.append(f"missing in the journal: {_name(key)} {event.type}")
            elif not views.same(body, event):
                findings.differences.append(f"the journal says otherwise: {_name(key)} {event.type}")
    findings.differences += [f"in the journal but in no history: {_name(key)}" for key in rows]


def _compare_routes(
    findings: Findings, found: list[Run], routes: Sequence[RouteRow], models: Callable[[str], bool]
) -> None:
    """A route is what the rollouts' histories made of it: whatever else changed it is an alarm."""
    ordered = sorted(found, key=lambda run: (run.started_at, run.run_id))
    said = views.routes_of(change for run in ordered for change in run.routes)
    every = said.keys() | {(row.project, row.model) for row in routes}
    for model in sorted(one for one in every if models(one[1])):
        change = said.get(model)
        row = next((row for row in routes if (row.project, row.model) == model), None)
        expected = _answers(change.version, change.release_seq) if change else _answers(0, 0)
        actual = _answers(row.version, row.release_seq) if row else _answers(0, 0)
        if (row.model_digest if row else "") != (change.model_digest if change else "") and expected == actual:
            actual += " with other bytes"
        if expected != actual:
            findings.differences.append(
                f"the route of {model[0]}/{model[1]}: {actual}, but by the histories {expected}"
            )


def _answers(version: int, release_seq: int) -> str:
    return f"version {version} answers (release {release_seq})" if version else "nothing answers"


def _compare_rows(
    findings: Findings, journal: Sequence[JournalRow], kept: dict[tuple[str, tuple[object, ...]], dict[str, Any]]
) -> None:
    by_workflow: dict[str, list[JournalRow]] = {}
    for row in journal:
        by_workflow.setdefault(row.workflow_id, []).append(row)
    for rows in by_workflow.values():
        for made in views.fold(rows):
            findings.rows += 1
            key = (type(made).__name__, _identity(made))
            if kept.pop(key, None) != views.plain(made):
                findings.differences.append(f"read model {key[0]} {key[1]} is not what the journal folds to")
    findings.differences += [f"read model {name} {identity} has no event" for name, identity in kept]


def _identity(row: SQLModel) -> tuple[object, ...]:
    return tuple(getattr(row, column.name) for column in type(row).__table__.primary_key)  # type: ignore[attr-defined]


def _name(key: tuple[str, str, int]) -> str:
    return f"{key[0]} run {key[1][:13]} number {key[2]}"
