"""A lifecycle: its input, whether it may begin, what people tell it, how it ended."""

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import Field
from temporalio import activity

from everloop.contracts.fork import Fork
from everloop.contracts.short import Short
from everloop.events import LifecycleSubmitted
from everloop.records import Record, Window
from everloop.specs import LifecycleSpec


class LifecycleRequest(Record):
    """The input of a lifecycle workflow, made by the API or by drift automation."""

    spec: LifecycleSpec
    body_digest: str
    """SHA-256 of the spec's canonical JSON: the same key with another body is refused."""
    submitted_by: str
    trigger: str = "manual"
    window: Window | None = None
    """The drifted window, when drift started this."""
    key_id: str = ""
    signature: str = ""
    """The API's, over who asks for what (everloop/starts.py). Empty where drift started this."""
    fork: Fork | None = None

    def submitted(self) -> LifecycleSubmitted:
        """The first fact of the lifecycle."""
        return LifecycleSubmitted(
            project=self.spec.project,
            model=self.spec.model,
            task=self.spec.task,
            trigger=self.trigger,
            submitted_by=self.submitted_by,
            body_digest=self.body_digest,
            spec=self.spec.model_dump_json(),
        )


class AdmitRequest(Record):
    """May the lifecycle that asks begin? All that is looked at is in its history's first event."""


class LifecycleActivities(ABC):
    @activity.defn(name="everloop.lifecycle.admit")
    @abstractmethod
    async def admit(self, request: AdmitRequest) -> None: ...


class AttendRequest(Record):
    """What a person tells a parked lifecycle to do about the stage that failed."""

    action: Literal["retry", "skip", "abort"]
    person: Short
    stage: Short = ""
    """When given, must be the stage that is parked."""
    reason: str = Field(default="", max_length=4000)


class LifecycleAnswer(Record):
    """How a lifecycle ended."""

    outcome: Literal["released", "done", "rejected", "expired", "not_better", "aborted", "failed"]
    """`done`: it came to the stage that the spec's `until` names."""
    reason: str
    version: int | None = None
