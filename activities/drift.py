"""The watch over a model: its schedule, the next closed window, the measure, and the trigger ledger."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from sqlmodel import col, select
from temporalio import activity
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
    WorkflowExecutionStatus,
)
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from activities.registry import champion
from everloop import names
from everloop.contracts import (
    CheckRequest,
    DriftActivities,
    DriftComputeActivities,
    DriftRequest,
    MonitorRequest,
    NextWindow,
    TriggerAnswer,
    TriggerRequest,
    Watched,
)
from everloop.predictions import PredictionLog
from everloop.records import DriftReport, Version, Window
from everloop.settings import Settings
from everloop.specs import LifecycleSpec, Monitor
from everloop.store import MonitorRow, Store, TriggerRow, VersionRow

if TYPE_CHECKING:  # control uses this file too, and starts without Dask
    from activities.jobs.submit import Jobs

STARTING = timedelta(seconds=30)
"""A retraining may be decided and not started for this long."""
CATCH_UP = timedelta(minutes=10)
"""Ticks missed for longer are not made up: one check drains all windows that have closed meanwhile."""


class DriftCompute(DriftComputeActivities):
    """Runs on the compute worker: measures in a job child (compute/drift.py)."""

    def __init__(self, jobs: "Jobs") -> None:
        self._jobs = jobs

    @activity.defn(name="everloop.drift.measure")
    async def measure(self, request: DriftRequest) -> DriftReport:
        """Evidently's word on each column of the window against the reference sample of the release."""
        return await self._jobs.run("drift.measure", request, DriftReport)


class DriftLedger(DriftActivities):
    """Keeps schedules, cursors and the trigger ledger."""

    def __init__(self, store: Store, settings: Settings, client: Client) -> None:
        self._store = store
        self._settings = settings
        self._client = client

    @activity.defn(name="everloop.drift.watch")
    async def watch(self, request: MonitorRequest) -> Watched:
        """Make or change the model's schedule; the cursor stays where it is. Safe to repeat."""
        spec = request.spec
        await asyncio.to_thread(_keep_monitor, self._store, spec)
        handle = self._client.get_schedule_handle(names.monitor_id(spec.project, spec.model))
        if spec.monitor is None:
            await _gone(handle.delete())
            return Watched(sentence="not watched: the spec has no monitor")
        schedule = _schedule(spec, spec.monitor)
        try:
            await self._client.create_schedule(names.monitor_id(spec.project, spec.model), schedule)
        except ScheduleAlreadyRunningError:
            await handle.update(_replace_by(schedule))
        every = _spoken(spec.monitor.every)
        return Watched(sentence=f"checks each closed {spec.monitor.window} of event time, looking every {every}")

    @activity.defn(name="everloop.drift.next_window")
    async def next_window(self, request: CheckRequest) -> NextWindow:
        """The next window after the cursor that has closed, with what a check of it needs."""
        return await asyncio.to_thread(self._next_window, request)

    @activity.defn(name="everloop.drift.trigger")
    async def trigger(self, request: TriggerRequest) -> TriggerAnswer:
        """One row and one verdict per (model, window), and the cursor moves on. Asked again: the same answer."""
        running = await self._open_retraining(request)
        return await asyncio.to_thread(_trigger, self._store, request, running)

    async def _open_retraining(self, request: TriggerRequest) -> str:
        """The model's retraining that has not ended yet: a second one would only learn the same.

        Temporal says whether it runs: a check that was ended between its verdict and the start left none.
        """
        started = await asyncio.to_thread(_last_retraining, self._store, request)
        if started is None:
            return ""
        try:
            described = await self._client.get_workflow_handle(started.lifecycle).describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return started.lifecycle if datetime.now(UTC) - started.decided_at < STARTING else ""
        return started.lifecycle if described.status is WorkflowExecutionStatus.RUNNING else ""

    def _next_window(self, request: CheckRequest) -> NextWindow:
        with self._store.read() as session:
            row = session.get(MonitorRow, (request.project, request.model))
        now = champion(self._store, request.project, request.model)
        if row is None or now is None:
            return NextWindow(window=None)
        spec = LifecycleSpec.model_validate_json(row.spec)
        if spec.monitor is None:
            return NextWindow(window=None)
        log = PredictionLog(self._settings.predictions_dir / request.project / request.model)
        window = next_closed(log, spec.monitor, row.cursor, datetime.now(UTC))
        if window is None:
            return NextWindow(window=None)
        with self._store.read() as session:
            version = session.get_one(VersionRow, (request.project, request.model, now.version))
        reference = Version.model_validate_json(version.record).exported.reference
        needed = spec.monitor.minimum_rows
        rows = sum(1 for _ in islice(log.read(window), needed))
        return NextWindow(
            window=window,
            champion=now,
            reference_sha256=reference.sha256,
            monitor=spec.monitor,
            spec=spec,
            rows=rows,
            insufficient=f"{rows} rows in the window, {needed} are needed" if rows < needed else "",
        )


def next_closed(log: PredictionLog, monitor: Monitor, cursor: datetime | None, now: datetime) -> Window | None:
    """The first window at or after *cursor* that holds a row and has closed, else None.

    Event time closes it (a row later than its end by `lateness`), or silence (its end is past and nothing was
    logged for `idle`). Windows without a row are passed over.
    """
    first = log.first() if cursor is None else log.first_at_or_after(cursor)
    if first is None:
        return None
    window = window_of(first, monitor.window)
    until = window.end + monitor.lateness
    if log.closed(until):
        return window
    last = log.last_write()
    silent = last is not None and now - last >= monitor.idle
    return window if silent and now >= until else None


def window_of(moment: datetime, size: str) -> Window:
    """The calendar window (UTC) that *moment* lies in."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if size == "hour":
        start = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        return Window(start=start, end=start + timedelta(hours=1))
    if size == "day":
        return Window(start=day, end=day + timedelta(days=1))
    if size == "week":
        start = day - timedelta(days=day.weekday())
        return Window(start=start, end=start + timedelta(days=7))
    start = day.replace(day=1)
    return Window(start=start, end=(start + timedelta(days=32)).replace(day=1))


def _spoken(span: timedelta) -> str:
    seconds = span.total_seconds()
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}{'s' if seconds > length else ''}"
    return f"{seconds:g} seconds"


def _keep_monitor(store: Store, spec: LifecycleSpec) -> None:
    with store.write() as session:
        row = session.get(MonitorRow, (spec.project, spec.model))
        cursor = row.cursor if row else None
        session.merge(
            MonitorRow(
                project=spec.project,
                model=spec.model,
                cursor=cursor,
                spec=spec.model_dump_json(),
                updated_at=datetime.now(UTC),
            )
        )


def _schedule(spec: LifecycleSpec, monitor: Monitor) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            names.DRIFT_CHECK,
            CheckRequest(project=spec.project, model=spec.model),
            id=f"{names.monitor_id(spec.project, spec.model)}/check",
            task_queue=names.CONTROL,
            static_summary=f"Drift check of {spec.model}",
            typed_search_attributes=TypedSearchAttributes(
                [SearchAttributePair(names.PROJECT, spec.project), SearchAttributePair(names.MODEL, spec.model)]
            ),
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=monitor.every)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=CATCH_UP),
    )


def _replace_by(schedule: Schedule) -> Callable[[ScheduleUpdateInput], ScheduleUpdate]:
    def update(current: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule.state = current.description.schedule.state  # a person's pause stays a pause
        return ScheduleUpdate(schedule=schedule)

    return update


async def _gone(deletion: Awaitable[None]) -> None:
    try:
        await deletion
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise


def _trigger(store: Store, request: TriggerRequest, running: str) -> TriggerAnswer:
    with store.write() as session:
        key = (request.project, request.model, request.window.start)
        known = session.get(TriggerRow, key)
        if known is not None:
            return TriggerAnswer.model_validate(known, from_attributes=True)
        answer = _decide(request, running)
        session.add(
            TriggerRow(
                project=request.project,
                model=request.model,
                window_start=request.window.start,
                window_end=request.window.end,
                version=request.version,
                share=request.share,
                verdict=answer.verdict,
                reason=answer.reason,
                lifecycle=answer.lifecycle,
                decided_at=datetime.now(UTC),
            )
        )
        monitor = session.get_one(MonitorRow, (request.project, request.model))
        monitor.cursor = request.window.end
        session.add(monitor)
        return answer


def _decide(request: TriggerRequest, running: str) -> TriggerAnswer:
    if request.failed:
        return TriggerAnswer(verdict="failed", reason=request.failed)
    if request.share is None:
        return TriggerAnswer(verdict="insufficient_data", reason=request.insufficient)
    figures = f"{request.share:.0%} of the columns drifted; the threshold is {request.threshold:.0%}"
    if request.share < request.threshold:
        return TriggerAnswer(verdict="quiet", reason=figures)
    if running:
        return TriggerAnswer(
            verdict="already_triggered", reason=f"{figures}; {running} is still open", lifecycle=running
        )
    lifecycle = names.retrain_id(request.project, request.model, request.window.start)
    return TriggerAnswer(verdict="retrain", reason=figures, lifecycle=lifecycle)


def _last_retraining(store: Store, request: TriggerRequest) -> TriggerRow | None:
    with store.read() as session:
        return session.exec(
            select(TriggerRow)
            .where(
                TriggerRow.project == request.project,
                TriggerRow.model == request.model,
                TriggerRow.verdict == "retrain",
            )
            .order_by(col(TriggerRow.window_start).desc())
        ).first()
