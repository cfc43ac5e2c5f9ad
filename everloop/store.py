"""The tables, and how to reach them.

Four kinds, each with its one writer (on SQLite): the journal and its read models (control), the ledgers
for which SQL is the authority (control), progress (compute), identity (the API).
Read models hold nothing that `views.fold` cannot make again from the journal.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, DateTime, Engine, Index, Text, TypeDecorator, UniqueConstraint, event
from sqlalchemy.exc import DBAPIError
from sqlmodel import Field, Session, SQLModel, create_engine

from everloop import disk
from everloop.errors import StorageLow


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ANN401, ARG002
        return value.astimezone(UTC) if value else value

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ANN401, ARG002
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def moment(**kwargs: Any) -> Any:  # noqa: ANN401
    """A column for a moment in UTC."""
    return Field(sa_type=UtcDateTime, **kwargs)


def document(default: Any = dict, **kwargs: Any) -> Any:  # noqa: ANN401
    """A column for JSON."""
    return Field(default_factory=default, sa_column=Column(JSON, nullable=False), **kwargs)


# --- the journal --------------------------------------------------------------------------------


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


# --- read models: views.fold makes them from the journal ----------------------------------------


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


READ_MODELS: tuple[type[SQLModel], ...] = (LifecycleRow, StageRow, ApprovalRow, ReleaseRow, DriftRow)

# --- ledgers: SQL is the authority --------------------------------------------------------------


class VersionRow(SQLModel, table=True):
    """A registered version: one per lifecycle run, numbers dense per model."""

    __tablename__ = "version"
    __table_args__ = (UniqueConstraint("lifecycle", "run_id"),)

    project: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    lifecycle: str
    run_id: str
    token: int
    """Fence token of the lease under which the bytes were made."""
    model_digest: str
    record: str = Field(sa_type=Text)
    """`records.Version` as JSON."""
    registered_at: datetime = moment()


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


class PoolRow(SQLModel, table=True):
    """A device pool and its version, for optimistic commits."""

    __tablename__ = "pool"

    id: str = Field(primary_key=True)
    version: int = 0


class CounterRow(SQLModel, table=True):
    """A number of the whole deployment that only grows. `LEASE_TOKENS`: the last fence token given out by any pool."""

    __tablename__ = "counter"

    name: str = Field(primary_key=True)
    value: int = Field(default=0, sa_type=BigInteger)


LEASE_TOKENS = "lease_tokens"


class DeviceRow(SQLModel, table=True):
    """A slot that can be leased: one Dask worker."""

    __tablename__ = "device"

    pool: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    light: bool = False
    """Reserved for checks."""
    present: bool = True
    """The Dask worker is there."""


class LeaseRequestRow(SQLModel, table=True):
    """Someone who wants a slot; the inbox of the pool."""

    __tablename__ = "lease_request"
    __table_args__ = (
        Index("lease_request_queue", "pool", "state", "arrival"),
        Index("lease_request_arrival", "pool", "arrival"),
        Index("lease_request_workflow", "workflow_id", "state"),
    )

    id: str = Field(primary_key=True)
    pool: str
    arrival: int
    """Order of arrival within the pool."""
    kind: str
    holder: str
    workflow_id: str
    run_id: str
    state: str
    """`queued`, `granted`, `done`, `cancelled`, `lapsed` (offered, and not taken in time)."""
    requested_at: datetime = moment()
    reason: str = ""
    """Why it lapsed."""


class LeaseRow(SQLModel, table=True):
    """A grant. Its token is the fence: strictly increasing in the whole deployment, never used twice."""

    __tablename__ = "lease"
    __table_args__ = (
        Index("one_live_lease_per_device", "pool", "live_device", unique=True),
        Index("lease_holder", "holder", "token"),
        Index("lease_token", "token"),
        Index("lease_live", "pool", "state"),
        Index("lease_of_request", "request_id", "state"),
    )

    pool: str = Field(primary_key=True)
    token: int = Field(primary_key=True)
    request_id: str
    holder: str
    workflow_id: str
    run_id: str
    device: str
    live_device: str | None = None
    """The device while the lease is live, NULL after: the unique index forbids a double grant."""
    state: str
    """`offered`, `active`, `released`, `fenced`."""
    granted_at: datetime = moment()
    expires_at: datetime | None = moment(default=None)
    renewals: int = 0
    """How often the offer has come to its time and was made again."""
    ended_at: datetime | None = moment(default=None)


class PoolDecisionRow(SQLModel, table=True):
    """What `decide` was given and what it said: replays to the same digest anywhere."""

    __tablename__ = "pool_decision"

    pool: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    input_digest: str
    input: str = Field(sa_type=Text)
    decisions: str = Field(sa_type=Text)
    at: datetime = moment()


class ResultRow(SQLModel, table=True):
    """The pointer to a leased stage's result, written in the transaction that checks the token."""

    __tablename__ = "result"

    workflow_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    stage: str = Field(primary_key=True)
    token: int
    digest: str
    at: datetime = moment()


# --- progress: written by compute ---------------------------------------------------------------


class MetricRow(SQLModel, table=True):
    """A step of a job's progress; never passes through a workflow."""

    __tablename__ = "metric"

    job: str = Field(primary_key=True)
    """`<run id>/<activity id>`."""
    step: int = Field(primary_key=True)
    values: dict[str, float] = document()
    at: datetime = moment()


# --- identity: written by the API ---------------------------------------------------------------


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


class Store:
    """A door to the database. Safe to share between threads; one per process."""

    def __init__(self, url: str) -> None:
        """Open *url* (SQLAlchemy). Creates no table: see `migrate`."""
        self.url = url
        self.engine = _engine(url)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A short write transaction (BEGIN IMMEDIATE on SQLite), committed at the end of the block.

        Raises `StorageLow` when the disk is full.
        """
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                session.connection(execution_options={"everloop_write": True})
                yield session
        except DBAPIError as error:
            if disk.is_full(error):
                raise StorageLow("the database's disk is full", hint=disk.HINT) from error
            raise

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read transaction: one consistent view."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema to this release's revision; safe to repeat.

        Raises `EverloopError` subclasses of Alembic untouched: a database of a newer release is refused.
        """
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["engine"] = self.engine
        command.upgrade(config, "head")

    def close(self) -> None:
        self.engine.dispose()


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:  # noqa: ANN401
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:  # noqa: ANN401
        # A write that begins as a read can fail half-way with SQLITE_BUSY; IMMEDIATE waits its turn instead.
        immediate = connection.get_execution_options().get("everloop_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
