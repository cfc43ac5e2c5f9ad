"""Read models of a lifecycle and its stages: `views.fold` makes them from the journal."""

from datetime import datetime
from typing import Any

from sqlalchemy import Text
from sqlmodel import Field, SQLModel

from everloop.store.columns import document, moment


class LifecycleRow(SQLModel, table=True):
    """A lifecycle as it is now: of its latest run, when Temporal has reset it."""

    __tablename__ = "lifecycle"

    id: str = Field(primary_key=True)
    run_id: str
    project: str = Field(index=True)
    model: str = Field(index=True)
    task: str
    trigger: str
    submitted_by: str
    submitted_at: datetime = moment(index=True)
    updated_at: datetime = moment()
    body_digest: str
    spec: str = Field(sa_type=Text)
    status: str = Field(index=True)
    """`running`, `waiting_approval`, `needs_attention`, or an outcome of `LifecycleFinished`."""
    reason: str = ""
    stage: str = ""
    version: int | None = None
    wait_what: str = ""
    wait_since: datetime | None = moment(default=None)
    wait_unblocks: str = ""
    metrics: dict[str, float] = document()
    comparison: dict[str, Any] = document()
    error: dict[str, Any] = document()
    """Of the parked stage: stage, error, message, field, hint, log."""


class StageRow(SQLModel, table=True):
    """A stage of a lifecycle's latest run."""

    __tablename__ = "stage"

    lifecycle: str = Field(primary_key=True)
    position: int = Field(primary_key=True)
    """Order of start: a stage that was retried by a person has several rows."""
    stage: str
    status: str
    """`running`, `done`, `failed`, `skipped`."""
    started_at: datetime = moment()
    ended_at: datetime | None = moment(default=None)
    summary: str = ""
    metrics: dict[str, float] = document()
    blobs: dict[str, str] = document()
    ran: dict[str, Any] = document()
    """`records.Ran`, empty for stages without a job."""
    error: dict[str, Any] = document()
