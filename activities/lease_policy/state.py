"""What `decide` reads and what it says: tuples of integers and texts, so that the same state reads the same anywhere.

Amounts are whole: cores, MiB, thousandths of a GPU. Times are milliseconds since 1970 by the database's clock. A queue
has a quota, a limit and a share of two resources, `COUNTED`; memory is a bound on where a member fits, not a share.
"""

from typing import NamedTuple

from everloop.amounts import COUNTED, NO_LIMIT, Amount, Counted
from everloop.queues import Queue

VERSION = "5"
"""Of the decisions: another one wherever the same state may be decided otherwise (tests/unit/test_lease_policy.py)."""


class Device(NamedTuple):
    """One Dask worker's part of a machine. What leases use of it is in `Held`, also offered and quarantined ones."""

    name: str
    node: str
    whole: Amount
    light: bool = False
    """Reserved for checks."""
    open: bool = True
    """It may get new leases: its worker is there, and nobody drains it."""
    drain_by_ms: int = 0
    """Somebody drains it: by then no lease is to be on it. 0: nobody does."""


class Request(NamedTuple):
    """Somebody who waits."""

    id: str
    arrival: int
    """Its place in the line; a preempted request keeps its first one."""
    submitted_ms: int
    queue: str
    member: Amount
    """Of each member."""
    priority: int = 50
    preemptible: bool = True
    light: bool = False
    """A check: it takes the light slot where there is one."""
    members_min: int = 1
    members_max: int = 1
    max_runtime_ms: int = 0
    """Declared by its owner; 0: not."""
    preempted: int = 0
    """How often in the last 24 hours."""


class Part(NamedTuple):
    """What a member of a lease has of a device."""

    device: str
    amount: Amount


class Held(NamedTuple):
    """A lease that has not ended."""

    token: int
    request: Request
    """As it was asked for."""
    members: tuple[Part, ...]
    state: str
    """`offered`, `active`, `noticed` (told to end by `deadline_ms`), `killing` (fenced; its parts are not free until
    its processes are proven dead)."""
    granted_ms: int
    checkpoint_ms: int = 0
    """Of its newest durable checkpoint, or of its beginning."""
    deadline_ms: int = 0
    """Of its notice, or of its kill. When an offer lapses is the ledger's: it asks whether its holder
    lives."""
    beneficiary: str = ""
    """Id of the request that the notice is for."""


class PoolState(NamedTuple):
    """Everything that `decide` may look at."""

    devices: tuple[Device, ...] = ()
    queues: tuple[Queue, ...] = ()
    waiting: tuple[Request, ...] = ()
    held: tuple[Held, ...] = ()


class Policy(NamedTuple):
    """What an operator may set for a pool."""

    version: str = VERSION
    """Not an operator's to set: records of another version are not decided again."""
    half_life_s: int = 7 * 24 * 3600
    """Of a queue's usage."""
    usage_weight: int = 1000
    """k of gpu.md 1.1 e, in thousandths."""
    min_runtime_s: int = 600
    """No lease is preempted sooner."""
    grace_s: int = 60
    """Between the notice and the end."""
    most_preemptions_a_day: int = 3
    starving_s: int = 4 * 3600
    """A request over its queue's quota that has waited longer gets a reservation."""
    saturation_percent: int = 120
    """How much less saturated the taker's queue must stay than the victim's, where both are over quota."""
    reserve_after_s: int = 60
    """A request within quota that cannot be placed for longer holds a reservation against backfill."""


# --- decisions, in the order in which they are to be done -----------------------------------------


class Grant(NamedTuple):
    """Give the request these parts. Its token is taken when the decision is committed."""

    request_id: str
    members: tuple[Part, ...]


class Notice(NamedTuple):
    """Ask the holder to write a checkpoint and let go by *deadline_ms*."""

    token: int
    beneficiary: str
    """The request that fits once all its victims have let go; empty: the lease is over its time, or drained."""
    reason: str
    """`reclaim` (for another queue), `preempt` (for a higher priority in its queue), `shrink` (an elastic lease ends to
    come back with fewer members), `over_runtime` (it is over its declared time and others starve), `drain`."""
    deadline_ms: int


class Withdraw(NamedTuple):
    """The notice is not needed any more: its beneficiary has gone or fits elsewhere."""

    token: int


class Kill(NamedTuple):
    """The deadline has passed: fence the token, and end its processes before its parts are free."""

    token: int
    deadline_ms: int
    """So long its end is counted on by whom it makes way for; then others are asked. It is the lease's new deadline."""


class Resize(NamedTuple):
    """Give an elastic lease these parts, all of them, under a new token."""

    token: int
    members: tuple[Part, ...]


class Reserve(NamedTuple):
    """No possession: others may start on these devices only if they end before *start_ms* by their declared time."""

    request_id: str
    devices: tuple[str, ...]
    start_ms: int
    ends: tuple[int, ...] = ()
    """Tokens of the leases there that are counted on to end by then, of those that were granted before."""


class Explain(NamedTuple):
    """Why the request still waits: one reason, true of this state."""

    request_id: str
    code: str
    """`behind`, `no_room`, `over_limit`, `over_quota`, `not_preemptible_over_quota`, `reserved_for`,
    `waits_for_notice`, `infeasible`, `unknown_queue`, `has_lease`, `fuel`."""
    position: int
    """Place in its queue among those who wait, from 1."""
    ahead: int
    """Of any queue: those before it in its own, and all of the queues whose turn is before its queue's."""
    detail: tuple[tuple[str, str], ...] = ()
    """What the sentence names: ("queue", "vision"), ("needs", "2 cores"), ("free", "1 core"), ..."""


class Usage(NamedTuple):
    """A queue's decayed usage at *at_ms*: told once in a 64th of the half-life, and exact in between (usage.py)."""

    queue: str
    usage: Counted
    at_ms: int


Decision = Grant | Notice | Withdraw | Kill | Resize | Reserve | Explain | Usage


class Standing(NamedTuple):
    """What a queue has a right to, and what it has, for people to see."""

    queue: str
    quota: Counted
    """`NO_LIMIT` where none is set."""
    demand: Counted
    share: Counted
    allocated: Counted
    """Also what is offered, noticed or being killed."""
    usage: Counted
    """Decayed, in resource-milliseconds."""
    scaled: bool
    """The quotas beside it add up to more than there is to give: its own counts only in part."""


__all__ = [
    "COUNTED",
    "NO_LIMIT",
    "Amount",
    "Counted",
    "Decision",
    "Device",
    "Explain",
    "Grant",
    "Held",
    "Kill",
    "Notice",
    "Part",
    "Policy",
    "PoolState",
    "Queue",
    "Request",
    "Reserve",
    "Resize",
    "Standing",
    "Usage",
    "Withdraw",
]
