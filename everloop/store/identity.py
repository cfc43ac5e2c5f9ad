"""Who may come in, and who asked for what: written by the API."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from everloop.store.columns import moment


class CredentialRow(SQLModel, table=True):
    """A key that stands for a person. Only its SHA-256 is kept: the keys are 256 random bits."""

    __tablename__ = "credential"

    digest: str = Field(primary_key=True)
    person: str
    kind: str
    """`client` (bearer), `login` (one-time), `session` (cookie)."""
    created_at: datetime = moment()
    expires_at: datetime | None = moment(default=None)
    used_at: datetime | None = moment(default=None)


class AuditRow(SQLModel, table=True):
    """Who asked for what, as the API answered it. Append-only."""

    __tablename__ = "audit"

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = moment()
    person: str
    action: str
    subject: str
    status: int
    request_id: str
