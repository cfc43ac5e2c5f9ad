"""What a holder does with its lease: takes it, commits under it, gives it back, hands it to its next run."""

from datetime import datetime

from sqlmodel import Session, select

from activities.caller import Caller
from activities.lease_ledger import capacity, rows
from activities.lease_ledger.ends import ended, request_ends
from activities.lease_ledger.fence import check_token
from activities.lease_policy.state import Amount, Part
from everloop.amounts import AMOUNTS
from everloop.contracts import AcceptRequest, CommitRequest
from everloop.errors import Forbidden, LeaseLost
from everloop.records import Member, Slot
from everloop.store import (
    LEASE_TOKENS,
    CounterRow,
    DeviceRow,
    LeaseRequestRow,
    LeaseRow,
    ResultRow,
    Store,
)


def accept(store: Store, request: AcceptRequest, asks: Caller) -> Slot:
    """Make the offer a lease. Raises `LeaseLost` when it has lapsed or was never made to *asks* for that request."""
    with store.write() as session:
        row = rows.alone_with(session, rows.lease(session, request.token, asks.workflow_id))
        fits = row is not None and row.request_id == request.request_id and row.holder == asks.holder
        if row is None or not fits or row.state not in rows.WORKING:
            raise LeaseLost(f"token {request.token} is no offer to {asks.holder} for request {request.request_id}")
        if row.state == "offered":
            at = rows.now()
            row.state, row.expires_at, row.renewals = "active", at + rows.LEASE_TTL, 0
            session.add(row)
        return slot_of(session, row)


def slot_of(session: Session, row: LeaseRow) -> Slot:
    """The lease as its holder knows it."""
    members = tuple(
        Member(rank=one.rank, device=one.device, **{what: getattr(one, what) for what in AMOUNTS})
        for one in rows.members(session, row)
    )
    return Slot(device=row.device, token=row.token, holder=row.holder, members=members)


def held(store: Store, request: AcceptRequest, asks: Caller) -> LeaseRow | None:
    """The lease that *asks* gives back, or None when it has ended. Raises `Forbidden` for somebody else's.

    Its run may be an earlier one of the same workflow: a Reset replays a lease. Older workers name no request.
    """
    with store.read() as session:
        row = rows.lease(session, request.token, asks.workflow_id)
        if row is None and rows.lease(session, request.token) is not None:
            raise Forbidden(f"the lease with token {request.token} is not one of {asks.workflow_id}")
        if row is not None and request.request_id not in ("", row.request_id):
            raise Forbidden(f"the lease with token {request.token} was not granted for request {request.request_id}")
        return row if row is not None and row.state in rows.WORKING else None


def commit(store: Store, request: CommitRequest, asks: Caller) -> None:
    """Write the pointer to a stage's result. Raises `LeaseLost` when the token is fenced."""
    if request.slot.holder.rpartition("/")[0] != asks.workflow_id:
        raise Forbidden(f"the lease of {request.slot.holder} is not one of {asks.workflow_id}")
    with store.write() as session:
        check_token(session, request.slot, "result")
        session.merge(
            ResultRow(
                workflow_id=asks.workflow_id,
                run_id=asks.run_id,
                stage=request.stage,
                token=request.slot.token,
                digest=request.digest,
                at=rows.now(),
            )
        )


def adopt(store: Store, request: AcceptRequest, asks: Caller) -> Slot:
    """The lease of an earlier run of this workflow for the run that asks: a new token for the same members.

    One transaction: there is no moment without a lease, and none with two. Safe to repeat. The caller has to know
    that the earlier run is closed. Raises `LeaseLost` when the lease has ended, `Forbidden` for somebody else's.
    """
    with store.write() as session:
        row = rows.alone_with(session, rows.lease(session, request.token, asks.workflow_id))
        if row is None or row.request_id != request.request_id:
            raise Forbidden(f"the lease with token {request.token} is not one of {asks.workflow_id}")
        again = session.exec(
            select(LeaseRow).where(LeaseRow.holder == asks.holder, LeaseRow.follows == row.token)
        ).first()
        if again is not None and again.state in rows.WORKING:
            return slot_of(session, again)
        if row.state not in ("active", "noticed"):
            raise LeaseLost(f"the lease with token {request.token} has ended", hint="take a new one")
        return slot_of(session, _followed(session, row, asks))


def _followed(session: Session, row: LeaseRow, asks: Caller) -> LeaseRow:
    at = rows.now()
    parts = [
        Part(one.device, Amount(*(getattr(one, what) for what in AMOUNTS)))
        for one in rows.members(session, row, live=True)
    ]
    counter = session.get_one(CounterRow, LEASE_TOKENS, with_for_update=True)
    counter.value += 1
    told = row.model_dump(include={"request_id", "queue", "device", "noticed_at", "deadline_at", "notice"})
    told |= row.model_dump(include={"beneficiary", "why", "checkpoint_at"})
    following = LeaseRow(
        pool=row.pool,
        token=counter.value,
        holder=asks.holder,
        workflow_id=asks.workflow_id,
        run_id=asks.run_id,
        state=row.state,
        granted_at=row.granted_at,  # else a chain that hands on often would never have had its minimum run time
        expires_at=at + rows.LEASE_TTL,
        follows=row.token,
        **told,
    )
    ended(session, row, "released", f"token {counter.value} follows it", charged=False)
    request = session.get(LeaseRequestRow, row.request_id)
    if request is not None:
        request.run_id, request.holder = asks.run_id, asks.holder
        session.add(request)
    session.add_all((counter, following))
    session.flush()  # what was given back is free before it is taken again
    capacity.take(session, following, parts, rows.ms(at))
    rows.changed(session, row.pool)
    return following


def renew(store: Store, pool: str, token: int) -> None:
    """The holder of a lease that has come to its time lives: give it more, where its device is there.

    An offer is renewed `RENEWALS` times, then it lapses: others wait for what its holder does not take.
    """
    with store.write() as session:
        rows.alone(session, pool)
        row = session.get(LeaseRow, (pool, token))
        if row is None or row.state not in rows.WORKING:
            return
        if row.state == "offered" and row.renewals >= rows.RENEWALS:
            _lapsed(session, row)
            return
        device = session.get(DeviceRow, (row.pool, row.device))
        if device is not None and device.present:
            row.renewals += 1
            longer = rows.LEASE_TTL * 2 ** min(row.renewals, rows.SELDOM)
            row.expires_at = rows.now() + (rows.OFFER_TTL if row.state == "offered" else longer)
            session.add(row)


def kept_checkpoint(store: Store, token: int, at: datetime) -> None:
    """A checkpoint of the lease's job is durable since *at*."""
    with store.write() as session:
        row = rows.alone_with(session, rows.lease(session, token))
        if row is not None and row.state in rows.WORKING and (row.checkpoint_at is None or row.checkpoint_at < at):
            row.checkpoint_at = at
            session.add(row)


def _lapsed(session: Session, row: LeaseRow) -> None:
    seconds = (rows.now() - row.granted_at).total_seconds()
    ended(session, row, "fenced", "it was offered and not taken")
    request_ends(session, row, "lapsed", f"{row.device} was offered and not taken for {seconds:.0f} s")
