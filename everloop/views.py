"""The journal and its read models, as pure functions.

`project` reads domain events out of a Temporal history, `fold` makes a workflow's rows out of its events.
Used alike by the live append, by `journal rebuild`, by `journal verify` and by the repair after a Reset.
What a row keeps as JSON is taken from the stored text of the event: a later Everloop makes the same row of it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json
from sqlmodel import SQLModel
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.converter import DataConverter

from everloop import names
from everloop.contracts import AppendRequest, LifecycleRequest, RollBackRequest
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
    StagePaused,
    StagePreempted,
    StageRetried,
    StageSkipped,
    StageStarted,
    VersionRegistered,
    WaitBegan,
    WaitEnded,
)
from everloop.records import Route, RouteChange
from everloop.signing import canonical
from everloop.store import ApprovalRow, DriftRow, JournalRow, LifecycleRow, ReleaseRow, StageRow

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
OPEN_STATUSES = ("running", "waiting_approval", "needs_attention")
ROUTE, ROLL_BACK = "everloop.release.route", "everloop.release.roll_back"


def body(event: Event) -> str:
    """The one JSON text of an event, as the journal keeps it."""
    return canonical(event).decode()


def parse(row: JournalRow) -> Event:
    """The event of a journal row."""
    return EVENT.validate_json(row.body)


@dataclass(frozen=True)
class Entry:
    """An event, and the JSON that is stored of it: a parsed event has fields that came later, too."""

    event: Event
    body: str

    @property
    def stored(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


def same(stored: str, event: Event) -> bool:
    """Whether the *stored* text is of this event, also when an earlier Everloop wrote it."""
    return stored == body(event) or EVENT.validate_json(stored) == event


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


def routed(history: Iterable[HistoryEvent], converter: DataConverter) -> list[RouteChange]:
    """The changes of a route that one run of a rollout made, in order: what its activities answered."""
    asked: dict[int, HistoryEvent] = {}
    found: list[RouteChange] = []
    for entry in history:
        if entry.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            asked[entry.event_id] = entry
        elif entry.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            done = entry.activity_task_completed_event_attributes
            scheduled = asked[done.scheduled_event_id].activity_task_scheduled_event_attributes
            read = converter.payload_converter.from_payloads
            if scheduled.activity_type.name == ROUTE:
                found.append(read(done.result.payloads, [Route])[0].change())
            elif scheduled.activity_type.name == ROLL_BACK:
                (change,) = read(done.result.payloads, _CHANGE) or (None,)
                (request,) = read(scheduled.input.payloads, [RollBackRequest])
                found += _rolled_back(change, request, found)
    return found


def _rolled_back(change: RouteChange | None, request: RollBackRequest, before: list[RouteChange]) -> list[RouteChange]:
    """What a roll back answered. Everloop 0.1 answered nothing: then the version before has the next number."""
    if change is not None:
        return [change]
    if not before:
        return []
    undone = {"project": request.project, "model": request.model, "undoes": request.release_seq}
    return [RouteChange(**undone, release_seq=request.release_seq + 1, version=UNSAID)]


_CHANGE: list[type] = [RouteChange | None]  # type: ignore[list-item]  # Temporal's converters take any hint
UNSAID = -1
"""The version of a roll back in a history that does not say it: the one before the release that was undone."""


def routes_of(changes: Iterable[RouteChange]) -> dict[tuple[str, str], RouteChange]:
    """What each model's route is after all *changes*, which come in the order in which they were made."""
    by_model: dict[tuple[str, str], list[RouteChange]] = {}
    for change in changes:
        every = by_model.setdefault((change.project, change.model), [])
        every.append(_said(change, every) if change.version == UNSAID else change)
    return {model: every[-1] for model, every in by_model.items()}


def _said(change: RouteChange, before: Sequence[RouteChange]) -> RouteChange:
    """A roll back that does not say so went to what answered before the release that it undid."""
    place = max((place for place, one in enumerate(before) if one.release_seq == change.undoes), default=0)
    if not place:
        return change.model_copy(update={"version": 0})
    back_to = before[place - 1].model_dump(include={"version", "model_digest", "lifecycle"})
    return change.model_copy(update=back_to)


_ENDINGS = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: "terminated",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT: "failed",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: "failed",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: "cancelled",
}


def _never_begun(started: HistoryEvent, converter: DataConverter) -> list[Event]:
    """The first fact of a lifecycle that was ended before it could write one.

    Nobody has looked at who signed its start by then, so it names nobody. The spec is told as it was sent: what a
    later Everloop would add to it is not in the journal of before.
    """
    attributes = started.workflow_execution_started_event_attributes
    if attributes.workflow_type.name != names.LIFECYCLE:
        return []
    try:
        (request,) = converter.payload_converter.from_payloads(attributes.input.payloads, [LifecycleRequest])
        (sent,) = converter.payload_converter.from_payloads(attributes.input.payloads, [dict])
        submitted, spec = request.submitted(), to_json(sent["spec"]).decode()
    except Exception:  # noqa: BLE001  # whatever somebody has typed as its input
        return []
    at = started.event_time.ToDatetime(tzinfo=UTC)
    return [submitted.model_copy(update={"submitted_by": "", "spec": spec, "seq": 0, "at": at})]


def _ended_from_outside(entry: HistoryEvent, found: Sequence[Event]) -> list[Event]:
    """The closing fact that a run could not write itself, if it wrote none."""
    if any(isinstance(event, LifecycleFinished | ApprovalClosed) for event in found):
        return []
    outcome = _ENDINGS[entry.event_type]
    reason = f"the workflow was {outcome} in Temporal{_reason(entry)}"
    at: datetime = entry.event_time.ToDatetime(tzinfo=found[0].at.tzinfo)
    seq = found[-1].seq + 1
    if isinstance(found[0], LifecycleSubmitted):
        return [LifecycleFinished.model_validate({"seq": seq, "at": at, "outcome": outcome, "reason": reason})]
    if isinstance(found[0], ApprovalOpened):
        return [ApprovalClosed.model_validate({"seq": seq, "at": at, "outcome": outcome, "reason": reason})]
    return []


def _reason(entry: HistoryEvent) -> str:
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
        entries = [Entry(parse(row), row.body) for row in ordered]
        workflow_id = ordered[0].workflow_id
        first = entries[0].event
        if isinstance(first, LifecycleSubmitted):
            made = _lifecycle(workflow_id, run_id, first, entries)
        elif isinstance(first, ApprovalOpened):
            made = [_approval(workflow_id, run_id, first, entries)]
        else:
            events = [entry.event for entry in entries]
            made += _releases(workflow_id, run_id, events, made) + _checks(workflow_id, run_id, events)
    return made


def _lifecycle(workflow_id: str, run_id: str, first: LifecycleSubmitted, entries: Sequence[Entry]) -> list[SQLModel]:
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
    for entry in entries:
        row.updated_at = entry.event.at
        _apply_to_lifecycle(row, entry)
        _apply_to_stages(workflow_id, stages, entry)
    return [row, *stages]


def _apply_to_lifecycle(row: LifecycleRow, entry: Entry) -> None:
    event = entry.event
    match event:
        case StageStarted():
            row.stage, row.error = event.stage, {}
        case StageFinished() if event.stage == "evaluate":
            row.metrics = event.metrics
        case StageFailed():
            row.error = _error(entry)
        case StageSkipped() | StageRetried():
            row.error = {}
        case WaitBegan():
            row.wait_what, row.wait_since, row.wait_unblocks = event.wait.what, event.wait.since, event.wait.unblocks
            row.status = {"approval": "waiting_approval", "attention": "needs_attention"}.get(event.needs, "running")
        case WaitEnded():
            row.wait_what, row.wait_since, row.wait_unblocks, row.status = "", None, "", "running"
        case ChallengerCompared():
            row.comparison = entry.stored["comparison"]
        case VersionRegistered():
            row.version = event.version
        case LifecycleFinished():
            row.status, row.reason = event.outcome, event.reason
            row.wait_what, row.wait_since, row.wait_unblocks = "", None, ""
        case _:
            pass


def _error(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in entry.stored.items() if name not in ("type", "seq", "at")}


def _apply_to_stages(workflow_id: str, stages: list[StageRow], entry: Entry) -> None:
    event = entry.event
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
            current.ran = entry.stored.get("ran") or {}
        case StageFailed():
            current.status, current.ended_at = "failed", event.at
            current.error = _error(entry)
        case StagePaused():
            current.status, current.ended_at = "paused", event.at
            current.summary = f"paused by {event.person}" + (f": {event.reason}" if event.reason else "")
        case StagePreempted():
            current.status, current.ended_at = "preempted", event.at
            taken = f"{event.device} was taken for others, it goes on by itself"
            told = event.reason.startswith(names.BUDGET_OF)
            current.summary = f"{event.device} was given back: {event.reason}" if told else f"{taken}: {event.reason}"
        case StageSkipped():
            current.status = "skipped"
            current.summary = f"skipped by {event.person}" + (f": {event.reason}" if event.reason else "")
        case LifecycleFinished():
            current.status, current.ended_at = (
                "done" if event.outcome in ("released", "done") else event.outcome,
                event.at,
            )
            current.summary = event.reason
        case _:
            pass


def _approval(workflow_id: str, run_id: str, first: ApprovalOpened, entries: Sequence[Entry]) -> ApprovalRow:
    row = ApprovalRow(
        id=workflow_id,
        run_id=run_id,
        lifecycle=first.lifecycle,
        project=first.evidence.project,
        model=first.evidence.model,
        version=first.evidence.version,
        nonce=first.nonce,
        evidence=entries[0].stored["evidence"],
        evidence_digest=first.evidence_digest,
        evidence_text=first.evidence_text,
        status="open",
        opened_at=first.at,
        deadline=first.deadline,
    )
    for entry in entries:
        event = entry.event
        if isinstance(event, ApprovalDecided):
            row.decisions = [*row.decisions, entry.stored["claim"]]
        elif isinstance(event, ApprovalClosed):
            row.status, row.reason, row.closed_at = event.outcome, event.reason, event.at
    return row


def _releases(workflow_id: str, run_id: str, events: Sequence[Event], made: Sequence[SQLModel]) -> list[SQLModel]:
    """The release of one run. A person's roll back is a run of its own, and says which of those *made* it undid."""
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
        elif isinstance(event, ReleaseRolledBack):
            earlier = [one for one in (*made, row) if isinstance(one, ReleaseRow)]
            for one in earlier:
                if one.release_seq == event.undone_seq or (not event.undone_seq and one is row):
                    one.rolled_back = f"by {event.person}: {event.reason}" if event.person else event.reason
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
            measures=[measure.model_dump(mode="json") for measure in event.measures],
            broken=[each.model_dump(mode="json") for each in event.broken],
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
