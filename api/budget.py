"""Budgets and prices: who may spend how much, what is spent, and what time costs."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool

from activities import lease_budgets, lease_time
from api.bodies import body_schema, json_body
from api.dependencies import Here, Parts, Person
from api.pool.answers import Ordered
from api.pool.changing import ordered
from everloop import budgets, names
from everloop.amounts import NO_LIMIT
from everloop.budgets import NO_BOUNDS, Bounds
from everloop.store import BudgetRow

router = APIRouter(tags=["cost"])

Pool = Annotated[str, Query(max_length=names.MOST_CHARACTERS)]
Scope = Literal["queue", "lifecycle"]
Name = Annotated[str, Path(max_length=names.MOST_CHARACTERS)]
FIELDS = {"core_ms": "core_hours", "gpu_ms": "gpu_hours", "micros": "money"}
UNITS = {"core_ms": budgets.HOUR_MS, "gpu_ms": budgets.HOUR_MS * budgets.MILLI, "micros": budgets.MICRO}


class PriceView(BaseModel):
    """What an hour costs now."""

    currency: str
    core_hour: float
    gpu_hour: float
    since: datetime


class BudgetView(BaseModel):
    """A budget, and how it stands. Hours and money; null: not bounded."""

    scope: Scope
    name: str
    bounds: dict[str, float | None]
    """By `core_hours`, `gpu_hours`, `money`."""
    used: dict[str, float]
    part: float
    """Of the bound that is nearest to its end."""
    spent: bool
    since: datetime
    person: str
    sentence: str


class BudgetList(BaseModel):
    """What may be spent in a pool."""

    prices: PriceView | None
    items: list[BudgetView]


class BudgetAsked(BaseModel):
    """What is left out stays as it is; `none` is no bound. A budget without bounds is no budget."""

    model_config = ConfigDict(extra="forbid")

    core_hours: float | str | None = None
    gpu_hours: float | str | None = None
    money: float | str | None = None
    restart: bool = False
    """What was spent so far counts no more."""


class PricesAsked(BaseModel):
    """What an hour costs, from now on."""

    model_config = ConfigDict(extra="forbid")

    core_hour: float | str
    gpu_hour: float | str = 0
    currency: Annotated[str, StringConstraints(min_length=1, max_length=8, strip_whitespace=True)] = "EUR"


@router.get("/budgets")
def budget_list(here: Here, pool: Pool = names.DEFAULT_POOL) -> BudgetList:
    """All budgets of the pool with what is spent of them, and its prices."""
    with here.store.read() as session:
        return seen(session, pool)


@router.put(
    "/budgets/{scope}/{name:path}", openapi_extra=body_schema(BudgetAsked, {"core_hours": 100, "money": "none"})
)
async def set_budget(  # noqa: PLR0917  # FastAPI gives them by name
    scope: Scope,
    name: Name,
    here: Here,
    person: Person,
    body: Annotated[BudgetAsked, Depends(json_body(BudgetAsked))],
    pool: Pool = names.DEFAULT_POOL,
) -> Ordered:
    """Set, raise or take away the budget of a queue or a lifecycle. Who waits for it goes on by itself."""
    before = await run_in_threadpool(_before, here, pool, scope, name)
    asked: dict[str, Any] = {"action": "budget", "pool": pool, "scope": scope, "name": name, "restart": body.restart}
    return await ordered(here, person, asked | {"bounds": _bounds(body, before)})


@router.put("/prices", openapi_extra=body_schema(PricesAsked, {"core_hour": 0.04, "gpu_hour": 2, "currency": "EUR"}))
async def set_prices(
    here: Here,
    person: Person,
    body: Annotated[PricesAsked, Depends(json_body(PricesAsked))],
    pool: Pool = names.DEFAULT_POOL,
) -> Ordered:
    """What an hour of a core and of a GPU costs from now on. What was before is priced as it was."""
    asked: dict[str, Any] = {"action": "prices", "pool": pool, "currency": body.currency}
    asked |= {"core_micros": budgets.money(body.core_hour, "core_hour")}
    asked |= {"gpu_micros": budgets.money(body.gpu_hour, "gpu_hour")}
    return await ordered(here, person, asked)


def _before(here: Parts, pool: str, scope: Scope, name: str) -> Bounds:
    with here.store.read() as session:
        row = session.get(BudgetRow, (pool, scope, name))
        return lease_budgets.bounds_of(row) if row else NO_BOUNDS


def _bounds(asked: BudgetAsked, before: Bounds) -> Bounds:
    found = {}
    for name, field in FIELDS.items():
        given = getattr(asked, field)
        if given is None:
            found[name] = getattr(before, name)
        elif given == "none":
            found[name] = NO_LIMIT
        else:
            of = budgets.MILLI if name == "gpu_ms" else 1
            found[name] = budgets.money(given, field) if name == "micros" else budgets.hours(given, field, of)
    return Bounds(**found)


def seen(session: Session, pool: str) -> BudgetList:
    now_ms = lease_time.in_ms(datetime.now(UTC))
    known = lease_budgets.prices(session, pool)
    price = known[-1] if known else None
    rows = session.exec(
        select(BudgetRow).where(BudgetRow.pool == pool).order_by(col(BudgetRow.scope), col(BudgetRow.name))
    ).all()
    currency = price.currency if price else ""
    return BudgetList(
        prices=PriceView(
            currency=price.currency,
            core_hour=price.core_micros / budgets.MICRO,
            gpu_hour=price.gpu_micros / budgets.MICRO,
            since=lease_time.rows.EPOCH + lease_time.rows.milliseconds(price.from_ms),
        )
        if price
        else None,
        items=[_view(row, lease_budgets.used(session, pool, row, now_ms), currency) for row in rows],
    )


def _view(row: BudgetRow, used: Bounds, currency: str) -> BudgetView:
    bounds = lease_budgets.bounds_of(row)
    bounded = [name for name in Bounds._fields if getattr(bounds, name) != NO_LIMIT]
    parts = [getattr(used, name) / max(getattr(bounds, name), 1) for name in bounded]
    told = [
        " of ".join(budgets.words(name, getattr(each, name), currency) for each in (used, bounds)) for name in bounded
    ]
    return BudgetView(
        scope="queue" if row.scope == "queue" else "lifecycle",
        name=row.name,
        bounds={FIELDS[name]: getattr(bounds, name) / UNITS[name] if name in bounded else None for name in FIELDS},
        used={FIELDS[name]: getattr(used, name) / UNITS[name] for name in FIELDS},
        part=max(parts, default=0),
        spent=row.spent,
        since=lease_time.rows.EPOCH + lease_time.rows.milliseconds(row.since_ms),
        person=row.person,
        sentence=f"{row.scope} {row.name} has spent {', '.join(told)}"
        + (": it waits until somebody raises it" if row.spent else ""),
    )
