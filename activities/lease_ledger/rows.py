"""Questions to the ledger's tables that several of its functions ask."""

from datetime import UTC, datetime, timedelta
from typing import TypeVar

from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from activities.lease_time.rows import EPOCH, in_ms
from everloop.store import LeaseMemberRow, LeaseRequestRow, LeaseRow, PoolRow

Row = TypeVar("Row", LeaseRow, LeaseRequestRow)

WORKING = ("offered", "active", "noticed")
"""States of a lease whose holder may work."""
ENDED = ("done", "cancelled", "lapsed")
"""States of a request that nobody serves any more."""
LARGEST = 2**63 - 1
"""What a column of tokens holds. Postgres raises for more: a forged offer would be retried for ever."""
OFFER_TTL = timedelta(seconds=15)
RENEWALS = 4
"""How often an offer that nobody takes is made again: its holder lives, and does not answer (75 s in all)."""
LEASE_TTL = timedelta(seconds=60)
"""How soon the pool asks Temporal whether a holder still lives, should nobody have said that it ended."""
SELDOM = 5
"""Each time it asks, it waits twice as long for the next time, so often: half an hour at last."""


def now() -> datetime:
    return datetime.now(UTC)


def ms(at: datetime | None) -> int:
    """Milliseconds since 1970; 0 for none."""
    return in_ms(at) if at else 0


def seen_alive(row: LeaseRow) -> datetime:
    """When the holder of a live lease was last known to live: `expires_at` was set then (`holding.py`)."""
    if row.expires_at is None or row.state == "offered":
        return row.granted_at
    longer: timedelta = LEASE_TTL * 2 ** min(row.renewals, SELDOM)
    return max(row.granted_at, row.expires_at - longer)


def moment(at_ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=at_ms)


def working(pool: str) -> SelectOfScalar[LeaseRow]:
    """The pool's leases whose holders may work."""
    return select(LeaseRow).where(LeaseRow.pool == pool, col(LeaseRow.state).in_(WORKING))


def queued(pool: str) -> SelectOfScalar[LeaseRequestRow]:
    """Who waits in the pool, in order of arrival."""
    return (
        select(LeaseRequestRow)
        .where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
        .order_by(col(LeaseRequestRow.arrival))
    )


def granted(request_id: str) -> SelectOfScalar[LeaseRow]:
    return select(LeaseRow).where(LeaseRow.request_id == request_id, col(LeaseRow.state).in_(WORKING))


def lease(session: Session, token: int, workflow_id: str = "") -> LeaseRow | None:
    """The lease with *token* (of a workflow): pools of older folders may each have given out the same one."""
    if not 0 < token <= LARGEST:
        return None
    query = select(LeaseRow).where(LeaseRow.token == token)
    if workflow_id:
        query = query.where(LeaseRow.workflow_id == workflow_id)
    return session.exec(query.order_by(col(LeaseRow.granted_at).desc())).first()


def members(session: Session, row: LeaseRow, *, live: bool = False) -> list[LeaseMemberRow]:
    """In order of rank. *live*: those whose device counts them as used."""
    query = select(LeaseMemberRow).where(LeaseMemberRow.pool == row.pool, LeaseMemberRow.token == row.token)
    if live:
        query = query.where(col(LeaseMemberRow.live))
    return list(session.exec(query.order_by(col(LeaseMemberRow.rank))).all())


def stays(row: LeaseRow) -> None:
    """Its notice is withdrawn. A holder that has begun to let go does so, and waits again in its old place."""
    row.state, row.notice, row.beneficiary, row.why = "active", "", "", ""
    row.noticed_at = row.deadline_at = None


def alone(session: Session, pool: str) -> None:
    """Nobody else changes leases or requests of the pool until this transaction ends. Call it before reading them.

    SQLite's write transactions are alone anyway. On Postgres two might read a lease as it was before either's change,
    and give its cores back twice.
    """
    session.get(PoolRow, pool, with_for_update=True)


def alone_with(session: Session, row: Row | None) -> Row | None:
    """`alone`, for who knows the pool from *row* only: it is read again, as it is now."""
    if row is not None:
        alone(session, row.pool)
        session.refresh(row)
    return row


def changed(session: Session, pool: str) -> None:
    """What was read before is not true any more: a decision about it is not committed."""
    row = session.get(PoolRow, pool, with_for_update=True) or PoolRow(id=pool)
    row.version += 1
    session.add(row)
