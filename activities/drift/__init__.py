"""The watch over a model: its schedule, the next closed window, the measure, and the trigger ledger."""

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from temporalio import activity
from temporalio.client import Client, ScheduleAlreadyRunningError
from temporalio.service import RPCError, RPCStatusCode

from activities.caller import caller
from activities.drift import ledger, retrainings, schedules, windows
from activities.predictions.index import LogIndex
from activities.registry import champion
from activities.schema_breaks import too_few, unanswered
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
from everloop.predictions.refusals import files_of, refused_in
from everloop.records import DriftReport, Version
from everloop.settings import Settings
from everloop.specs import LifecycleSpec
from everloop.store import MonitorRow, Store, VersionRow
from everloop.windows import begins

if TYPE_CHECKING:  # control uses this file too, and starts without Dask
    from activities.jobs.submit import Jobs


class DriftCompute(DriftComputeActivities):
    """Runs on the compute worker: measures in a job child (compute/drift)."""

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
        # What was refused is counted beside the log; a job on another host must hear of it too.
        reads = index.below([*(part.name for part in parts.parts), *files_of(index.folder)])
        return await self._jobs.run("drift.measure", request.model_copy(update={"log": parts}), DriftReport, reads)


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
        cursor = await asyncio.to_thread(schedules.keep, self._store, spec)
        handle = self._client.get_schedule_handle(names.monitor_id(spec.project, spec.model))
        if spec.monitor is None:
            await schedules.gone(handle.delete())
            return Watched(sentence="not watched: the spec has no monitor")
        schedule = schedules.schedule(spec, spec.monitor)
        try:
            await self._client.create_schedule(names.monitor_id(spec.project, spec.model), schedule)
        except ScheduleAlreadyRunningError:
            await handle.update(schedules.replace_by(schedule))
        every = schedules.spoken(spec.monitor.every)
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
        running = await retrainings.open_retraining(self._store, self._client, request.project, request.model)
        lifecycle = await self._retraining_of(request)
        return await asyncio.to_thread(ledger.decide, self._store, request, running, lifecycle)

    async def _retraining_of(self, request: TriggerRequest) -> str:
        """The id of the retraining that the window may cause; as older releases named it, where one is known so."""
        old = names.retrain_id(request.project, request.model, request.window.start)
        new = names.retrain_id(request.project, request.model, request.window.start, request.window.end)
        if request.share is None or (request.share < request.threshold and not ledger.heeded(request)):
            return new
        if await asyncio.to_thread(retrainings.of_another_window, self._store, request, old):
            return new
        try:
            await self._client.get_workflow_handle(old).describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return new
        return old

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
            window = windows.next_closed(log, spec.monitor, row.cursor, at)
            if window is not None:
                log.close(window.end)
        if window is None:
            windows.count_late_rows(self._store, row)
            return NextWindow(window=None)
        with self._store.read() as session:
            row_of_it = session.get_one(VersionRow, (request.project, request.model, now.version))
        version = Version.model_validate_json(row_of_it.record)
        reference = version.exported.reference
        needed = spec.monitor.minimum_rows
        rows = min(log.rows(window), needed)  # the measure counts them exactly
        refused = refused_in(log.folder, window) if rows < needed else {}
        measures, broken = unanswered(refused, rows, spec.monitor)
        return NextWindow(
            window=window,
            champion=now,
            reference_sha256=reference.sha256,
            monitor=spec.monitor,
            spec=spec,
            rows=rows,
            insufficient=too_few(rows, sum(refused.values()), needed) if rows < needed else "",
            measures=measures,
            broken=broken,
            closed_at=at,
            evaluation=version.evaluation.report,
        )
