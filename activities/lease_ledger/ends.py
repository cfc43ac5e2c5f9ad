"""How leases end: given back by who holds them, or taken away.

What is taken away is fenced at once. Its members stay used until their processes are proven dead (`proven`).
"""

from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy import func
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from activities.caller import Caller
from activities.lease_ledger import capacity, rows
from everloop.store import DeviceRow, LeaseMemberRow, LeaseRequestRow, LeaseRow, Store

STUCK = timedelta(seconds=60)
"""An end that is not proven for so long has gone wrong (usual: within 6 s)."""
AT_ONCE = 50
"""Members that are looked for in one step: of each device as many."""


def end(store: Store, pool: str, token: int, state: str, *, reason: str = "", why: str = "") -> bool:
    """End a lease as `released` or `fenced` and, with it, its request. False when it had ended before.

    *reason*: what whoever waits with the request is told when it asks again. *why*: of a fence.
    """
    with store.write() as session:
        rows.alone(session, pool)
        row = session.get(LeaseRow, (pool, token))
        if row is None or row.state not in rows.WORKING:
            return False
        ended(session, row, state, why)
        request_ends(session, row, "lapsed" if reason else "done", reason)
        return True


def ended(session: Session, row: LeaseRow, state: str, why: str = "", *, charged: bool = True) -> None:
    """The lease lives no more. Whose holder has worked and did not say that it has ended leaves its members used.

    *charged*: False where another lease goes on with its members, and is charged for both.
    """
    at = rows.now()
    if state == "released" or row.state == "offered":
        capacity.give_back(session, row, rows.ms(at), charged=charged)
    row.state, row.expires_at, row.ended_at, row.why = state, None, at, why or row.why
    session.add(row)


def request_ends(session: Session, row: LeaseRow, state: str, reason: str = "") -> None:
    """The request of a lease that has ended ends too, unless another run of its workflow waits with it now."""
    request = session.get(LeaseRequestRow, row.request_id)
    if request is not None and request.state == "granted" and request.holder == row.holder:
        request.state, request.reason = state, reason
        session.add(request)


def end_run(store: Store, asks: Caller) -> set[str]:
    """End whatever a closed run held, was offered or waited for. Returns the pools that it was of."""
    with store.read() as session:  # most runs have left nothing, and a write would keep others waiting
        left = {row.pool for row in session.exec(_working_of(asks)).all()}
        left |= {row.pool for row in session.exec(_queued_of(asks)).all()}
    if not left:
        return set()
    with store.write() as session:
        for pool in sorted(left):
            rows.alone(session, pool)
        leases, requests = session.exec(_working_of(asks)).all(), session.exec(_queued_of(asks)).all()
        for row in leases:
            ended(session, row, "fenced", "its holder has ended")
            request_ends(session, row, "done")
        for request in requests:
            request.state = "cancelled"
            session.add(request)
        pools = {row.pool for row in leases} | {row.pool for row in requests}
        for pool in sorted(pools):
            rows.changed(session, pool)
        return pools


def _working_of(asks: Caller) -> SelectOfScalar[LeaseRow]:
    return select(LeaseRow).where(LeaseRow.holder == asks.holder, col(LeaseRow.state).in_(rows.WORKING))


def _queued_of(asks: Caller) -> SelectOfScalar[LeaseRequestRow]:
    return select(LeaseRequestRow).where(
        LeaseRequestRow.workflow_id == asks.workflow_id,
        LeaseRequestRow.state == "queued",
        LeaseRequestRow.run_id == asks.run_id,
    )


def unproven(store: Store, pool: str) -> list[LeaseMemberRow]:
    """Members of leases that were taken away, on devices that can be asked whether anything of them still runs.

    A device on which nothing can be proven does not keep the others from it.
    """
    place = func.row_number().over(
        partition_by=col(LeaseMemberRow.device), order_by=(col(LeaseMemberRow.token), col(LeaseMemberRow.rank))
    )
    query = (
        select(LeaseMemberRow)
        .join(LeaseRow, (col(LeaseRow.pool) == LeaseMemberRow.pool) & (col(LeaseRow.token) == LeaseMemberRow.token))
        .join(DeviceRow, (col(DeviceRow.pool) == LeaseMemberRow.pool) & (col(DeviceRow.name) == LeaseMemberRow.device))
        .where(LeaseMemberRow.pool == pool, col(LeaseMemberRow.live), col(LeaseRow.state).not_in(rows.WORKING))
        .where(col(DeviceRow.present))
        .order_by(place, col(LeaseMemberRow.token), col(LeaseMemberRow.rank))
        .limit(AT_ONCE)
    )
    with store.read() as session:
        return list(session.exec(query).all())


def proven(store: Store, pool: str, dead: Iterable[tuple[int, int]]) -> None:
    """Nothing of these members, (token, rank), runs any more: what the lease has of their devices is free.

    A gang's other members may be on a device that is away, perhaps for ever: nobody waits for that.
    """
    said: dict[int, set[int]] = {}
    for token, rank in dead:
        said.setdefault(token, set()).add(rank)
    if not said:
        return
    with store.write() as session:
        rows.alone(session, pool)
        for token, ranks in sorted(said.items()):
            row = session.get(LeaseRow, (pool, token))
            if row is None or row.state in rows.WORKING:
                continue
            live = rows.members(session, row, live=True)
            held = {member.device for member in live if member.rank not in ranks}
            free = {member.device for member in live} - held
            if free:
                capacity.give_back(session, row, rows.ms(rows.now()), free)
            if not held:
                row.state = "fenced"
                session.add(row)


def quarantine(store: Store, pool: str) -> set[str]:
    """Close devices on which something of an ended lease runs on and cannot be ended; open those where it is gone.

    Returns those that are closed. Other states of a device are an operator's, and stay.
    """
    before = rows.now() - STUCK
    with store.read() as session:
        stuck = set(session.exec(_stuck(pool).where(col(LeaseRow.ended_at) < before)).all())
        devices = session.exec(select(DeviceRow).where(DeviceRow.pool == pool)).all()
    closed = {row.name for row in devices if row.state == "quarantined"}
    closing = {row.name for row in devices if row.state == "ready" and row.name in stuck}
    if not closing and closed <= stuck:  # what an operator has closed is closed already
        return closed
    with store.write() as session:
        rows.alone(session, pool)
        for row in session.exec(select(DeviceRow).where(DeviceRow.pool == pool)).all():
            if row.name in stuck and row.state == "ready":
                row.state, row.why = "quarantined", "something of a lease that has ended cannot be ended there"
            elif row.name not in stuck and row.state == "quarantined":
                row.state, row.why = "ready", ""
            session.add(row)
        rows.changed(session, pool)
    return (closed & stuck) | closing


def _stuck(pool: str) -> SelectOfScalar[str]:
    """Devices with a member of a lease that was taken away."""
    return (
        select(LeaseMemberRow.device)
        .join(LeaseRow, (col(LeaseRow.pool) == LeaseMemberRow.pool) & (col(LeaseRow.token) == LeaseMemberRow.token))
        .where(LeaseMemberRow.pool == pool, col(LeaseMemberRow.live), col(LeaseRow.state).not_in(rows.WORKING))
    )
