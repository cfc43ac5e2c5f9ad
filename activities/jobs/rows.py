"""What a running job asks of the ledger, and writes into the table of metrics."""

import math
from datetime import UTC, datetime

from sqlmodel import col, select

from activities import lease_refused
from everloop.store import LeaseMemberRow, LeaseRow, MetricRow, Store

FENCED = ("killing", "fenced")
"""States of a lease that was taken away."""
GIVE_BACK_SECONDS = 5.0
"""Of a notice's grace, for what is done after the job has ended."""


def grace(store: Store, token: int) -> float:
    """Seconds that the notice of a lease leaves to its job; 0 without one."""
    with store.read() as session:
        row = session.exec(select(LeaseRow).where(LeaseRow.token == token)).first()
    if row is None or row.state != "noticed" or row.deadline_at is None:
        return 0.0
    return max(0.0, (row.deadline_at - datetime.now(UTC)).total_seconds() - GIVE_BACK_SECONDS)


def note_kept(store: Store, token: int, at: datetime) -> None:
    """A checkpoint under the lease is durable since *at*."""
    with store.write() as session:
        row = session.exec(select(LeaseRow).where(LeaseRow.token == token)).first()
        if row is None:
            return
        if row.state in FENCED:
            lease_refused.count(session, "checkpoint")
        if row.state in ("active", "noticed"):
            row.checkpoint_at = at
            session.add(row)


def write_steps(store: Store, job: str, token: int, steps: dict[int, dict[str, float]]) -> None:
    """Unless the lease was taken away: then the steps are those of whoever has it now."""
    now = datetime.now(UTC)
    with store.write() as session:
        row = session.exec(select(LeaseRow).where(LeaseRow.token == token)).first()
        if row is not None and row.state in FENCED:
            lease_refused.count(session, "metric")
            return
        for step, values in steps.items():
            finite = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no NaN
            session.merge(MetricRow(job=job, step=step, values=finite, at=now))


def fenced(store: Store, token: int) -> bool:
    """The pool took the lease away: its holder or its device was gone, or others needed what it had."""
    with store.read() as session:
        row = session.exec(select(LeaseRow).where(LeaseRow.token == token)).first()
        return row is not None and row.state in FENCED


def live(store: Store, device: str) -> tuple[int, ...]:
    """Tokens whose parts of *device* are not free. A part that holds a lock there and is of none is an orphan."""
    query = select(LeaseMemberRow.token).join(LeaseRow, col(LeaseRow.token) == LeaseMemberRow.token)
    query = query.where(LeaseMemberRow.device == device, col(LeaseMemberRow.live))
    with store.read() as session:
        return tuple(sorted(session.exec(query.where(col(LeaseRow.state).not_in(FENCED)))))
