"""Labels: when they are looked at, and what follows from what they say."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlmodel import Session, select
from temporalio import activity
from temporalio.client import Client

from activities.caller import caller
from activities.drift.ledger import before
from activities.drift.quarantine import still_quarantined
from activities.drift.retrainings import open_retraining
from activities.predictions.index import LogIndex
from activities.registry import champion
from activities.trigger_policy import held_back
from everloop import names
from everloop.contracts import (
    CheckRequest,
    JudgeAnswer,
    Judged,
    JudgeRequest,
    LabelActivities,
    LabelComputeActivities,
    LabelsDue,
    PerformanceRequest,
)
from everloop.labels import LabelLog
from everloop.records import PerformanceReport, Version, Window, WindowPerformance
from everloop.settings import Settings
from everloop.specs import HIGHER_IS_BETTER, LifecycleSpec, Monitor
from everloop.store import LabelsRow, MonitorRow, PerformanceRow, Store, TriggerRow, VersionRow

if TYPE_CHECKING:  # control uses this file too, and starts without Dask
    from activities.jobs.submit import Jobs

QUIET = timedelta(seconds=2)
"""Labels are looked at when none has come for this long,"""
PATIENCE = timedelta(minutes=1)
"""or when they were last looked at so long ago."""
SEED = 0


class LabelCompute(LabelComputeActivities):
    """Runs on the compute worker: joins in a job child (compute/performance.py)."""

    def __init__(self, jobs: "Jobs", store: Store, settings: Settings) -> None:
        self._jobs = jobs
        self._store = store
        self._settings = settings

    @activity.defn(name="everloop.labels.perform")
    async def perform(self, request: PerformanceRequest) -> PerformanceReport:
        """Each prediction with what became of it, window by window."""
        index = LogIndex(self._store, self._settings.predictions_dir, request.project, request.model)
        parts = await asyncio.to_thread(index.parts)
        asked = request.model_copy(update={"log": parts})
        labels = LabelLog(index.folder).path.relative_to(index.folder)
        reads = index.below([str(labels), *(part.name for part in parts.parts)])
        return await self._jobs.run("performance.measure", asked, PerformanceReport, reads)


class LabelLedger(LabelActivities):
    """Keeps what the labels said, and the decisions that followed."""

    def __init__(self, store: Store, settings: Settings, client: Client) -> None:
        self._store = store
        self._settings = settings
        self._client = client

    @activity.defn(name="everloop.labels.due")
    async def due(self, request: CheckRequest) -> LabelsDue:
        """What to ask of the labels that have come, or that windows were decided for since; nothing is due often."""
        return await asyncio.to_thread(self._due, request)

    @activity.defn(name="everloop.labels.judge")
    async def judge(self, request: JudgeRequest) -> JudgeAnswer:
        """Keep what the labels say. One retraining per window at most. Asked again: the same answer."""
        caller(names.DRIFT_CHECK)
        running = await open_retraining(self._store, self._client, request.project, request.model)
        return await asyncio.to_thread(_judge, self._store, request, running)

    def _due(self, request: CheckRequest) -> LabelsDue:
        key = (request.project, request.model)
        log = LabelLog(self._settings.predictions_dir / request.project / request.model)
        size, last, now = log.size(), log.last_write(), datetime.now(UTC)
        with self._store.read() as session:
            monitor, seen = session.get(MonitorRow, key), session.get(LabelsRow, key)
        known = champion(self._store, *key)
        if monitor is None or monitor.cursor is None or known is None or last is None:
            return LabelsDue()
        spec = LifecycleSpec.model_validate_json(monitor.spec)
        if spec.monitor is None or (seen is not None and not _news(self._store, seen, size)):
            return LabelsDue()
        if now - last < QUIET and seen is not None and now - seen.measured_at < PATIENCE:
            return LabelsDue()
        with self._store.read() as session:
            row = session.get_one(VersionRow, (*key, known.version))
        return LabelsDue(
            spec=spec,
            request=PerformanceRequest(
                project=request.project,
                model=request.model,
                champion=known,
                evaluation=Version.model_validate_json(row.record).evaluation.report,
                metric=spec.objective,
                size=spec.monitor.window,
                until=monitor.cursor,
                labels_bytes=size,
                minimum_rows=spec.monitor.minimum_rows,
                seed=SEED,
            ),
        )


def _news(store: Store, seen: LabelsRow, size: int) -> bool:
    """Have labels come, or was a window decided, since they were last looked at?"""
    if size > seen.seen_bytes:
        return True
    with store.read() as session:
        later = select(TriggerRow).where(
            TriggerRow.project == seen.project, TriggerRow.model == seen.model, TriggerRow.decided_at > seen.measured_at
        )
        return seen.labels > seen.joined and session.exec(later).first() is not None


def _judge(store: Store, request: JudgeRequest, running: str) -> JudgeAnswer:
    with store.write() as session:
        monitor = session.get_one(MonitorRow, (request.project, request.model))
        _keep_counts(session, request)
        rules = (request.spec or LifecycleSpec.model_validate_json(monitor.spec)).monitor
        told = []
        for performance in request.report.windows:
            row, tested = _kept(session, request, performance)
            row.over = rules is not None and is_worse(row, rules, tested)
            found = _decided(session, monitor, rules, request.version, performance, row, running)
            session.add(row)
            session.flush()
            if found is not None:
                told.append(found)
                running = running or found.lifecycle
        return JudgeAnswer(judged=tuple(told))


def _keep_counts(session: Session, request: JudgeRequest) -> None:
    row = session.get(LabelsRow, (request.project, request.model)) or LabelsRow(
        project=request.project, model=request.model, seen_bytes=0, measured_at=datetime.now(UTC)
    )
    row.seen_bytes = max(row.seen_bytes, request.labels_bytes)
    row.failed, row.measured_at = request.failed, datetime.now(UTC)
    if not request.failed:
        row.labels, row.joined, row.corrected = (
            request.report.labels,
            request.report.joined,
            request.report.corrected,
        )
    session.add(row)


def _kept(session: Session, request: JudgeRequest, told: WindowPerformance) -> tuple[PerformanceRow, int]:
    """The window's row with the new figures, and of how many rows the evaluation was that it is compared with."""
    key = (request.project, request.model, told.window.start, told.window.end)
    figures = told.model_dump(include={"version", "rows", "labelled", "metric", "value", "low", "high"})
    row = session.get(PerformanceRow, key)
    if row is None:
        row = PerformanceRow(
            **figures,
            project=request.project,
            model=request.model,
            window_start=told.window.start,
            window_end=told.window.end,
            measured_at=datetime.now(UTC),
        )
    for name, value in figures.items():
        setattr(row, name, value)
    version = session.get(VersionRow, (request.project, request.model, told.version))
    record = Version.model_validate_json(version.record) if version else None
    row.expected = record.evaluation.metrics.get(told.metric) if record else None
    row.target = told.target.model_dump(mode="json") if told.target else {}
    row.measured_at = datetime.now(UTC)
    return row, record.evaluation.rows if record else 0


def _decided(  # noqa: PLR0917
    session: Session,
    monitor: MonitorRow,
    rules: Monitor | None,
    champion_version: int,
    told: WindowPerformance,
    row: PerformanceRow,
    running: str,
) -> Judged | None:
    """What follows from the performance of a window; None: nothing. What was decided once stays as it is."""
    drifted = bool(rules and "target" in rules.also and told.target and told.target.over)
    heeded = (rules and "performance" in rules.also and row.over) or drifted
    if row.verdict == "retrain":
        return Judged(performance=told, verdict="retrain", reason=row.reason, lifecycle=row.lifecycle)
    if rules is None or not heeded or told.version != champion_version or not told.alone:
        row.verdict, row.reason = "", ""
        return None
    why = _why(row) if row.over else (told.target.why if told.target else "")
    verdict, reason, lifecycle = _verdict(session, monitor, told, rules, running)
    row.verdict, row.lifecycle = verdict, lifecycle
    row.reason = f"{why}; {reason}" if reason else why
    return Judged.model_validate(
        {"performance": told, "verdict": row.verdict, "reason": row.reason, "lifecycle": row.lifecycle}
    )


def _verdict(
    session: Session, monitor: MonitorRow, told: WindowPerformance, rules: Monitor, running: str
) -> tuple[str, str, str]:
    """Verdict, reason and lifecycle."""
    key = (monitor.project, monitor.model, told.window.start, told.window.end)
    first = session.get(TriggerRow, key)
    if first is not None and first.verdict == "retrain":
        return "already_triggered", "the drift of this window has caused a retraining", first.lifecycle
    if monitor.quarantined_at is not None:
        return "quarantined", still_quarantined(monitor), ""
    if running:
        return "already_triggered", f"{running} is still open", running
    now = Window(start=monitor.cursor or told.window.end, end=monitor.cursor or told.window.end)
    past = [one for one in before(session, monitor) if one.retrained or one.window.end <= told.window.start]
    held = held_back(now, told.version, rules, past, monitor.rearmed_at, frozenset({"performance"}))
    if held is not None:
        return held[0], held[1], ""
    return "retrain", "", names.retrain_id(*key)


def is_worse(row: PerformanceRow, rules: Monitor, tested: int) -> bool:
    """Is the whole interval worse than at the evaluation, by more than the monitor lets pass?

    The evaluation is a sample, too, of *tested* rows: the interval is wider by what these leave open. A lucky figure
    of a few hundred rows would else be missed by every window.
    """
    if row.expected is None:
        return False
    wider = math.sqrt(1 + row.labelled / max(tested, 1))
    if row.metric in HIGHER_IS_BETTER:
        return row.value + (row.high - row.value) * wider < row.expected - rules.worse_by
    return row.value - (row.value - row.low) * wider > row.expected + rules.worse_by


def _why(row: PerformanceRow) -> str:
    return (
        f"its labels say {row.metric} {row.value:.4g} ({row.low:.4g} to {row.high:.4g}); "
        f"{row.expected or 0:.4g} at the evaluation of version {row.version}"
    )
