"""What checks found, as the journal tells it; a model's watch and its decisions, for which SQL is the authority."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Text
from sqlmodel import Field, SQLModel

from everloop.store.columns import document, moment


class DriftRow(SQLModel, table=True):
    """What one check found in one window."""

    __tablename__ = "drift"

    workflow_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    seq: int = Field(primary_key=True)
    project: str
    model: str = Field(index=True)
    version: int
    window_start: datetime = moment()
    window_end: datetime = moment()
    rows: int
    share: float | None = None
    drifted: list[str] = document(list)
    report: str = ""
    verdict: str
    reason: str
    lifecycle: str = ""
    checked_at: datetime = moment()
    measures: list[dict[str, Any]] = document(list)
    """`records.Measure`, each."""
    broken: list[dict[str, Any]] = document(list)
    """`records.Break`, each."""


class MonitorRow(SQLModel, table=True):
    """A model's watch: its cursor is the end of the last decided window, no later check begins before it."""

    __tablename__ = "monitor"

    project: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    cursor: datetime | None = moment(default=None)
    spec: str = Field(sa_type=Text)
    """The `LifecycleSpec` that a retraining uses."""
    updated_at: datetime = moment()
    late_counted_at: datetime | None = moment(default=None)
    """Rows logged until then are in the windows' `late_rows`."""
    rearmed_at: datetime | None = moment(default=None)
    """End of the last decided window when a person said that the monitor may retrain again."""
    quarantined_at: datetime | None = moment(default=None)
    """End of the window whose data was broken first; None: nothing is in quarantine."""
    quarantine: list[dict[str, Any]] = document(list)
    """What is broken: `records.Break`, each."""
    accepted: list[str] = document(list)
    """What a person said to be as it should be: `<version> <kind> <column>`, each."""


class TriggerRow(SQLModel, table=True):
    """The one decision about a window of a model."""

    __tablename__ = "trigger"

    project: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    window_start: datetime = moment(primary_key=True)
    window_end: datetime = moment(primary_key=True)
    version: int
    share: float | None = None
    verdict: str
    reason: str
    lifecycle: str = ""
    decided_at: datetime = moment()
    closed_at: datetime | None = moment(default=None)
    """When the window was found closed; None: of an older worker."""
    late_rows: int = 0
    """How many rows of the window were logged after that."""
    over: list[str] = document(list)
    """Measures beside the columns' drift that were over and that the monitor heeds."""


class PerformanceRow(SQLModel, table=True):
    """What the labels say of a decided window, and the one decision that they led to."""

    __tablename__ = "performance"

    project: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    window_start: datetime = moment(primary_key=True)
    window_end: datetime = moment(primary_key=True)
    version: int
    rows: int
    labelled: int
    metric: str
    value: float
    low: float
    high: float
    expected: float | None = None
    """At the version's evaluation."""
    target: dict[str, Any] = document()
    """`records.Measure` of the labels' drift; empty: not known."""
    over: bool = False
    verdict: str = ""
    """Empty: nothing to decide."""
    reason: str = ""
    lifecycle: str = ""
    measured_at: datetime = moment()


class LabelsRow(SQLModel, table=True):
    """What is known of a model's labels."""

    __tablename__ = "labels"

    project: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    seen_bytes: int = Field(sa_type=BigInteger)
    """Of the file of labels, when it was last looked at."""
    labels: int = 0
    joined: int = 0
    corrected: int = 0
    failed: str = ""
    """Why they could not be joined, or empty."""
    measured_at: datetime = moment()
