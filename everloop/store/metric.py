"""Progress: written by compute."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from everloop.store.columns import document, moment


class MetricRow(SQLModel, table=True):
    """A step of a job's progress; never passes through a workflow."""

    __tablename__ = "metric"

    job: str = Field(primary_key=True)
    """`<run id>/<activity id>`."""
    step: int = Field(primary_key=True)
    values: dict[str, float] = document()
    at: datetime = moment()
