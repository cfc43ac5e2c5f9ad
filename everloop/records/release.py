"""Which version takes a model's traffic, and how that changes."""

from datetime import datetime
from typing import Literal

from everloop.records.approval import Decision
from everloop.records.record import Record


class RollBack(Record):
    """A person's order to undo a model's latest release: the bytes that the API signs."""

    type: Literal["roll_back"] = "roll_back"
    project: str
    model: str
    release_seq: int
    """The release to undo: the order fits no other."""
    person: str
    reason: str
    ordered_at: datetime
    expires_at: datetime


class SignedRollBack(Record):
    """A person's signed order to undo a release."""

    order: RollBack
    key_id: str
    signature: str
    """Ed25519 over `signed`, base64."""
    signed: str
    """The order's JSON."""


class RouteChange(Record):
    """A change of a model's route, as a history or the ledger says it. `version` 0: nothing answers any more."""

    project: str
    model: str
    release_seq: int
    version: int
    model_digest: str = ""
    lifecycle: str = ""
    undoes: int | None = None
    """The release that a roll back undid."""


class Route(Record):
    """Which version takes a model's traffic. `release_seq` grows by one with each change."""

    project: str
    model: str
    version: int
    model_digest: str
    release_seq: int
    lifecycle: str
    decisions: tuple[Decision, ...]
    released_at: datetime
    evidence: str = ""
    """The text of the evidence that was approved; its digest is in the signed claim."""

    def change(self) -> RouteChange:
        return RouteChange.model_validate(self.model_dump(include=set(RouteChange.model_fields)))
