"""Reservations in SQL: who has which capacity kept, since when, and until what starts. Written when they change."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlmodel import Session, select

from activities.lease_policy import apply
from activities.lease_policy.reserve import UNDECLARED_MS
from activities.lease_policy.room import NOTHING, Four, fit, minus, most, plus, times
from activities.lease_policy.state import Amount, Decision, Explain, PoolState, Reserve
from everloop.amounts import AMOUNTS
from everloop.store import LeaseRequestRow, ReservationRow

TRIAL_TOKENS = 1 << 62
"""Of grants that are not committed: nobody waits for these by token."""


class Kept(NamedTuple):
    """A part of a device that is kept for a request."""

    request_id: str
    device: str
    amount: Amount
    """At its start."""
    idle: Amount
    """Of it, what does not come free only until then."""
    start_ms: int
    waits_for: tuple[int, ...]
    """Leases on the device that end by then, by their declared time."""


def kept(state: PoolState, decisions: Sequence[Decision], now_ms: int) -> tuple[Kept, ...]:
    """What *decisions* about *state* keep, device by device."""
    reserved = [one for one in decisions if isinstance(one, Reserve)]
    if not reserved:
        return ()
    after = apply(state, (one for one in decisions if not isinstance(one, Explain | Reserve)), now_ms, TRIAL_TOKENS)
    asked = {request.id: request for request in state.waiting}
    wholes = {device.name: device.whole for device in state.devices}
    found: list[Kept] = []
    for one in reserved:
        request = asked[one.request_id]
        left = request.members_min
        for name in one.devices:
            used, gained, tokens = _on(after, name, one, now_ms)
            room = plus(minus(wholes[name], used), gained)
            number = min(fit(room, request.member), left)
            left -= number
            amount = times(request.member, number)
            idle = most(minus(amount, gained), NOTHING)
            counted = Amount(cores=idle[0], milli_gpu=idle[2])
            found.append(Kept(request.id, name, Amount(*amount), counted, one.start_ms, tokens))
    return tuple(found)


def _on(state: PoolState, device: str, kept_for: Reserve, now_ms: int) -> tuple[Four, Four, tuple[int, ...]]:
    """What is used of the device, and what of that ends by the start, of which leases."""
    used, gained, tokens = NOTHING, NOTHING, []
    for held in state.held:
        runtime = held.request.max_runtime_ms or UNDECLARED_MS
        ends = held.token in kept_for.ends or (held.granted_ms == now_ms and runtime <= kept_for.start_ms - now_ms)
        for part in held.members:
            if part.device != device:
                continue
            used = plus(used, part.amount)
            if ends:
                gained = plus(gained, part.amount)
                tokens += [held.token] if held.token < TRIAL_TOKENS else []
    return used, gained, tuple(tokens)


def standing(session: Session, pool: str) -> list[ReservationRow]:
    """Those that are kept now, in the order in which they were made."""
    query = select(ReservationRow).where(ReservationRow.pool == pool, ReservationRow.to_ms == 0)
    return list(session.exec(query.order_by(ReservationRow.id)).all())  # type: ignore[arg-type]


def differ(rows: Iterable[ReservationRow], now: Iterable[Kept]) -> bool:
    """Is *now* not what the rows say?"""
    return sorted(map(_of_row, rows)) != sorted(now)


def note(session: Session, pool: str, now: Iterable[Kept], now_ms: int) -> None:
    """From *now_ms* on these are kept. What is as it was stays as it stands."""
    left = set(now)
    first: dict[str, int] = {}
    for row in standing(session, pool):
        first[row.request_id] = row.first_start_ms
        one = _of_row(row)
        if one in left:
            left.remove(one)
            continue
        row.to_ms = max(now_ms, row.from_ms + 1)
        session.add(row)
    for one in sorted(left):
        request = session.get(LeaseRequestRow, one.request_id)
        if request is None:
            continue
        row = ReservationRow(pool=pool, request_id=one.request_id, workflow_id=request.workflow_id, device=one.device,
                             queue=request.queue, from_ms=now_ms, start_ms=one.start_ms)  # fmt: skip
        row.sqlmodel_update(one.amount._asdict())
        row.idle_cores, row.idle_milli_gpu = one.idle.cores, one.idle.milli_gpu
        row.first_start_ms = first.get(one.request_id, one.start_ms)
        row.waits_for = list(one.waits_for)
        session.add(row)


def _of_row(row: ReservationRow) -> Kept:
    amount = Amount(*(getattr(row, what) for what in AMOUNTS))
    idle = Amount(cores=row.idle_cores, milli_gpu=row.idle_milli_gpu)
    return Kept(row.request_id, row.device, amount, idle, row.start_ms, tuple(row.waits_for))
