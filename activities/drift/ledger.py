"""The trigger ledger: one row and one verdict per window, and what was decided before."""

from datetime import UTC, datetime

from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from activities.drift.quarantine import quarantined, still_quarantined
from activities.trigger_policy import COLUMNS, Before, held_back
from everloop.contracts import TriggerAnswer, TriggerRequest
from everloop.records import Window
from everloop.specs import LifecycleSpec, Monitor
from everloop.store import LifecycleRow, MonitorRow, PerformanceRow, Store, TriggerRow

MOST_BEFORE = 2_000
"""Windows that the monitor's rules look back at."""


def decide(store: Store, request: TriggerRequest, running: str, lifecycle: str) -> TriggerAnswer:
    with store.write() as session:
        monitor = session.get_one(MonitorRow, (request.project, request.model))
        monitor.cursor = max(monitor.cursor or request.window.end, request.window.end)
        session.add(monitor)
        known = session.get(TriggerRow, (request.project, request.model, request.window.start, request.window.end))
        if known is not None:
            return TriggerAnswer.model_validate(known, from_attributes=True)
        answer = _verdict(session, monitor, request, running, lifecycle)
        session.add(
            TriggerRow(
                over=sorted(heeded(request)),
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


def _verdict(
    session: Session, monitor: MonitorRow, request: TriggerRequest, running: str, lifecycle: str
) -> TriggerAnswer:
    if request.failed:
        return TriggerAnswer(verdict="failed", reason=request.failed)
    if request.share is None:
        broken = quarantined(monitor, request)  # what was refused says so, also where nothing was answered
        return TriggerAnswer(
            verdict="quarantined" if broken else "insufficient_data", reason=broken or request.insufficient
        )
    return _judged(session, monitor, request, request.share, running, lifecycle)


def _judged(  # noqa: PLR0917
    session: Session, monitor: MonitorRow, request: TriggerRequest, share: float, running: str, lifecycle: str
) -> TriggerAnswer:
    """What follows from a window that was measured."""
    rules = request.spec.monitor
    broken = quarantined(monitor, request)
    if broken:
        return TriggerAnswer(verdict="quarantined", reason=broken)
    beside = heeded(request)
    figures = f"{share:.0%} of the columns drifted; the threshold is {request.threshold:.0%}"
    figures = "; ".join([figures, *(measure.why for measure in request.measures if measure.name in beside)])
    over = beside | (COLUMNS if share >= request.threshold else frozenset())
    if not over:
        return TriggerAnswer(verdict="quiet", reason=figures)
    if monitor.quarantined_at is not None:
        return TriggerAnswer(verdict="quarantined", reason=f"{figures}; {still_quarantined(monitor)}")
    if running:
        return TriggerAnswer(
            verdict="already_triggered", reason=f"{figures}; {running} is still open", lifecycle=running
        )
    held = rules and held_back(
        request.window, request.version, rules, before(session, monitor), monitor.rearmed_at, over
    )
    if held:
        return TriggerAnswer(verdict=held[0], reason=f"{figures}; {held[1]}")
    return TriggerAnswer(verdict="retrain", reason=figures, lifecycle=lifecycle)


def before(session: Session, monitor: MonitorRow) -> list[Before]:
    """What was decided about the model's windows, oldest first, and how its retrainings have ended.

    What the labels said later of a window stands with it.
    """
    latest = decided(monitor).order_by(None).order_by(col(TriggerRow.window_start).desc()).limit(MOST_BEFORE)
    rows = session.exec(latest).all()[::-1]
    judged = select(PerformanceRow).where(
        PerformanceRow.project == monitor.project, PerformanceRow.model == monitor.model
    )
    labels = {(row.window_start, row.window_end): row for row in session.exec(judged)}
    ids = [row.lifecycle for row in rows if row.verdict == "retrain"]
    ids += [row.lifecycle for row in labels.values() if row.verdict == "retrain"]
    ended = select(LifecycleRow.id, LifecycleRow.status).where(col(LifecycleRow.id).in_(ids))
    outcomes: dict[str, str] = dict(session.exec(ended).all())
    rules = LifecycleSpec.model_validate_json(monitor.spec).monitor
    return [_earlier(row, labels.get((row.window_start, row.window_end)), outcomes, rules) for row in rows]


def _earlier(row: TriggerRow, labels: PerformanceRow | None, outcomes: dict[str, str], rules: Monitor | None) -> Before:
    over = set(row.over) | ({"performance"} if labels is not None and labels.over else set())
    if row.share is not None and rules is not None and row.share >= rules.share:
        over |= COLUMNS
    both: list[TriggerRow | PerformanceRow] = [row, *([labels] if labels is not None else [])]
    causes = [one for one in both if one.verdict == "retrain"]
    return Before(
        window=Window(start=row.window_start, end=row.window_end),
        version=causes[0].version if causes else row.version,
        share=row.share,
        retrained=bool(causes),
        outcome=outcomes.get(causes[0].lifecycle, "") if causes else "",
        over=None if row.share is None and not over else frozenset(over),
    )


def heeded(request: TriggerRequest) -> frozenset[str]:
    """The measures beside the columns' drift that are over, of those that the monitor was told to heed."""
    rules = request.spec.monitor
    also: set[str] = set(rules.also) if rules else set()
    if "quality" in also:
        also |= {"missing", "new_categories", "out_of_range", "schema"}
    return frozenset(measure.name for measure in request.measures if measure.over and measure.name in also)


def decided(monitor: MonitorRow) -> SelectOfScalar[TriggerRow]:
    """The windows that were decided, by their start."""
    return (
        select(TriggerRow)
        .where(TriggerRow.project == monitor.project, TriggerRow.model == monitor.model)
        .order_by(col(TriggerRow.window_start), col(TriggerRow.window_end))
    )
