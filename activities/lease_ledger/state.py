"""The ledger as `decide` reads it, and as a decision record keeps it: sorted, so that the same rows read the same."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from activities import lease_budgets, lease_queues
from activities.lease_ledger import rows
from activities.lease_policy.state import (
    Amount,
    Counted,
    Device,
    Held,
    Part,
    Policy,
    PoolState,
    Queue,
    Request,
)
from everloop import signing
from everloop.store import (
    DEFAULT_QUEUE,
    DeviceRow,
    LeaseMemberRow,
    LeaseRequestRow,
    LeaseRow,
    PoolPolicyRow,
)

DAY_MS = 24 * 3600 * 1000
LIVE_STATES = {"released": "killing", "fenced": "killing"}
"""A lease that has ended, but whose members are not free yet."""
WHOLE_GPU = 1000


@dataclass(frozen=True)
class Sizes:
    """What is given to who does not say it: a job's cores, the memory that goes with a core, a GPU."""

    cores: int
    core_mib: int
    light_mib: int
    gpu: bool
    gpu_mib: int = 0
    """That go with a whole GPU, a part of them with a part of it."""

    def amount(self, row: Any, *, light: bool) -> Amount:  # noqa: ANN401  # a row of ASKED
        cores = row.cores or (1 if light else self.cores)
        core = self.light_mib if light else self.core_mib
        gpu = row.milli_gpu if row.milli_gpu >= 0 else WHOLE_GPU * (self.gpu and not light)
        gpu_mib = row.gpu_mib or min(gpu, WHOLE_GPU) * self.gpu_mib // WHOLE_GPU
        return Amount(cores, row.memory_mib or cores * core, gpu, gpu_mib)


def read(session: Session, pool: str, now_ms: int) -> PoolState:
    """All that `decide` may look at."""
    devices = session.exec(select(DeviceRow).where(DeviceRow.pool == pool).order_by(DeviceRow.name)).all()
    sizes = _sizes(devices)
    queues = lease_queues.used(session, pool)
    leaves = lease_queues.leaves(queues)
    return PoolState(
        devices=tuple(_device(row) for row in devices),
        queues=queues,
        waiting=_waiting(session, pool, sizes, now_ms),
        held=tuple(_in_a_leaf(held, leaves) for held in _held(session, pool, sizes, now_ms)),
    )


def _in_a_leaf(held: Held, leaves: set[str]) -> Held:
    """A lease of a queue that is gone counts in the default one: without a queue nobody could take it back."""
    if held.request.queue in leaves:
        return held
    return held._replace(request=held.request._replace(queue=DEFAULT_QUEUE))


def policy(session: Session, pool: str) -> Policy:
    """What an operator has set, and the defaults."""
    row = session.get(PoolPolicyRow, pool)
    if row is None:
        return Policy()
    return Policy()._replace(**{name: value for name, value in row.policy.items() if name in Policy._fields[1:]})


def _device(row: DeviceRow) -> Device:
    return Device(
        name=row.name,
        node=row.node,
        whole=Amount(row.cores, row.memory_mib, row.milli_gpu, row.gpu_mib),
        light=row.light,
        open=row.present and row.state == "ready",
        drain_by_ms=rows.ms(row.drain_by) if row.state == "draining" else 0,
    )


def _sizes(devices: Sequence[DeviceRow]) -> Sizes:
    def core_mib(*, light: bool) -> int:
        return min((row.memory_mib // max(row.cores, 1) for row in devices if row.light == light), default=0)

    cores = min((row.job_cores for row in devices if not row.light), default=1)
    whole = [row.gpu_mib * WHOLE_GPU // row.milli_gpu for row in devices if row.milli_gpu]
    return Sizes(cores, core_mib(light=False), core_mib(light=True), bool(whole), min(whole, default=0))


ASKED = (
    *(LeaseRequestRow.id, LeaseRequestRow.arrival, LeaseRequestRow.requested_at, LeaseRequestRow.queue),
    *(LeaseRequestRow.cores, LeaseRequestRow.memory_mib, LeaseRequestRow.milli_gpu, LeaseRequestRow.gpu_mib),
    *(LeaseRequestRow.priority, LeaseRequestRow.preemptible, LeaseRequestRow.kind, LeaseRequestRow.members_min),
    *(LeaseRequestRow.members_max, LeaseRequestRow.max_runtime_ms, LeaseRequestRow.preempted_ms),
)


def _request(row: Any, sizes: Sizes, now_ms: int) -> Request:  # noqa: ANN401  # a row of ASKED
    light = row.kind == "check"
    return Request(
        id=row.id,
        arrival=row.arrival,
        submitted_ms=rows.ms(row.requested_at),
        queue=row.queue,
        member=sizes.amount(row, light=light),
        priority=row.priority,
        preemptible=row.preemptible,
        light=light,
        members_min=row.members_min,
        members_max=row.members_max,
        max_runtime_ms=row.max_runtime_ms,
        preempted=sum(at > now_ms - DAY_MS for at in row.preempted_ms),
    )


def _waiting(session: Session, pool: str, sizes: Sizes, now_ms: int) -> tuple[Request, ...]:
    query = select(*ASKED).where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")  # type: ignore[call-overload]
    spent_queues, spent_lifecycles = lease_budgets.held_back(session, pool)
    if spent_queues or spent_lifecycles:
        theirs = col(LeaseRequestRow.queue).in_(spent_queues) | col(LeaseRequestRow.workflow_id).in_(spent_lifecycles)
        query = query.where(~theirs | (LeaseRequestRow.kind == lease_budgets.CHECK))
    found = (_request(row, sizes, now_ms) for row in session.exec(query))
    return tuple(sorted(found, key=lambda request: (request.arrival, request.id)))


def _held(session: Session, pool: str, sizes: Sizes, now_ms: int) -> tuple[Held, ...]:
    """Also what was taken away and is not proven dead yet."""
    live = select(LeaseMemberRow).where(LeaseMemberRow.pool == pool, col(LeaseMemberRow.live))
    parts: dict[int, list[Part]] = defaultdict(list)
    for one in session.exec(live.order_by(col(LeaseMemberRow.token), col(LeaseMemberRow.rank))):
        amount = Amount(one.cores, one.memory_mib, one.milli_gpu, one.gpu_mib)
        parts[one.token].append(Part(one.device, amount))
    if not parts:
        return ()
    tokens = col(LeaseRow.token).in_(list(parts))
    query = (
        select(LeaseRow, LeaseRequestRow)
        .outerjoin(LeaseRequestRow, col(LeaseRequestRow.id) == LeaseRow.request_id)
        .where(LeaseRow.pool == pool, tokens)
        .order_by(col(LeaseRow.token))
    )
    return tuple(_lease(row, parts[row.token], asked, sizes, now_ms) for row, asked in session.exec(query))


def _lease(row: LeaseRow, parts: list[Part], asked: LeaseRequestRow | None, sizes: Sizes, now_ms: int) -> Held:
    if asked is None:
        request = Request(row.request_id, 0, rows.ms(row.granted_at), row.queue, parts[0].amount)
    else:
        request = _request(asked, sizes, now_ms)
    return Held(
        token=row.token,
        request=request._replace(queue=row.queue),
        members=tuple(parts),
        state=LIVE_STATES.get(row.state, row.state),
        granted_ms=rows.ms(row.granted_at),
        checkpoint_ms=rows.ms(row.checkpoint_at),
        deadline_ms=rows.ms(row.deadline_at),
        beneficiary=row.beneficiary,
    )


# --- as records keep it -----------------------------------------------------------------------------

SECTIONS = ("devices", "queues", "waiting", "held")


def plain(state: PoolState) -> dict[str, list[Any]]:
    """Lists only, as JSON gives them back."""
    return {name: [_listed(row) for row in getattr(state, name)] for name in SECTIONS}


def _listed(value: Any) -> Any:  # noqa: ANN401
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def of_plain(found: dict[str, list[Any]]) -> PoolState:
    """The state that `plain` was made of; fields that an older record lacks have their defaults."""
    return PoolState(
        devices=tuple(Device(row[0], row[1], Amount(*row[2]), *row[3:]) for row in found["devices"]),
        queues=tuple(_queue(row) for row in found["queues"]),
        waiting=tuple(_asked(row) for row in found["waiting"]),
        held=tuple(_kept(row) for row in found["held"]),
    )


def _queue(row: list[Any]) -> Queue:
    name, parent, quota, limit, weight, priority, usage, *rest = row
    return Queue(name, parent, Counted(*quota), Counted(*limit), weight, priority, Counted(*usage), *rest)


def _asked(row: list[Any]) -> Request:
    name, arrival, submitted_ms, queue, member, *rest = row
    return Request(name, arrival, submitted_ms, queue, Amount(*member), *rest)


def _kept(row: list[Any]) -> Held:
    token, request, members, *rest = row
    return Held(token, _asked(request), tuple(Part(name, Amount(*amount)) for name, amount in members), *rest)


def text(found: dict[str, list[Any]]) -> str:
    return signing.canonical(found).decode()


def difference(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> dict[str, Any]:
    """What to take from *before* and what to put into it, by section."""
    found: dict[str, Any] = {}
    for name in SECTIONS:
        old = {row[0]: row for row in before[name]}
        new = {row[0]: row for row in after[name]}
        gone = [key for key in old if key not in new]
        now = [row for key, row in new.items() if old.get(key) != row]
        if gone or now:
            found[name] = {"gone": gone, "now": now}
    return found


def followed(before: dict[str, list[Any]], change: dict[str, Any]) -> dict[str, list[Any]]:
    """*before* with a `difference` done to it."""
    after = {}
    for name in SECTIONS:
        told = change.get(name, {"gone": [], "now": []})
        kept = {row[0]: row for row in before[name]}
        for key in told["gone"]:
            del kept[key]
        kept |= {row[0]: row for row in told["now"]}
        after[name] = sorted(kept.values(), key=_order_of[name])
    return after


_order_of = {
    "devices": lambda row: row[0],
    "queues": lambda row: row[0],
    "waiting": lambda row: (row[1], row[0]),
    "held": lambda row: row[0],
}


def decisions_text(decisions: Iterable[Any]) -> str:
    """Each decision with its name, as canonical JSON."""
    return signing.canonical([[type(one).__name__, *_listed(one)] for one in decisions]).decode()
