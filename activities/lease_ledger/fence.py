"""The fence: whatever a holder commits is written in the transaction that looks whether it may."""

from typing import Literal

from sqlmodel import Session, col, select

from activities.lease_ledger import rows
from activities.lease_timing import REFUSED
from everloop.errors import LeaseLost
from everloop.records import Slot
from everloop.store import LeaseRow


def check_token(session: Session, slot: Slot, what: Literal["result", "version"] = "result") -> None:
    """Raise `LeaseLost` unless the slot's lease is live, or was given back and is its holder's last one.

    Call it in the transaction that writes the pointer. A holder may have several leases that are live.
    *what* is counted where it is refused.
    """
    query = select(LeaseRow).where(LeaseRow.token == slot.token, LeaseRow.holder == slot.holder)
    row = session.exec(query.with_for_update(read=True)).first()  # nobody takes it away until the pointer is written
    if row is not None and (row.state in rows.WORKING or (row.state == "released" and _is_last(session, row))):
        return
    REFUSED.labels(what).inc()
    raise LeaseLost(f"token {slot.token} of {slot.holder} is fenced", hint="the stage takes a new lease by itself")


def _is_last(session: Session, row: LeaseRow) -> bool:
    newest = select(LeaseRow.token).where(LeaseRow.holder == row.holder).order_by(col(LeaseRow.token).desc()).limit(1)
    return session.exec(newest).one() == row.token
