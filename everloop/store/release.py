"""Releases as the journal tells them, and the route with its changes, for which SQL is the authority."""

from datetime import datetime

from sqlalchemy import Index, Text
from sqlmodel import Field, SQLModel

from everloop.store.columns import document, moment


class ReleaseRow(SQLModel, table=True):
    """One change of a model's route, as it happened."""

    __tablename__ = "release"

    workflow_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    project: str
    model: str = Field(index=True)
    lifecycle: str
    version: int
    release_seq: int
    model_digest: str
    approved_by: list[str] = document(list)
    released_at: datetime = moment()
    rolled_back: str = ""
    """Why, when it was."""


class RouteRow(SQLModel, table=True):
    """Which version takes a model's traffic; one row per model."""

    __tablename__ = "route"

    project: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    version: int
    release_seq: int
    model_digest: str
    lifecycle: str
    record: str = Field(sa_type=Text)
    """`records.Route` as JSON, with the signed decisions."""
    previous: str = Field(default="", sa_type=Text)
    """The route before, for a roll back."""
    released_at: datetime = moment()


class RouteChangeRow(SQLModel, table=True):
    """Each change of a route, in the transaction that made it. It outlives the route: numbers never come again."""

    __tablename__ = "route_change"
    __table_args__ = (
        Index("route_change_number", "project", "model", "release_seq"),
        Index("route_change_nonce", "nonce"),
    )

    id: int | None = Field(default=None, primary_key=True)
    project: str
    model: str
    release_seq: int
    kind: str
    """`release`, `roll_back`; or `ended`: an approval of before this ledger, whose lifecycle had ended."""
    version: int = 0
    """What answers after it, 0 for nothing."""
    model_digest: str = ""
    lifecycle: str = ""
    nonce: str = ""
    """Of the approval that the release spent."""
    undoes: int | None = None
    """The release that a roll back undid."""
    person: str = ""
    """Who ordered the roll back; empty when the rollout undid itself."""
    workflow_id: str = ""
    run_id: str = ""
    """The rollout."""
    at: datetime = moment()
