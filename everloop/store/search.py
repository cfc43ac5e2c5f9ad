"""Searches and their trials: written by control as trials end."""

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from everloop.store.columns import document, moment


class StudyRow(SQLModel, table=True):
    """A search of a lifecycle. One that a Reset has begun again is a study of its own: the newest counts."""

    __tablename__ = "study"

    id: str = Field(primary_key=True)
    lifecycle: str = Field(index=True)
    state: str
    """`running`, `paused`, or why it has ended: `budget`, `no_gain`, `person`."""
    metric: str
    sampler: str
    pruner: str
    families: list[str] = document(list)
    seconds: float | None = None
    """Of the budget."""
    trials: int | None = None
    """Of the budget."""
    spent_seconds: float = 0.0
    told: int = 0
    """Trials that have ended."""
    best: int | None = None
    """Number of the best trial."""
    sentence: str = ""
    """How far it is, or what it has come to."""
    started_at: datetime = moment()
    updated_at: datetime = moment()


class TrialRow(SQLModel, table=True):
    """A trial that has ended."""

    __tablename__ = "trial"

    study: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    family: str
    state: str
    """`complete`, `pruned`, `cut`, `failed`."""
    value: float | None = None
    """The metric, of a complete one."""
    seconds: float
    at: datetime = moment()
    record: dict[str, Any] = document()
    """`trials.Trial`."""
