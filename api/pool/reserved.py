"""Reservations as people read them: for whom what is kept, until when, and which leases end by then."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlmodel import Session, col, select

from activities.lease_ledger.reservations import standing
from activities.lease_ledger.rows import moment
from api.pool.answers import Amounts, Counted, KeptView, ReservationView
from everloop.amounts import AMOUNTS
from everloop.queues import amount
from everloop.store import LeaseRow, ReservationRow


def reservations(session: Session, pool: str) -> list[ReservationView]:
    """Those that stand, in the order in which they were made."""
    by_request: dict[str, list[ReservationRow]] = {}
    for row in standing(session, pool):
        by_request.setdefault(row.request_id, []).append(row)
    return [_view(session, rows) for rows in by_request.values()]


def _view(session: Session, rows: Sequence[ReservationRow]) -> ReservationView:
    first = rows[0]
    tokens = sorted({token for row in rows for token in row.waits_for})
    return ReservationView(
        request=first.request_id,
        lifecycle=first.workflow_id,
        queue=first.queue,
        since=_since(session, first.request_id),
        starts_at=moment(first.start_ms),
        slipped_seconds=(first.start_ms - first.first_start_ms) / 1000,
        parts=[_part(row) for row in rows],
        waits_for=tokens,
        sentence=_sentence(session, rows, tokens),
    )


def _since(session: Session, request_id: str) -> datetime:
    """When the first of it was kept. A stretch of time that ended long before is another reservation's."""
    query = select(ReservationRow).where(ReservationRow.request_id == request_id)
    begins = 0
    for row in session.exec(query.order_by(col(ReservationRow.from_ms).desc())).all():
        if begins and row.to_ms and row.to_ms < begins:
            break
        begins = row.from_ms
    return moment(begins)


def _part(row: ReservationRow) -> KeptView:
    return KeptView(
        device=row.device,
        amounts=Amounts(**{what: getattr(row, what) for what in AMOUNTS}),
        idle=Counted(cores=row.idle_cores, milli_gpu=row.idle_milli_gpu),
    )


def _sentence(session: Session, rows: Sequence[ReservationRow], tokens: Sequence[int]) -> str:
    """`dora has 2 cores of cpu0 reserved: it starts by 12:03, when lease 7 of bob has ended by ...`."""
    what = ", ".join(f"{_words(row)} of {row.device}" for row in rows)
    first = rows[0]
    start = f"{moment(first.start_ms).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    found = session.exec(
        select(LeaseRow.token, LeaseRow.workflow_id).where(LeaseRow.pool == first.pool, col(LeaseRow.token).in_(tokens))
    ).all()
    ends = ", ".join(f"lease {token} of {lifecycle}" for token, lifecycle in sorted(found))
    until = f", when {ends} {'have' if len(found) > 1 else 'has'} ended or may be taken back" if ends else ""
    slip = round((first.start_ms - first.first_start_ms) / 1000)
    late = f"; that is {slip} s later than at first" if slip > 0 else ""
    return f"{first.workflow_id} has {what} reserved: it starts by {start}{until}{late}"


def _words(row: ReservationRow) -> str:
    gpu = f", {amount('milli_gpu', row.milli_gpu)}" if row.milli_gpu else ""
    return amount("cores", row.cores) + gpu
