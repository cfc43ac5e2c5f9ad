"""What an approver is shown, and what they sign."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from everloop.records.evaluation import Comparison
from everloop.records.export import Parity
from everloop.records.record import Record
from everloop.specs import Task


class Evidence(Record):
    """What an approver is shown. The digest of its stored text is what a decision signs.

    A new field that is computed needs a new `format`: what was approved before is compared as it was shown then.
    """

    format: int = 1
    """1: as Everloop 0.1 showed it first. 2: binds `signature_digest`, `reference_digest` and `classes` too.
    3: `trainer` and `code_digest`."""
    lifecycle: str
    project: str
    model: str
    version: int
    model_digest: str
    champion_digest: str = ""
    champion_version: int | None = None
    task: Task
    metrics: dict[str, float]
    comparison: Comparison
    parity: Parity
    rows: int
    trained_until: datetime | None = None
    trigger: str
    submitted_by: str
    signature_digest: str = ""
    """SHA-256 of the stored `Signature`: what the model takes, and what its answers mean."""
    reference_digest: str = ""
    """SHA-256 of the reference sample that drift checks compare with."""
    classes: tuple[str, ...] = ()
    """The labels, in the order of the model's outputs."""

    notes: tuple[str, ...] = ()
    """What the reading changed in the data, and how many rows have no target."""
    trainer: str = ""
    """What learned: a family of ours, or a user's function."""
    code_digest: str = ""
    """`Code.digest` of the user's code that was called."""

    def as_format(self, number: int) -> "Evidence":
        """The same without what later formats bind."""
        later: dict[str, Any] = {"format": number} if number < self.format else {}
        if number < 3:  # noqa: PLR2004
            later |= {"trainer": "", "code_digest": ""}
        if number < 2:  # noqa: PLR2004
            later |= {"signature_digest": "", "reference_digest": "", "classes": (), "notes": ()}
        return self.model_copy(update=later)


class Verdict(StrEnum):
    """What a person may say at a gate."""

    APPROVE = "approve"
    REJECT = "reject"


class Claim(Record):
    """What a decision says: the bytes that the API signs (canonical JSON)."""

    gate: str
    """Workflow id of the Approval."""
    nonce: str
    """Made when the gate opened: a decision of an earlier opening does not fit a later one."""
    evidence_digest: str
    model_digest: str
    champion_digest: str
    person: str
    verdict: Verdict
    comment: str
    decided_at: datetime
    expires_at: datetime
    self_approved: bool
    format: int = 1
    """Of the evidence that was looked at: with 2, who verifies the decision must have the evidence's text."""


class Endorsement(Record):
    """A signing key's word for the key that replaces it (`everloop keys rotate`)."""

    public: str
    """The new public key, base64."""
    key_id: str
    """Of the older key, which signs."""
    signature: str
    """Ed25519, base64."""


class Decision(Record):
    """One person's signed answer."""

    claim: Claim
    key_id: str
    signature: str
    """Ed25519 over the text of the claim, base64."""
    signed: str = ""
    """The text that was signed: the claim's JSON. Without it, the canonical JSON of the claim's first fields."""
    endorsements: tuple[Endorsement, ...] = ()
    """From a key that a gate may know to the one that signed, when the key was rotated since the gate opened."""
