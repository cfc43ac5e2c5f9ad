"""The journal and its read models, as pure functions.

`project` reads domain events out of a Temporal history, `fold` makes a workflow's rows out of its events.
Used alike by the live append, by `journal rebuild`, by `journal verify` and by the repair after a Reset.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter
from sqlmodel import SQLModel
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.converter import DataConverter

from everloop import names
from everloop.contracts import AppendRequest, LifecycleRequest
from everloop.events import (
    ApprovalClosed,
    ApprovalDecided,
    ApprovalOpened,
    ChallengerCompared,
    DriftChecked,
    Event,
    LifecycleFinished,
    LifecycleSubmitted,
    ModelReleased,
    ReleaseRolledBack,
    StageFailed,
    StageFinished,
    StageRetried,
    StageSkipped,
    StageStarted,
    VersionRegistered,
    WaitBegan,
    WaitEnded,
)
from everloop.signing import canonical
from everloop.store import ApprovalRow, DriftRow, JournalRow, LifecycleRow, ReleaseRow, StageRow

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
OPEN_STATUSES = ("running", "waiting_approval", "needs_attention")


def body(event: Event) -> str:
    """The one JSON text of an event, as the journal keeps it."""
    return canonical(event).decode()


def parse(row: JournalRow) -> Event:
    """The event of a journal row."""
    return EVENT.validate_json(row.body)


def project(history: Iterable[HistoryEvent], converter: DataConverter) -> list[Event]:
    """The domain events of one run, in order: what its appends were given, and how it was ended from outside.

    The same whenever it is asked: a run that a Reset ended has that end for a fact too; `fold` shows the later run.
    """
    found: list[Event] = []
    ended: HistoryEvent | None = None
    started: HistoryEvent | None = None
    for entry in history:
        if entry.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
            started = entry
        elif entry.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            attributes = entry.activity_task_scheduled_event_attributes
            if attributes.activity_type.name == names.JOURNAL_APPEND:
                (request,) = converter.payload_converter.from_payloads(attributes.input.payloads, [AppendRequest])
                found.extend(request.events)
        elif entry.event_type in _ENDINGS:
            ended = entry
    if ended is not None and started is not None and not found:
        found += _never_begun(started, converter)
    if ended is not None and found:
        found += _ended_from_outside(ended, found)
    return found


_ENDINGS = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: "terminated",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT: "failed",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: "failed",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: "cancelled",
}


def _never_begun(started: HistoryEvent, converter: DataConverter) -> list[Event]:
    """The first fact of a lifecycle that was ended before it could write one."""
    attributes = started.workflow_execution_started_event_attributes
    if attributes.workflow_type.name != names.LIFECYCLE:
        return []
    try:
        (request,) = converter.payload_converter.from_payloads(attributes.input.payloads, [LifecycleRequest])
        submitted = request.submitted()
    except Exception:  # noqa: BLE001  # whatever somebody has typed as its input
        return []
    return [submitted.model_copy(update={"seq": 0, "at": started.event_time.ToDatetime(tzinfo=UTC)})]


def _ended_from_outside(entry: HistoryEvent, found: Sequence[Event]) -> list[Event]:
    """The closing fact that a run could not write itself, if it wrote none."""
    if any(isinstance(event, LifecycleFinished | ApprovalClosed) for event in found):
        return []
    outcome = _ENDINGS[entry.event_type]
    reason = f"the workflow was {outcome} in Temporal{_said(entry)}"
    at: datetime = entry.event_time.ToDatetime(tzinfo=found[0].at.tzinfo)
    seq = found[-1].seq + 1
    if isinstance(found[0], LifecycleSubmitted):
        return [LifecycleFinished.model_validate({"seq": seq, "at": at, "outcome": outcome, "reason": reason})]
    if isinstance(found[0], ApprovalOpened):
        return [ApprovalClosed.model_validate({"seq": seq, "at": at, "outcome": outcome, "reason": reason})]
    return []


def _said(entry: HistoryEvent) -> str:
    terminated = entry.workflow_execution_terminated_event_attributes.reason
    failed = entry.workflow_execution_failed_event_attributes.failure.message
    return f": {terminated or failed}" if terminated or failed else ""


def fold(rows: Iterable[JournalRow]) -> list[SQLModel]:
    """The read-model rows of one workflow, from all its journal rows (any order, any number of runs).

    A lifecycle or gate shows its latest run: the one that started last.
    """
    by_run: dict[str, list[JournalRow]] = {}
    for row in rows:
        by_run.setdefault(row.run_id, []).append(row)
    made: list[SQLModel] = []
    for run_id in sorted(by_run, key=lambda run_id: (by_run[run_id][0].run_started_at, run_id)):
        ordered = sorted(by_run[run_id], key=lambda row: row.seq)
        events = [parse(row) for row in ordered]
        workflow_id = ordered[0].workflow_id
        first = events[0]
        if isinstance(first, LifecycleSubmitted):
            made = _lifecycle(workflow_id, run_id, first, events)
        elif isinstance(first, ApprovalOpened):
            made = [_approval(workflow_id, run_id, first, events)]
        else:
            made += _releases(workflow_id, run_id, events) + _checks(workflow_id, run_id, events)
    return made


def _lifecycle(workflow_id: str, run_id: str, first: LifecycleSubmitted, events: Sequence[Event]) -> list[SQLModel]:
    row = LifecycleRow(
        id=workflow_id,
        run_id=run_id,
        project=first.project,
        model=first.model,
        task=first.task,
        trigger=first.trigger,
        submitted_by=first.submitted_by,
        submitted_at=first.at,
        updated_at=first.at,
        body_digest=first.body_digest,
        spec=first.spec,
        status="running",
    )
    stages: list[StageRow] = []
    for event in events:
        row.updated_at = event.at
        _apply_to_lifecycle(row, event)
        _apply_to_stages(workflow_id, stages, event)
    return [row, *stages]


def _apply_to_lifecycle(row: LifecycleRow, event: Event) -> None:
    match event:
        case StageStarted():
            row.stage, row.error = event.stage, {}
        case StageFinished() if event.stage == "evaluate":
            row.metrics = event.metrics
        case StageFailed():
            row.error = event.model_dump(mode="json", exclude={"type", "seq", "at"})
        case StageSkipped() | StageRetried():
            row.error = {}
        case WaitBegan():
            row.wait_what, row.wait_since, row.wait_unblocks = event.wait.what, event.wait.since, event.wait.unblocks
            row.status = {"approval": "waiting_approval", "attention": "needs_attention"}.get(event.needs, "running")
        case WaitEnded():
            row.wait_what, row.wait_since, row.wait_unblocks, row.status = "", None, "", "running"
        case ChallengerCompared():
            row.comparison = event.comparison.model_dump(mode="json")
        case VersionRegistered():
            row.version = event.version
        case LifecycleFinished():
            row.status, row.reason = event.outcome, event.reason
            row.wait_what, row.wait_since, row.wait_unblocks = "", None, ""
        case _:
            pass


def _apply_to_stages(workflow_id: str, stages: list[StageRow], event: Event) -> None:
    if isinstance(event, StageStarted):
        if stages and stages[-1].ended_at is None:  # its slot was taken away, or a Reset came
            stages[-1].status, stages[-1].ended_at = "failed", event.at
            stages[-1].summary = "interrupted, and started again"
        stages.append(
            StageRow(
                lifecycle=workflow_id, position=len(stages), stage=event.stage, status="running", started_at=event.at
            )
        )
        return
    if not stages or (stages[-1].ended_at is not None and not isinstance(event, StageSkipped)):
        return
    current = stages[-1]
    match event:
        case StageFinished():
            current.status, current.ended_at, current.summary = "done", event.at, event.summary
            current.metrics, current.blobs = event.metrics, event.blobs
            current.ran = event.ran.model_dump(mode="json") if event.ran else {}
        case StageFailed():
            current.status, current.ended_at = "failed", event.at
            current.error = event.model_dump(mode="json", exclude={"type", "seq", "at"})
        case StageSkipped():
            current.status = "skipped"
            current.summary = f"skipped by {event.person}" + (f": {event.reason}" if event.reason else "")
        case LifecycleFinished():
            current.status, current.ended_at = "done" if event.outcome == "released" else event.outcome, event.at
            current.summary = event.reason
        case _:
            pass


def _approval(workflow_id: str, run_id: str, first: ApprovalOpened, events: Sequence[Event]) -> ApprovalRow:
    row = ApprovalRow(
        id=workflow_id,
        run_id=run_id,
        lifecycle=first.lifecycle,
        project=first.evidence.project,
        model=first.evidence.model,
        version=first.evidence.version,
        nonce=first.nonce,
        evidence=first.evidence.model_dump(mode="json"),
        evidence_digest=first.evidence_digest,
        status="open",
        opened_at=first.at,
        deadline=first.deadline,
    )
    for event in events:
        if isinstance(event, ApprovalDecided):
            row.decisions = [*row.decisions, event.claim.model_dump(mode="json")]
        elif isinstance(event, ApprovalClosed):
            row.status, row.reason, row.closed_at = event.outcome, event.reason, event.at
    return row


def _releases(workflow_id: str, run_id: str, events: Sequence[Event]) -> list[SQLModel]:
    row: ReleaseRow | None = None
    for event in events:
        if isinstance(event, ModelReleased):
            row = ReleaseRow(
                workflow_id=workflow_id,
                run_id=run_id,
                released_at=event.at,
                approved_by=list(event.approved_by),
                **event.model_dump(include={"project", "model", "lifecycle", "version", "release_seq", "model_digest"}),
            )
        elif isinstance(event, ReleaseRolledBack) and row is not None:
            row.rolled_back = event.reason
    return [row] if row else []


def _checks(workflow_id: str, run_id: str, events: Sequence[Event]) -> list[SQLModel]:
    return [
        DriftRow(
            workflow_id=workflow_id,
            run_id=run_id,
            seq=event.seq,
            window_start=event.window.start,
            window_end=event.window.end,
            drifted=list(event.drifted),
            checked_at=event.at,
            **event.model_dump(
                include={"project", "model", "version", "rows", "share", "report", "verdict", "reason", "lifecycle"}
            ),
        )
        for event in events
        if isinstance(event, DriftChecked)
    ]


def plain(row: SQLModel) -> dict[str, Any]:
    """A read-model row as comparable values."""
    return {name: getattr(row, name) for name in type(row).model_fields}
