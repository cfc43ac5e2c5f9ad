"""What a fork reuses: the results that an earlier lifecycle has in its history, if they answer the same question."""

import json
from typing import Any

from pydantic import BaseModel
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.caller import caller
from everloop import contracts, names
from everloop.contracts import ForkActivities, JobRequest, KeptRequest
from everloop.errors import Conflict, NotFound
from everloop.specs import FIRST_READ, STAGES, LifecycleSpec, Stage

QUESTIONS: dict[str, type[JobRequest]] = {
    "snapshot": contracts.SnapshotRequest,
    "validate": contracts.ValidateRequest,
    "prepare": contracts.PrepareRequest,
    "train": contracts.TrainRequest,
    "evaluate": contracts.EvaluateRequest,
    "refit": contracts.RefitRequest,
    "export": contracts.ExportRequest,
}
"""What each stage is asked."""
KEPT = "everloop.lifecycle.kept"


class ForkOnControl(ForkActivities):
    """Reads histories of lifecycles."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @activity.defn(name=KEPT)
    async def kept(self, request: KeptRequest) -> dict[str, Any]:
        """The result of a stage of the lifecycle that is forked, as its own activity gave it.

        Raises `NotFound` when it has none, and `Conflict` with what differs when the stage was asked something else:
        another champion answers by now, say.
        """
        caller(names.LIFECYCLE)
        asked, result = _last(await self._events(request), request.stage)
        differs = _differs(request.stage, asked, request.question)
        if differs:
            raise Conflict(
                f"{request.stage} of {request.lifecycle} cannot be kept: {', '.join(differs)} differs by now",
                field=differs[0],
                hint=f"`everloop fork {request.lifecycle} --from {request.stage}` does it again",
            )
        ran = result.get("ran")
        return result | ({"ran": ran | {"kept": True}} if isinstance(ran, dict) else {})

    async def _events(self, request: KeptRequest) -> list[HistoryEvent]:
        handle = self._client.get_workflow_handle(request.lifecycle, run_id=request.run_id)
        try:
            return list((await handle.fetch_history()).events)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            raise NotFound(f"Temporal does not keep the history of {request.lifecycle} any more") from None


def _last(events: list[HistoryEvent], stage: Stage) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the stage was asked and what it answered, the last time that all stages before it were done in order."""
    scheduled = {
        event.event_id: event for event in events if event.HasField("activity_task_scheduled_event_attributes")
    }
    after, found = 0, None
    for each in STAGES[: STAGES.index(stage) + 1]:
        if each != "validate" or each == stage:  # it may have been skipped by a person
            found = _done(events, scheduled, each, after)
            after = found.event_id if found else 0
        if found is None:
            raise NotFound(
                f"stage {each} is not done there", field="from", hint=f"fork it --from {each}, or an earlier stage"
            )
    assert found is not None  # noqa: S101  # the loop ends with the stage itself
    done = found.activity_task_completed_event_attributes
    asked = scheduled[done.scheduled_event_id].activity_task_scheduled_event_attributes
    question = json.loads(asked.input.payloads[0].data)
    if asked.activity_type.name == KEPT:  # a fork of a fork
        question = question["question"]
    return question, json.loads(done.result.payloads[0].data)


def _done(
    events: list[HistoryEvent], scheduled: dict[int, HistoryEvent], stage: str, after: int
) -> HistoryEvent | None:
    """The last completion of a stage's job, if it came after event *after*."""
    found = None
    for event in events:
        if event.event_type != EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            continue
        asked = scheduled[event.activity_task_completed_event_attributes.scheduled_event_id]
        if asked.activity_task_scheduled_event_attributes.activity_id.partition(".")[0] == stage:
            found = event
    return found if found is not None and found.event_id > after else None


def _differs(stage: Stage, asked: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of what the stage would be told otherwise now; both as this version reads them.

    A fork that keeps a training has not searched: what was found follows from the rest of the question.
    """
    before, after = QUESTIONS[stage].model_validate(asked), QUESTIONS[stage].model_validate(now)
    names_ = [name for name in type(before).model_fields if name not in ("slot", "spec", "searched")]
    found = [name for name in names_ if _without_ran(getattr(before, name)) != _without_ran(getattr(after, name))]
    return [*changed(_spec(before), _spec(after), stage), *found]


def _without_ran(value: Any) -> Any:  # noqa: ANN401  # a field of a question
    """What a result says, without how the job ran: one that was kept says so there, and answers the same."""
    if isinstance(value, BaseModel):
        return {name: _without_ran(inner) for name, inner in value if name != "ran"}
    if isinstance(value, tuple | list):
        return [_without_ran(inner) for inner in value]
    return value


def _spec(question: JobRequest) -> LifecycleSpec:
    spec: LifecycleSpec = question.spec  # type: ignore[attr-defined]  # every stage's question has one
    return spec


def changed(before: LifecycleSpec, after: LifecycleSpec, stage: Stage) -> list[str]:
    """Fields of the spec that differ and that *stage*, or one before it, reads."""
    read = STAGES[: STAGES.index(stage) + 1]
    return [
        name
        for name in LifecycleSpec.model_fields
        if FIRST_READ.get(name, STAGES[0]) in read and getattr(before, name) != getattr(after, name)
    ]
