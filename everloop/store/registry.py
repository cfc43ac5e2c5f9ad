"""Registered versions: SQL is the authority."""

from datetime import datetime

from sqlalchemy import BigInteger, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from everloop.store.columns import moment


class VersionRow(SQLModel, table=True):
    """A registered version: one per lifecycle run, numbers dense per model."""

    __tablename__ = "version"
    __table_args__ = (UniqueConstraint("lifecycle", "run_id"),)

    project: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    lifecycle: str
    run_id: str
    token: int = Field(sa_type=BigInteger)
    """Fence token of the lease under which the bytes were made."""
    model_digest: str
    record: str = Field(sa_type=Text)
    """`records.Version` as JSON."""
    registered_at: datetime = moment()
