"""How often compute has refused a holder whose lease was taken away. In the ledger, since nobody scrapes compute.

What control refuses is counted in its process (lease_timing.py): the transaction that refuses is rolled back.
"""

import logging
from typing import Literal, get_args

from sqlmodel import Session

from everloop.store import CounterRow, Store

log = logging.getLogger(__name__)

What = Literal["metric", "checkpoint", "job"]
"""Steps of a job's progress, what a job keeps to go on from, the start of a job."""


def count(session: Session, what: What) -> None:
    row = session.get(CounterRow, _name(what), with_for_update=True) or CounterRow(name=_name(what))
    row.value += 1
    session.add(row)


def note(store: Store, what: What) -> None:
    """The same, in a transaction of its own. What is refused is refused, counted or not."""
    try:
        with store.write() as session:
            count(session, what)
    except Exception:
        log.warning("the refusal of a %s is not counted", what, exc_info=True)


def counted(session: Session) -> dict[str, int]:
    """Since the ledger was made."""
    rows = {what: session.get(CounterRow, _name(what)) for what in get_args(What)}
    return {what: row.value if row else 0 for what, row in rows.items()}


def _name(what: str) -> str:
    return f"refused {what}"
