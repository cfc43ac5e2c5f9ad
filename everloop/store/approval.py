"""Read model of a gate: `views.fold` makes it from the journal."""

from datetime import datetime
from typing import Any

from sqlalchemy import Text
from sqlmodel import Field, SQLModel

from everloop.store.columns import document, moment


class ApprovalRow(SQLModel, table=True):
    """A gate and what was decided."""

    __tablename__ = "approval"

    id: str = Field(primary_key=True)
    run_id: str
    lifecycle: str = Field(index=True)
    project: str
    model: str
    version: int
    nonce: str
    evidence: dict[str, Any] = document()
    evidence_digest: str
    evidence_text: str = Field(default="", sa_type=Text)
    """The bytes that the digest is over; empty for gates of before, whose evidence's canonical JSON they were."""
    status: str = Field(index=True)
    """`open`, or the outcome of `ApprovalClosed`."""
    reason: str = ""
    opened_at: datetime = moment()
    deadline: datetime = moment()
    decisions: list[dict[str, Any]] = document(list)
    """`records.Claim` of each decision."""
    closed_at: datetime | None = moment(default=None)
