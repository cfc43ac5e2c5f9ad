"""The index of the prediction log: which files count, and how many rows of which hour each holds. Control writes it."""

from datetime import datetime

from sqlalchemy import BigInteger
from sqlmodel import Field, Index, SQLModel

from everloop.store.columns import moment


class LogPartRow(SQLModel, table=True):
    """A file of a model's log. A reader takes them in one SELECT: what has been replaced is not among them."""

    __tablename__ = "log_part"

    project: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    """Path within the model's folder."""
    kind: str
    """`lines` or `parquet`."""
    version: int = 0
    """Of all its rows; 0: of lines that an older Everloop wrote."""
    bytes: int = Field(default=0, sa_type=BigInteger)
    """Of lines: counted so far."""
    rows: int = Field(default=0, sa_type=BigInteger)
    torn: int = 0
    """Lines that are none, and a last one that was cut off."""
    first_event: datetime | None = moment(default=None)
    last_event: datetime | None = moment(default=None)
    logged_until: datetime | None = moment(default=None)
    """By the clock of the file's disk."""
    closed_at: datetime | None = moment(default=None)
    """Found to grow no more."""
    stays: bool = False
    """It stays lines: nobody knows the columns of its version."""
    replaced_at: datetime | None = moment(default=None)
    """Its rows are in other files since: it is removed once nobody can be reading it."""


class LogHourRow(SQLModel, table=True):
    """What a file holds of one hour of event time."""

    __tablename__ = "log_hour"
    __table_args__ = (Index("log_hour_of_model", "project", "model", "hour"),)

    project: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    hour: datetime = moment(primary_key=True)
    rows: int = 0
    late: int = 0
    """Rows that came after their window had been found closed, until they are counted with it."""
    first_event: datetime = moment()
    last_event: datetime = moment()
    logged_until: datetime = moment()


class LogStateRow(SQLModel, table=True):
    """What else is known of a model's log."""

    __tablename__ = "log_state"

    project: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    closed_until: datetime | None = moment(default=None)
    """End of the last window that was found closed: what comes before it is late."""
    run: str = ""
    """The compaction that is under way; its files have it in their names."""
    run_started: datetime | None = moment(default=None)
    removed_rows: int = Field(default=0, sa_type=BigInteger)
    """By the spec's `log.keep`, in all."""
