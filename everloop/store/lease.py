"""The lease ledger: devices, queues, requests, leases and their members, and what was used. SQL is the authority.

Amounts are whole: cores, MiB, thousandths of a GPU (`activities/lease_policy/state.py`). The database itself refuses
more than a device has: `used_*` counts what members hold that are live, also offered and quarantined ones.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Text
from sqlmodel import Field, SQLModel

from everloop.amounts import AMOUNTS, NO_LIMIT
from everloop.store.columns import document, moment

LEASE_TOKENS = "lease_tokens"
DEFAULT_QUEUE = "default"
"""There without any set-up, and without quota or limit: what names no queue waits in it."""


def big(default: int = 0, **kwargs: Any) -> Any:  # noqa: ANN401
    """A column for a whole number of 64 bits."""
    return Field(default=default, sa_type=BigInteger, **kwargs)


def within_whole(table: str) -> list[CheckConstraint]:
    """No device gives more than it has, nor gets back more than it gave."""
    return [CheckConstraint(f"0 <= used_{what} AND used_{what} <= {what}", f"{table}_{what}") for what in AMOUNTS]


class PoolRow(SQLModel, table=True):
    """A device pool and its version, for optimistic commits."""

    __tablename__ = "pool"

    id: str = Field(primary_key=True)
    version: int = 0


class PoolPolicyRow(SQLModel, table=True):
    """What an operator has set for a pool. Without a row: `lease_policy.state.Policy()`."""

    __tablename__ = "pool_policy"

    pool: str = Field(primary_key=True)
    policy: dict[str, Any] = document()
    """Fields of `Policy` that are not as by default; never its `version`, which is the code's."""
    person: str = ""
    at: datetime = moment()


class CounterRow(SQLModel, table=True):
    """A number of the whole deployment that only grows. `LEASE_TOKENS`: the last fence token given out by any pool."""

    __tablename__ = "counter"

    name: str = Field(primary_key=True)
    value: int = big()


class DeviceRow(SQLModel, table=True):
    """What can be leased: one Dask worker's part of a machine. Several jobs run on it as far as it has room."""

    __tablename__ = "device"
    __table_args__ = (*within_whole("device"),)

    pool: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    node: str = ""
    """The machine; empty: not reported yet."""
    light: bool = False
    """Reserved for checks."""
    present: bool = True
    """The Dask worker is there."""
    state: str = "ready"
    """`ready`, `cordoned` (takes no new lease), `draining` (its leases are told to end by `drain_by` too),
    `quarantined` (something of an ended lease still runs there and cannot be ended: no new lease until it is gone)."""
    drain_by: datetime | None = moment(default=None)
    why: str = ""
    """Of a state other than ready: who said so, and why."""
    cores: int = 1
    memory_mib: int = 0
    milli_gpu: int = 0
    gpu_mib: int = 0
    job_cores: int = 1
    """Of a job that asks for none."""
    used_cores: int = 0
    used_memory_mib: int = 0
    used_milli_gpu: int = 0
    used_gpu_mib: int = 0
    since_ms: int = big()
    """When something of it was last given back: no lease on it begins before."""


class QueueRow(SQLModel, table=True):
    """A node of a pool's queue tree. Requests wait in leaves; `-1` as quota or limit: none."""

    __tablename__ = "queue"

    pool: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    parent: str = ""
    """Empty: below the pool itself."""
    quota_cores: int = NO_LIMIT
    quota_milli_gpu: int = NO_LIMIT
    limit_cores: int = NO_LIMIT
    limit_milli_gpu: int = NO_LIMIT
    weight: int = 1
    priority: int = 0
    usage_cores: int = big()
    """Decayed, in core-milliseconds, at `usage_at_ms`."""
    usage_milli_gpu: int = big()
    usage_at_ms: int = big()
    person: str = ""
    """Who set it last."""
    updated_at: datetime = moment()


class LeaseRequestRow(SQLModel, table=True):
    """Someone who wants a lease; the inbox of the pool."""

    __tablename__ = "lease_request"
    __table_args__ = (
        Index("lease_request_queue", "pool", "state", "arrival"),
        Index("lease_request_arrival", "pool", "arrival"),
        Index("lease_request_workflow", "workflow_id", "state"),
    )

    id: str = Field(primary_key=True)
    pool: str
    arrival: int
    """Its place in the line. A preempted holder waits in its first one again."""
    kind: str
    """`batch`, or `check`: it takes the light slot where there is one."""
    holder: str
    workflow_id: str
    run_id: str
    state: str
    """`queued`, `granted`, `done`, `cancelled`, `lapsed` (offered, and not taken in time)."""
    requested_at: datetime = moment()
    reason: str = ""
    """Why it lapsed."""
    queue: str = DEFAULT_QUEUE
    priority: int = 50
    preemptible: bool = True
    cores: int = 1
    """Of each member, as the three below. 0: the device's `job_cores`."""
    memory_mib: int = 0
    """0: its cores' part of the device."""
    milli_gpu: int = 0
    """-1: a whole GPU where the pool has any."""
    gpu_mib: int = 0
    members_min: int = 1
    members_max: int = 1
    max_runtime_ms: int = big()
    """Declared by its owner; 0: not."""
    stage: str = ""
    model: str = ""
    preempted_ms: list[int] = document(list)
    """When leases of it, or of the request that it follows, were taken for others: ms since 1970, the last 24 hours."""
    code: str = ""
    """Why it waits: `lease_policy.state.Explain.code`, as of the pool's last step."""
    detail: list[list[str]] = document(list)
    """`Explain.detail`."""
    position: int = 0
    """In its queue, from 1."""
    ahead: int = 0
    """Requests of any queue that are served before it."""


class LeaseRow(SQLModel, table=True):
    """A grant. Its token is the fence: strictly increasing in the whole deployment, never used twice."""

    __tablename__ = "lease"
    __table_args__ = (
        Index("lease_holder", "holder", "token"),
        Index("lease_token", "token"),
        Index("lease_live", "pool", "state"),
        Index("lease_of_request", "request_id", "state"),
    )

    pool: str = Field(primary_key=True)
    token: int = Field(primary_key=True, sa_type=BigInteger)
    request_id: str
    holder: str
    workflow_id: str
    run_id: str
    device: str
    """Of its first member."""
    state: str
    """`offered`, `active`, `noticed` (told to end by `deadline_at`), `killing` (fenced, and its members are not free
    until their processes are proven dead), `released`, `fenced`."""
    granted_at: datetime = moment()
    expires_at: datetime | None = moment(default=None)
    """When the pool looks whether its holder still lives."""
    renewals: int = 0
    """How often it has come to its time."""
    ended_at: datetime | None = moment(default=None)
    queue: str = DEFAULT_QUEUE
    noticed_at: datetime | None = moment(default=None)
    deadline_at: datetime | None = moment(default=None)
    told_at: datetime | None = moment(default=None)
    """The deadline that its holder was told; while there is no notice any more: it has to hear that, too."""
    notice: str = ""
    """Why it is to end: `reclaim`, `preempt`, `over_runtime`, `drain`, `shrink`, `revoke`, `budget`."""
    beneficiary: str = ""
    """Id of the request that the notice is for."""
    why: str = ""
    """Of a notice or a fence, in words; who said it, where a person did."""
    checkpoint_at: datetime | None = moment(default=None)
    """Of its newest durable checkpoint."""
    follows: int | None = Field(default=None, sa_type=BigInteger)
    """The token that it continues: of the run before, or with other members."""


class LeaseMemberRow(SQLModel, table=True):
    """A part of a lease: what one process may use of a device. While it is live, the device counts it as used."""

    __tablename__ = "lease_member"
    __table_args__ = (Index("lease_member_of_device", "pool", "device", "live"), Index("lease_member_token", "token"))

    pool: str = Field(primary_key=True)
    token: int = Field(primary_key=True, sa_type=BigInteger)
    rank: int = Field(primary_key=True)
    device: str
    cores: int = 1
    memory_mib: int = 0
    milli_gpu: int = 0
    gpu_mib: int = 0
    live: bool = True
    since_ms: int = big()
    """When it began, ms since 1970; 0: with its lease."""


class LeaseTimeRow(SQLModel, table=True):
    """What a part of a device was leased for, for a stretch of time. Append-only: written once, when it is free again.

    Of one moment the rows of a device never sum to more than it has; what they leave was free (activities/lease_time).
    """

    __tablename__ = "lease_time"
    __table_args__ = (
        Index("lease_time_to", "pool", "to_ms"),
        Index("lease_time_token", "pool", "token"),
        Index("lease_time_workflow", "workflow_id"),
    )

    id: int | None = Field(default=None, primary_key=True)
    pool: str
    token: int = big()
    device: str
    queue: str = ""
    workflow_id: str = ""
    model: str = ""
    stage: str = ""
    """Whose job ran; empty where none did."""
    from_ms: int = big()
    to_ms: int = big()
    cores: int = 0
    milli_gpu: int = 0
    kind: str
    """`useful`, `redone`, `checkpoint`, `held_idle`, `notice`, `quarantined`."""
    charged_to: str = ""
    """Queue that pays: of what was wasted the beneficiary's."""


class ReservationRow(SQLModel, table=True):
    """What is kept on a device for somebody who waits, for a stretch of time. Written when a decision changes it.

    No possession: what ends before `start_ms` by its declared time may still run there, so what was idle of it is the
    least of `idle_*` and of what was free (activities/lease_time).
    """

    __tablename__ = "reservation"
    __table_args__ = (Index("reservation_to", "pool", "to_ms"), Index("reservation_request", "request_id"))

    id: int | None = Field(default=None, primary_key=True)
    pool: str
    request_id: str
    workflow_id: str
    queue: str
    device: str
    cores: int = 0
    """At its start, as the three below."""
    memory_mib: int = 0
    milli_gpu: int = 0
    gpu_mib: int = 0
    idle_cores: int = 0
    """Of it, what need not come free first: kept idle until the start."""
    idle_milli_gpu: int = 0
    start_ms: int = big()
    """When it starts, by the declared ends of `waits_for`."""
    first_start_ms: int = big()
    """When it was to start at first: it has slipped by the difference."""
    waits_for: list[int] = document(list)
    """Tokens of the leases there that end by then, by their declared time."""
    from_ms: int = big()
    to_ms: int = big()
    """0: still."""


class PoolDecisionRow(SQLModel, table=True):
    """What `decide` was given and what it said: replays to the same digest anywhere. Kept for 7 days."""

    __tablename__ = "pool_decision"

    pool: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    input_digest: str
    """Of the state's canonical JSON."""
    input: str = Field(sa_type=Text)
    """The state as canonical JSON, or how it differs from that of the record before."""
    decisions: str = Field(sa_type=Text)
    at: datetime = moment()
    whole: bool = True
    """Is `input` a whole state? False: a difference."""
    policy: str = Field(default="", sa_type=Text)
    """`lease_policy.state.Policy` as canonical JSON, with its version. Empty: decided by the first policy."""
    now_ms: int = big()
    """The time that `decide` was told."""


class ResultRow(SQLModel, table=True):
    """The pointer to a leased stage's result, written in the transaction that checks the token."""

    __tablename__ = "result"

    workflow_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    stage: str = Field(primary_key=True)
    token: int = Field(sa_type=BigInteger)
    digest: str
    at: datetime = moment()
