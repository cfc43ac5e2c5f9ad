"""What the API answers about a pool, and what it takes to change one."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StringConstraints

from everloop import names

Rule = StrictInt | StrictFloat | Annotated[str, StringConstraints(max_length=60)] | None
Reason = Annotated[str, StringConstraints(max_length=2000, strip_whitespace=True)]


class Amounts(BaseModel):
    """What a device has, or a member of a lease."""

    cores: int
    memory_mib: int = 0
    milli_gpu: int = 0
    gpu_mib: int = 0


class Counted(BaseModel):
    """What queues share. -1: none."""

    cores: int
    milli_gpu: int


class DeviceView(BaseModel):
    """One Dask worker's part of a machine."""

    name: str
    node: str
    state: str
    """`ready`, `cordoned` (no new leases), `draining` (its leases are told to let go, too), `quarantined` (something of
    an ended lease still runs there), `away` (its worker is not there)."""
    why: str
    """Of a state other than ready."""
    light: bool
    """Reserved for checks."""
    whole: Amounts
    used: Amounts
    """Also by leases that have ended and whose processes are not proven dead."""


class QueueView(BaseModel):
    """A node of the queue tree."""

    id: str
    parent: str
    depth: int
    """0 below the pool itself."""
    quota: Counted
    limit: Counted
    weight: int
    priority: int
    share: Counted | None
    """What it may have now, by the policy; null where the policy could not say it."""
    use: Counted
    """Of it and of all below it."""
    usage: Counted
    """What it and all below it have used, decayed by the policy's half-life, in resource-milliseconds."""
    pending: int
    over_quota: bool
    scaled: bool
    """The quotas beside it add up to more than there is now: its own counts only in part."""


class Notice(BaseModel):
    """A lease is told to let go."""

    reason: str
    """`reclaim`, `preempt`, `over_runtime`, `drain`, `shrink`, `revoke`, `budget`."""
    why: str
    """In words; who said it, where a person did."""
    by: str
    """The lifecycle whose request needs it, and its queue."""
    deadline: datetime | None


class MemberView(BaseModel):
    """A part of a lease."""

    rank: int
    device: str
    amounts: Amounts
    isolation: str = ""
    """The level that it has on its GPU; empty without one."""
    fenced: str = ""
    """The same in words: "shared, not fenced"."""


class LeaseView(BaseModel):
    """Who holds what."""

    token: int
    request: str
    lifecycle: str
    """Id of the workflow that holds it: a lifecycle's, or a drift check's."""
    model: str
    stage: str
    queue: str
    priority: int
    preemptible: bool
    state: str
    """`offered`, `active`, `noticed` (told to let go), `killing` (it has ended, its processes are not proven dead),
    `released`, `fenced`."""
    members: list[MemberView]
    granted_at: datetime
    ended_at: datetime | None
    notice: Notice | None
    reclaimable: bool
    """Its queue has more than its quota, and it may be preempted: another queue that is owed may take it back."""
    max_runtime_seconds: float
    """Declared by its owner; 0: not."""
    over_runtime_seconds: float
    """It runs so much longer than that: the first to let go for who has waited long. 0: it does not."""


class WaitingView(BaseModel):
    """Somebody who waits, with one true reason."""

    request: str
    lifecycle: str
    queue: str
    priority: int
    since: datetime
    needs: Amounts
    members: int
    position: int
    """In its queue, from 1."""
    ahead: int
    """Requests of any queue that are served before it."""
    code: str
    sentence: str
    unblocks: str


class KeptView(BaseModel):
    """What is kept of a device."""

    device: str
    amounts: Amounts
    """At the start."""
    idle: Counted
    """Of it, what is kept idle until then, as far as nothing short runs on it."""


class ReservationView(BaseModel):
    """Devices are kept for somebody who waits: others start there only if they end before, by their declared time."""

    request: str
    lifecycle: str
    queue: str
    since: datetime
    starts_at: datetime
    slipped_seconds: float
    """How much later that is than it was to be at first."""
    parts: list[KeptView]
    waits_for: list[int]
    """Tokens of the leases that end by then."""
    sentence: str


class PoolView(BaseModel):
    """A pool as it is now."""

    pool: str
    devices: list[DeviceView]
    queues: list[QueueView]
    leases: list[LeaseView]
    waiting: list[WaitingView]
    waiting_in_all: int
    """`waiting` lists the first ones alone."""
    reservations: list[ReservationView]
    links: dict[str, str]


class QueueList(BaseModel):
    """The tree in order: parents first."""

    items: list[QueueView]
    tree: dict[str, Any]
    """As a queue file has it: what `PUT` takes."""
    digest: str
    """Of the tree: a change names what it has seen."""


class RuleView(BaseModel):
    """A rule of the policy."""

    name: str
    value: int
    """Seconds of a time, percent, thousandths of `usage_weight`, else a number."""
    default: int
    words: str
    """The value as people say it."""
    usual: str
    """The default, likewise."""
    about: str


class PolicyView(BaseModel):
    """By what the pool decides who is served, and who has to let go."""

    pool: str
    rules: list[RuleView]
    person: str
    """Who changed it last; empty: nobody has."""
    at: datetime | None


class LeaseList(BaseModel):
    items: list[LeaseView]


class NodeView(BaseModel):
    """A machine with its devices."""

    node: str
    state: str
    """Of its devices, what hinders most; `drained` where it is draining and holds no lease any more. Only on some of
    them: `partly draining`."""
    devices: list[DeviceView]
    leases: int


class NodeList(BaseModel):
    items: list[NodeView]


class Explained(BaseModel):
    """Why a request waits, or how its lease stands. One of both is there."""

    waiting: WaitingView | None = None
    lease: LeaseView | None = None
    sentence: str


class Effect(BaseModel):
    """What a change of the queue tree does to one running lease."""

    token: int
    lifecycle: str
    queue: str
    now: str
    """`safe` (within its queue's quota, or not preemptible), `reclaimable` (over quota: it may be taken back when
    another queue is owed), `noticed` (the policy would tell it to let go at once), `over_limit` (it goes on, and waits
    once it has given back what it has)."""
    then: str
    sentence: str


class Changed(BaseModel):
    """A change of the queue tree, made or only tried."""

    made: bool
    """False: `try` was asked for, and nothing has changed."""
    changes: list[str]
    """Per queue, in words; none where the tree is as it was."""
    effects: list[Effect]
    """Running leases that stand otherwise after it."""
    grants: list[str]
    """Waiting requests that would be served at once."""
    waits: list[str]
    """Waiting requests that a limit or a quota would keep waiting, and does not now."""
    digest: str


class Ordered(BaseModel):
    """An order was carried out."""

    done: str
    tokens: list[int]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PolicyAsked(_Asked):
    """Rules to change: times as `30s`, `10m`, `7d` or in seconds; `default` is the usual value; left out stays."""

    grace: Rule = None
    minimum_run_time: Rule = None
    preemptions_a_day: Rule = None
    reserve_after: Rule = None
    starving: Rule = None
    usage_half_life: Rule = None
    usage_weight: Rule = None
    saturation_percent: Rule = None


class RevokeAsked(_Asked):
    """Take a lease back."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=2000, strip_whitespace=True)]
    """Its lifecycle's page shows it."""
    grace_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60
    """For a checkpoint; then it is ended."""


class DrainAsked(_Asked):
    """Give a node no new leases, and empty it."""

    reason: Reason = ""
    grace_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60


class CordonAsked(_Asked):
    """Give a node no new leases; those that it has go on."""

    reason: Reason = ""


class UndrainAsked(_Asked):
    """Let it have leases again."""

    reason: Reason = ""


class TreeAsked(_Asked):
    """A whole queue tree."""

    queues: dict[str, Any]
    """As in a queue file."""


class QueueAsked(_Asked):
    """Fields of one queue; what is left out stays. A queue that is not there yet is added."""

    parent: Annotated[str, StringConstraints(max_length=names.MOST_CHARACTERS)] | None = None
    quota: Any = None
    """`{cores: 2, gpus: 0.5}`, a part of it, or `none`."""
    limit: Any = None
    weight: int | None = None
    priority: int | None = None
    remove: bool = False
    """Take the queue out of the tree."""
