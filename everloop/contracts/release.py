"""Which version answers."""

from abc import ABC, abstractmethod
from typing import Literal

from temporalio import activity

from everloop.records import Decision, Record, Route, RouteChange, SignedRollBack, Version


class ReleaseRequest(Record):
    version: Version
    submitted_by: str
    trigger: str
    evidence_digest: str
    champion_digest: str
    nonce: str
    gate: str
    decisions: tuple[Decision, ...]
    evidence: str = ""
    """The text of the evidence that was approved."""


class RollBackRequest(Record):
    project: str
    model: str
    release_seq: int
    """The release to undo; nothing happens when the route has moved on."""
    order: SignedRollBack | None = None
    """A person's; without one only the rollout itself may undo what it did."""


class ObserveRequest(Record):
    project: str
    model: str
    release_seq: int


class ReleaseActivities(ABC):
    @activity.defn(name="everloop.release.route")
    @abstractmethod
    async def route(self, request: ReleaseRequest) -> Route: ...

    @activity.defn(name="everloop.release.observe")
    @abstractmethod
    async def observe(self, request: ObserveRequest) -> None: ...

    @activity.defn(name="everloop.release.roll_back")
    @abstractmethod
    async def roll_back(self, request: RollBackRequest) -> RouteChange | None: ...


class ReleaseAnswer(Record):
    """How a rollout ended. `void`: champion or evidence had changed, so people must decide again.

    `failed`: its workflow was ended from outside, or could not route.
    """

    outcome: Literal["released", "void", "rolled_back", "failed"]
    reason: str
    release_seq: int = 0
