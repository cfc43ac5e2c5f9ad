"""What leased and free time was for: sums that are exact, by lifecycle, model, queue or stage."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session

from activities import lease_budgets, lease_time
from activities.lease_time import KINDS, Overcommitted, Spent, Totals, Use
from api.dependencies import Here
from everloop import names
from everloop.budgets import Price, micros, periods
from everloop.errors import Invalid, text

router = APIRouter(tags=["cost"])

Priced = tuple[Totals, Price | None]
"""Of a stretch of time with one price list."""
By = Literal["queue", "model", "lifecycle", "stage"]
Pool = Annotated[str, Query(max_length=names.MOST_CHARACTERS)]
Since = Annotated[str, Query(max_length=60, description="A moment (ISO), or how long ago: 90m, 12h, 7d")]
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
FARTHEST = timedelta(days=3660)
MOST_ROWS = 1000


class Amount(BaseModel):
    """Time that was spent."""

    core_ms: int
    """Core-milliseconds."""
    gpu_ms: int
    """Milliseconds of thousandths of a GPU."""
    micros: int = 0
    """What it costs by the price list of its time, in millionths of the currency; 0 without one."""


class CostRow(Amount):
    """What one of them leased. `kinds` add up to `core_ms` and `gpu_ms`."""

    name: str
    """Empty: time that belongs to none (between jobs there is no stage)."""
    kinds: dict[str, Amount]
    charged_core_ms: int
    """What it pays: by queue, also what another's lease lost because it was taken back for this one."""
    charged_gpu_ms: int
    charged_micros: int = 0


class CostView(BaseModel):
    """A pool's time within a window."""

    pool: str
    by: By
    since: datetime
    until: datetime
    from_ms: int
    """Not before the ledger began to keep such rows."""
    to_ms: int
    capacity: Amount
    """What there was. All of `kinds` together are this, exactly."""
    kinds: dict[str, Amount]
    rows: list[CostRow]
    """Largest first, at most 1,000."""
    currency: str
    """Of all `micros`; empty: there are no prices."""
    problem: str
    """Why there are no sums: the ledger contradicts itself. Empty where there are."""


@router.get("/cost")
def cost(here: Here, by: By = "queue", since: Since = "7d", pool: Pool = names.DEFAULT_POOL) -> CostView:
    """What core and GPU time was for, since then."""
    now = datetime.now(UTC)
    with here.store.read() as session:
        return view(session, pool, by, moment(since, now), now)


def moment(since: str, now: datetime) -> datetime:
    """A moment, or how long before *now*. Raises `Invalid`."""
    ago = re.fullmatch(r"(\d{1,6})([smhdw])", since.strip())
    try:
        found = now - timedelta(seconds=int(ago[1]) * UNITS[ago[2]]) if ago else datetime.fromisoformat(since)
    except (ValueError, OverflowError):
        raise Invalid(
            f"since: {since[:60]!r} is no moment", field="since", hint="a moment (ISO), or how long ago: 90m, 12h, 7d"
        ) from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    if not now - FARTHEST <= found <= now:
        raise Invalid("since: must be a moment of the last ten years", field="since")
    return found


def view(session: Session, pool: str, by: By, since: datetime, until: datetime) -> CostView:
    from_ms, to_ms = lease_time.in_ms(since), lease_time.in_ms(until)
    first = lease_time.first_ms(session, pool)
    from_ms = min(max(from_ms, first if first is not None else to_ms), to_ms)
    known = lease_budgets.prices(session, pool)
    problem, parts = "", list[Priced]()
    try:
        live = lease_time.held_now(session, pool, until)
        for begins, ends, price in periods(known, from_ms, to_ms):
            parts.append((lease_time.spent(session, pool, live, begins, ends), price))
    except Overcommitted as error:
        parts, problem = [], f"the ledger contradicts itself: {text(error)}"
    kinds = {kind: Amount(core_ms=0, gpu_ms=0) for kind in KINDS}
    capacity = Amount(core_ms=0, gpu_ms=0)
    for found, price in parts:
        _add(capacity, found.capacity, price)
        for kind, spent in found.by_kind.items():
            _add(kinds[kind], spent, price)
    return CostView(
        pool=pool,
        by=by,
        since=since,
        until=until,
        from_ms=from_ms,
        to_ms=to_ms,
        capacity=capacity,
        kinds=kinds,
        rows=sorted(_rows(parts, by), key=lambda row: (-row.core_ms, -row.gpu_ms, row.name))[:MOST_ROWS],
        currency=known[-1].currency if known else "",
        problem=problem,
    )


def _add(to: Amount, spent: Spent, price: Price | None) -> None:
    to.core_ms += spent.core_ms
    to.gpu_ms += spent.gpu_ms
    to.micros += micros(price, spent.core_ms, spent.gpu_ms)


def _rows(parts: Sequence[Priced], by: By) -> list[CostRow]:
    rows: dict[str, CostRow] = {}

    def row(name: str) -> CostRow:
        return rows.setdefault(
            name, CostRow(name=name, core_ms=0, gpu_ms=0, kinds={}, charged_core_ms=0, charged_gpu_ms=0)
        )

    for found, price in parts:
        for use, spent in found.leased.items():
            mine = row(getattr(use, by))
            _add(mine, spent, price)
            _add(mine.kinds.setdefault(use.kind, Amount(core_ms=0, gpu_ms=0)), spent, price)
            payer = row(_payer(use, by))
            payer.charged_core_ms += spent.core_ms
            payer.charged_gpu_ms += spent.gpu_ms
            payer.charged_micros += micros(price, spent.core_ms, spent.gpu_ms)
    return list(rows.values())


def _payer(use: Use, by: By) -> str:
    """Only queues pay for each other."""
    return use.charged_to if by == "queue" else str(getattr(use, by))
