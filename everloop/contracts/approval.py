"""A gate: what it is asked and how it ended."""

from datetime import datetime
from typing import Literal

from everloop.records import Decision, Evidence, Record


class ApprovalRequest(Record):
    """The input of an Approval workflow."""

    lifecycle: str
    evidence: Evidence
    evidence_digest: str
    keys: dict[str, str]
    deadline: datetime
    evidence_text: str = ""
    """The bytes that the digest is over."""


class ApprovalAnswer(Record):
    """How a gate ended. `decisions` are signed; a row in a table proves nothing."""

    outcome: Literal["approved", "rejected", "expired"]
    nonce: str
    reason: str
    decisions: tuple[Decision, ...] = ()
