"""Leases and devices of the ledger as the time of leases is told: what the ledger's transactions call."""

from collections.abc import Container, Iterable
from datetime import UTC, datetime, timedelta

from sqlmodel import Session, col, select

from activities.lease_time.cutting import Life
from activities.lease_time.written import Leased, Part, freed, inventoried
from everloop import names
from everloop.store import DeviceRow, LeaseMemberRow, LeaseRequestRow, LeaseRow

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def in_ms(moment: datetime) -> int:
    """Milliseconds since 1970."""
    return (moment - EPOCH) // timedelta(milliseconds=1)  # exact: a float of seconds is not


def milliseconds(number: int) -> timedelta:
    return timedelta(milliseconds=number)


def members_freed(
    session: Session, row: LeaseRow, at: datetime | None = None, devices: Container[str] | None = None
) -> None:
    """The lease has ended and its members are free, since *at* (its end, when left out): write its time down.

    Call it in the transaction that frees them, for every lease, and once it is known that no process of it is left.
    *devices*: where they are free, when that is not all.
    """
    session.flush()
    freed(session, row.pool, leased(session, row, at, devices))


def devices_noted(session: Session, pool: str, at: datetime) -> None:
    """Call it in the transaction that changes which devices there are, which are present, or what they have."""
    session.flush()
    rows = session.exec(select(DeviceRow).where(DeviceRow.pool == pool)).all()
    amounts = {row.name: (row.cores, row.milli_gpu) for row in rows}
    present = {row.name for row in rows if row.present}
    inventoried(session, pool, amounts, present, in_ms(at))


def held_now(session: Session, pool: str, now: datetime) -> list[Leased]:
    """Leases whose members are not free, as they stand at *now*: without members that are free already."""
    found = []
    for row in held(session, pool):
        live = select(LeaseMemberRow.device).where(
            LeaseMemberRow.pool == pool, LeaseMemberRow.token == row.token, col(LeaseMemberRow.live)
        )
        if row.granted_at <= now:
            found.append(leased(session, row, now, set(session.exec(live).all())))
    return found


def held(session: Session, pool: str) -> list[LeaseRow]:
    """Leases of which a member is not free, by token: also ended ones whose processes are not proven dead."""
    live = select(LeaseMemberRow.token).where(LeaseMemberRow.pool == pool, col(LeaseMemberRow.live).is_(True))
    rows = select(LeaseRow).where(LeaseRow.pool == pool, col(LeaseRow.token).in_(live.distinct()))
    return list(session.exec(rows.order_by(col(LeaseRow.token))).all())


def leased(
    session: Session, row: LeaseRow, at: datetime | None = None, devices: Container[str] | None = None
) -> Leased:
    """The lease until *at*: since its end, which may be before, its members are in quarantine."""
    ended = row.ended_at or at or datetime.now(UTC)
    query = select(LeaseMemberRow).where(LeaseMemberRow.pool == row.pool, LeaseMemberRow.token == row.token)
    members = session.exec(query.order_by(col(LeaseMemberRow.rank))).all()
    life = Life(
        granted_ms=max((member.since_ms for member in members), default=0) or in_ms(row.granted_at),
        ended_ms=in_ms(min(ended, at) if at else ended),
        noticed_ms=in_ms(row.noticed_at) if row.noticed_at else 0,
        free_ms=in_ms(at or ended),
    )
    parts = tuple(_parts(one for one in members if devices is None or one.device in devices))
    request = session.get(LeaseRequestRow, row.request_id)
    other = session.get(LeaseRequestRow, row.beneficiary) if row.beneficiary else None
    return Leased(
        token=row.token,
        workflow_id=names.lifecycle_of(row.workflow_id),
        run_id=row.run_id,
        queue=row.queue,
        life=life,
        parts=parts,
        model=request.model if request else "",
        beneficiary_queue=other.queue if other else "",
    )


def _parts(members: Iterable[LeaseMemberRow]) -> Iterable[Part]:
    return (Part(member.device, member.cores, member.milli_gpu) for member in members)
