"""The watch over a model: its schedule, the next closed window, the measure, and the trigger ledger."""

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar
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

from activities.caller import caller
from activities.predictions.index import LogIndex
from activities.registry import champion
from activities.trigger_policy import Before, held_back
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
from everloop.errors import Conflict
from everloop.records import DriftReport, Version, Window
from everloop.settings import Settings
from everloop.specs import LifecycleSpec, Monitor
from everloop.store import LifecycleRow, LogHourRow, MonitorRow, Store, TriggerRow, VersionRow

if TYPE_CHECKING:  # control uses this file too, and starts without Dask
    from activities.jobs.submit import Jobs

STARTING = timedelta(seconds=30)
"""A retraining may be decided and not started for this long."""
MOST_BEFORE = 2_000
"""Windows that the monitor's rules look back at."""
CATCH_UP = timedelta(minutes=10)
"""Ticks missed for longer are not made up: one check drains all windows that have closed meanwhile."""


class DriftCompute(DriftComputeActivities):
    """Runs on the compute worker: measures in a job child (compute/drift.py)."""

    def __init__(self, jobs: "Jobs", store: Store, settings: Settings) -> None:
        self._jobs = jobs
        self._store = store
        self._settings = settings

    @activity.defn(name="everloop.drift.measure")
    async def measure(self, request: DriftRequest) -> DriftReport:
        """Evidently's word on each column of the window against the reference sample of the release."""
        index = LogIndex(self._store, self._settings.predictions_dir, request.project, request.model)
        # Here and not in the workflow: files that are replaced by others stay for a while only.
        parts = await asyncio.to_thread(index.parts, request.window)
        return await self._jobs.run("drift.measure", request.model_copy(update={"log": parts}), DriftReport)


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
        cursor = await asyncio.to_thread(_keep_monitor, self._store, spec)
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
        since = f" from {begins(cursor, spec.monitor.window):%Y-%m-%d %H:%M} UTC on" if cursor else ""
        return Watched(sentence=f"checks each closed {spec.monitor.window} of event time{since}, looking every {every}")

    @activity.defn(name="everloop.drift.next_window")
    async def next_window(self, request: CheckRequest) -> NextWindow:
        """The next window after the cursor that has closed, with what a check of it needs."""
        return await asyncio.to_thread(self._next_window, request)

    @activity.defn(name="everloop.drift.trigger")
    async def trigger(self, request: TriggerRequest) -> TriggerAnswer:
        """One row and one verdict per (model, window), and the cursor moves on. Asked again: the same answer."""
        caller(names.DRIFT_CHECK)
        if request.window.end > datetime.now(UTC):
            raise Conflict(f"the window that ends at {request.window.end:%Y-%m-%d %H:%M} UTC is not over yet")
        running = await self._open_retraining(request)
        lifecycle = await self._retraining_of(request)
        return await asyncio.to_thread(_trigger, self._store, request, running, lifecycle)

    async def _retraining_of(self, request: TriggerRequest) -> str:
        """The id of the retraining that the window may cause; as older releases named it, where one is known so."""
        old = names.retrain_id(request.project, request.model, request.window.start)
        new = names.retrain_id(request.project, request.model, request.window.start, request.window.end)
        if request.share is None or request.share < request.threshold:
            return new
        if await asyncio.to_thread(_of_another_window, self._store, request, old):
            return new
        try:
            await self._client.get_workflow_handle(old).describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return new
        return old

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
        log = LogIndex(self._store, self._settings.predictions_dir, request.project, request.model)
        at = datetime.now(UTC)
        with log.alone():
            log.refresh(at)
            window = next_closed(log, spec.monitor, row.cursor, at)
            if window is not None:
                log.close(window.end)
        if window is None:
            _count_late_rows(self._store, row)
            return NextWindow(window=None)
        with self._store.read() as session:
            version = session.get_one(VersionRow, (request.project, request.model, now.version))
        reference = Version.model_validate_json(version.record).exported.reference
        needed = spec.monitor.minimum_rows
        rows = min(log.rows(window), needed)  # the measure counts them exactly
        return NextWindow(
            window=window,
            champion=now,
            reference_sha256=reference.sha256,
            monitor=spec.monitor,
            spec=spec,
            rows=rows,
            insufficient=f"{rows} rows in the window, {needed} are needed" if rows < needed else "",
            closed_at=at,
        )


def next_closed(log: LogIndex, monitor: Monitor, cursor: datetime | None, now: datetime) -> Window | None:
    """The first window that begins at or after *cursor*, holds a row and has closed, else None.

    It closes when its end is past by the clock, and then by event time (a row later than its end by `lateness`), or
    by silence (nothing was logged for `idle`). Rows ahead of the clock are no watermark: they are ordinary rows when
    their time comes. Windows without a row are passed over.
    """
    window = _next_with_a_row(log, monitor.window, cursor, now)
    if window is None or window.end > now:
        return None
    until = window.end + monitor.lateness
    if log.closed(until, now):
        return window
    last = log.last_write(now)
    silent = last is not None and now - last >= monitor.idle
    return window if silent and now >= until else None


def _next_with_a_row(log: LogIndex, size: str, cursor: datetime | None, now: datetime) -> Window | None:
    first = log.first() if cursor is None else log.first_at_or_after(begins(cursor, size))
    return None if first is None or first > now else window_of(first, size)


def begins(cursor: datetime, size: str) -> datetime:
    """When the first window of *size* begins that has nothing in common with what was decided up to *cursor*.

    It is *cursor* itself unless the monitor's window has changed its size since.
    """
    window = window_of(cursor, size)
    return window.start if window.start >= cursor else window.end


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


def _keep_monitor(store: Store, spec: LifecycleSpec) -> datetime | None:
    """Keep what the model's monitor is made from. Returns its cursor, which stays where it is."""
    with store.write() as session:
        row = session.get(MonitorRow, (spec.project, spec.model)) or MonitorRow(
            project=spec.project, model=spec.model, spec="", updated_at=datetime.now(UTC)
        )
        row.spec, row.updated_at = spec.model_dump_json(), datetime.now(UTC)
        session.add(row)
        return row.cursor


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


def _trigger(store: Store, request: TriggerRequest, running: str, lifecycle: str) -> TriggerAnswer:
    with store.write() as session:
        monitor = session.get_one(MonitorRow, (request.project, request.model))
        monitor.cursor = max(monitor.cursor or request.window.end, request.window.end)
        session.add(monitor)
        known = session.get(TriggerRow, (request.project, request.model, request.window.start, request.window.end))
        if known is not None:
            return TriggerAnswer.model_validate(known, from_attributes=True)
        answer = _decide(session, monitor, request, running, lifecycle)
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
                closed_at=request.closed_at,
            )
        )
        return answer


def _decide(
    session: Session, monitor: MonitorRow, request: TriggerRequest, running: str, lifecycle: str
) -> TriggerAnswer:
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
    rules = request.spec.monitor
    held = rules and held_back(request.window, request.version, rules, _before(session, monitor), monitor.rearmed_at)
    if held:
        return TriggerAnswer(verdict=held[0], reason=f"{figures}; {held[1]}")
    return TriggerAnswer(verdict="retrain", reason=figures, lifecycle=lifecycle)


def _before(session: Session, monitor: MonitorRow) -> list[Before]:
    """What was decided about the model's windows, oldest first, and how its retrainings have ended."""
    latest = _decided(monitor).order_by(None).order_by(col(TriggerRow.window_start).desc()).limit(MOST_BEFORE)
    decided = session.exec(latest).all()[::-1]
    ids = [row.lifecycle for row in decided if row.verdict == "retrain"]
    ended = select(LifecycleRow.id, LifecycleRow.status).where(col(LifecycleRow.id).in_(ids))
    outcomes: dict[str, str] = dict(session.exec(ended).all())
    return [
        Before(
            window=Window(start=row.window_start, end=row.window_end),
            version=row.version,
            share=row.share,
            retrained=row.verdict == "retrain",
            outcome=outcomes.get(row.lifecycle, ""),
        )
        for row in decided
    ]


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


def _of_another_window(store: Store, request: TriggerRequest, lifecycle: str) -> bool:
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


def _count_late_rows(store: Store, monitor: MonitorRow) -> None:
    """Add to each decided window the rows that came after it had closed, and were not yet added."""
    if monitor.cursor is None:
        return
    of_model = (LogHourRow.project == monitor.project, LogHourRow.model == monitor.model)
    late = select(LogHourRow).where(*of_model, col(LogHourRow.hour) < monitor.cursor, LogHourRow.late > 0)
    with store.read() as session:
        if session.exec(late).first() is None:
            return
    with store.write() as session:
        decided = session.exec(_decided(monitor)).all()
        for row in session.exec(late).all():
            place = bisect_right(decided, row.hour, key=lambda window: window.window_start) - 1
            if place >= 0 and row.hour < decided[place].window_end:
                decided[place].late_rows += row.late
                session.add(decided[place])
            row.late = 0
            session.add(row)


def _decided(monitor: MonitorRow) -> SelectOfScalar[TriggerRow]:
    """The windows that were decided, by their start."""
    return (
        select(TriggerRow)
        .where(TriggerRow.project == monitor.project, TriggerRow.model == monitor.model)
        .order_by(col(TriggerRow.window_start), col(TriggerRow.window_end))
    )
