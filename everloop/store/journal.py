"""The journal, the archive of closed runs, and the alarms of runs that cannot go on: control writes them."""

from datetime import datetime

from sqlalchemy import Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from everloop.store.columns import moment


class JournalRow(SQLModel, table=True):
    """One domain event. Append-only; the same key with other content is an alarm."""

    __tablename__ = "journal"
    __table_args__ = (UniqueConstraint("workflow_id", "run_id", "seq"),)

    id: int | None = Field(default=None, primary_key=True)
    workflow_id: str = Field(index=True)
    run_id: str
    seq: int
    run_started_at: datetime = moment()
    """When Temporal started the run: a Reset makes a new run that copies the events of the one before."""
    type: str = Field(index=True)
    at: datetime = moment()
    body: str = Field(sa_type=Text)
    """The event as canonical JSON."""


class HistoryRow(SQLModel, table=True):
    """A closed workflow run: its history is archived before Temporal's retention takes it."""

    __tablename__ = "history"

    workflow_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    workflow_type: str
    started_at: datetime = moment()
    closed_at: datetime = moment(index=True)
    sha256: str
    """Of the history as JSON, in the artifact store."""


class AlarmRow(SQLModel, table=True):
    """An open workflow that cannot go on: its workflow task fails. Control's sweep writes and removes these."""

    __tablename__ = "alarm"

    workflow_id: str = Field(primary_key=True)
    run_id: str
    workflow_type: str
    lifecycle: str = Field(index=True)
    """Whose page shows it (a gate's is its lifecycle's); empty for a pool, a rollout or a check."""
    message: str
    """Why the task failed, in one line."""
    attempts: int
    since: datetime = moment()
