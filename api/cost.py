"""What leased and free time was for: sums that are exact, by lifecycle, model, queue or stage."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session
from starlette.responses import HTMLResponse

from activities import lease_time
from activities.lease_time import KINDS, LEASED, Overcommitted, Totals, Use
from api import pages
from api.dependencies import Here, Person
from everloop import names
from everloop.errors import Invalid, text

router = APIRouter(tags=["cost"])
page = APIRouter(include_in_schema=False)

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


class CostRow(Amount):
    """What one of them leased. `kinds` add up to `core_ms` and `gpu_ms`."""

    name: str
    """Empty: time that belongs to none (between jobs there is no stage)."""
    kinds: dict[str, Amount]
    charged_core_ms: int
    """What it pays: by queue, also what another's lease lost because it was taken back for this one."""
    charged_gpu_ms: int


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
    problem: str
    """Why there are no sums: the ledger contradicts itself. Empty where there are."""


@router.get("/cost")
def cost(here: Here, by: By = "queue", since: Since = "7d", pool: Pool = names.DEFAULT_POOL) -> CostView:
    """What core and GPU time was for, since then."""
    now = datetime.now(UTC)
    with here.store.read() as session:
        return view(session, pool, by, moment(since, now), now)


@page.get("/cost")
def cost_page(
    here: Here, person: Person, by: By = "queue", since: Since = "7d", pool: Pool = names.DEFAULT_POOL
) -> HTMLResponse:
    """The same as a page."""
    now = datetime.now(UTC)
    with here.store.read() as session:
        found = view(session, pool, by, moment(since, now), now)
    return pages.render("cost.html", person=person, view=found, since=since, kinds=KINDS, leased=LEASED)


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
    problem = ""
    try:
        found = lease_time.spent(session, pool, lease_time.held_now(session, pool, until), from_ms, to_ms)
    except Overcommitted as error:
        found, problem = lease_time.totals([], [], [], from_ms, to_ms), f"the ledger contradicts itself: {text(error)}"
    return CostView(
        pool=pool,
        by=by,
        since=since,
        until=until,
        from_ms=from_ms,
        to_ms=to_ms,
        capacity=_amount(*found.capacity),
        kinds={kind: _amount(*spent) for kind, spent in found.by_kind.items()},
        rows=sorted(_rows(found, by), key=lambda row: (-row.core_ms, -row.gpu_ms, row.name))[:MOST_ROWS],
        problem=problem,
    )


def _rows(found: Totals, by: By) -> list[CostRow]:
    rows: dict[str, CostRow] = {}

    def row(name: str) -> CostRow:
        return rows.setdefault(
            name, CostRow(name=name, core_ms=0, gpu_ms=0, kinds={}, charged_core_ms=0, charged_gpu_ms=0)
        )

    for use, spent in found.leased.items():
        mine = row(getattr(use, by))
        mine.core_ms += spent.core_ms
        mine.gpu_ms += spent.gpu_ms
        kind = mine.kinds.setdefault(use.kind, Amount(core_ms=0, gpu_ms=0))
        kind.core_ms += spent.core_ms
        kind.gpu_ms += spent.gpu_ms
        payer = row(_payer(use, by))
        payer.charged_core_ms += spent.core_ms
        payer.charged_gpu_ms += spent.gpu_ms
    return list(rows.values())


def _payer(use: Use, by: By) -> str:
    """Only queues pay for each other."""
    return use.charged_to if by == "queue" else str(getattr(use, by))


def _amount(core_ms: int, gpu_ms: int) -> Amount:
    return Amount(core_ms=core_ms, gpu_ms=gpu_ms)
