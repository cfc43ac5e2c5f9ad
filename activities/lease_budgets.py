"""Budgets in SQL: counted on from what leases have cost, and enforced before the pool decides.

Who has spent its budget is granted nothing more, and what it holds is told to let go at a checkpoint. That stands in
the ledger, so it lasts until somebody raises the budget, whatever is restarted.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple

from sqlmodel import Session, col, func, select

from activities import lease_queues, lease_time
from everloop import budgets, names
from everloop.amounts import NO_LIMIT
from everloop.budgets import Bounds, Price
from everloop.errors import Invalid, NotFound
from everloop.queues import Queue
from everloop.store import (
    BudgetRow,
    LeaseRequestRow,
    LeaseRow,
    LeaseTimeRow,
    PriceRow,
    Store,
)

NOTICE = "budget"
"""Why a lease is to end."""
CODE = "over_budget"
"""Why a request waits."""
CHECK = "check"
"""Drift checks go on: they cost little, and nobody is to be blind for want of money."""
AT_ONCE = 5_000


class Pool(NamedTuple):
    """What every budget of a pool is counted by."""

    tree: Sequence[Queue]
    prices: Sequence[Price]
    held: Sequence[LeaseRow]
    """Leases whose time runs."""
    newest: int
    """The last row of `lease_time`."""
    now_ms: int


def _pool(session: Session, name: str, now_ms: int) -> Pool:
    held = lease_time.held(session, name)
    return Pool(lease_queues.tree(session, name), prices(session, name), held, _newest(session, name), now_ms)


def _newest(session: Session, pool: str) -> int:
    return session.exec(select(func.max(LeaseTimeRow.id)).where(LeaseTimeRow.pool == pool)).one() or 0


def prices(session: Session, pool: str) -> list[Price]:
    """In the order of their time."""
    rows = session.exec(select(PriceRow).where(PriceRow.pool == pool).order_by(col(PriceRow.from_ms))).all()
    return [Price(row.from_ms, row.currency, row.core_micros, row.gpu_micros) for row in rows]


def bounds_of(row: BudgetRow) -> Bounds:
    return Bounds(row.core_ms, row.gpu_ms, row.micros)


def held_back(session: Session, pool: str) -> tuple[set[str], set[str]]:
    """Queues, and workflows of lifecycles that wait, that are granted nothing for want of budget."""
    spent = select(BudgetRow.name).where(BudgetRow.pool == pool, col(BudgetRow.spent))
    of_queues = session.exec(spent.where(BudgetRow.scope == "queue")).all()
    tree = lease_queues.tree(session, pool) if of_queues else ()
    queues = {queue for name in of_queues for queue in lease_queues.below(tree, name)}
    lifecycles = spent.where(BudgetRow.scope == "lifecycle")
    if session.exec(lifecycles.limit(1)).first() is None:
        return queues, set()
    waits = select(LeaseRequestRow.workflow_id).where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
    searches = lifecycles.with_only_columns(col(BudgetRow.name) + names.OF_SEARCH)
    workflow = col(LeaseRequestRow.workflow_id)
    found = session.exec(waits.where(workflow.in_(lifecycles) | workflow.in_(searches)).distinct()).all()
    return queues, set(found)


def used(session: Session, pool: str, row: BudgetRow, now_ms: int) -> Bounds:
    """What is spent of the budget by now: by what has ended, and by what runs."""
    return _used(session, row, _pool(session, pool, now_ms))


def _used(session: Session, row: BudgetRow, pool: Pool, fresh: Sequence[LeaseTimeRow] | None = None) -> Bounds:
    total = _ended(row, pool, _fresh(session, row, pool.tree) if fresh is None else fresh)
    for lease in _live(row, pool):
        told = lease_time.leased(session, lease)  # its members' time: what a lease before it used is counted already
        for member in told.parts:
            since = told.life.granted_ms
            total = budgets.plus(total, _cost(row, pool.prices, since, pool.now_ms, member.cores, member.milli_gpu))
    return total


def _ended(row: BudgetRow, pool: Pool, fresh: Iterable[LeaseTimeRow]) -> Bounds:
    """What leases that have ended have spent, the *fresh* ones with those that were counted before."""
    total = Bounds(row.used_core_ms, row.used_gpu_ms, row.used_micros)
    for each in fresh:
        total = budgets.plus(total, _cost(row, pool.prices, each.from_ms, each.to_ms, each.cores, each.milli_gpu))
    return total


def _cost(  # noqa: PLR0917
    row: BudgetRow, known: Sequence[Price], from_ms: int, to_ms: int, cores: int, milli_gpu: int
) -> Bounds:
    return budgets.spent(known, max(from_ms, row.since_ms), to_ms, cores, milli_gpu)


def _fresh(session: Session, row: BudgetRow, tree: Sequence[Queue]) -> Sequence[LeaseTimeRow]:
    """Time of ended leases that is not counted yet."""
    query = select(LeaseTimeRow).where(LeaseTimeRow.pool == row.pool, col(LeaseTimeRow.id) > row.until_row)
    query = (
        query.where(col(LeaseTimeRow.charged_to).in_(lease_queues.below(tree, row.name)))
        if row.scope == "queue"
        else query.where(LeaseTimeRow.workflow_id == row.name)
    )
    return session.exec(query.order_by(col(LeaseTimeRow.id))).all()


def _live(row: BudgetRow, pool: Pool) -> list[LeaseRow]:
    mine = lease_queues.below(pool.tree, row.name) if row.scope == "queue" else set()
    return [
        lease
        for lease in pool.held
        if (lease.queue in mine if row.scope == "queue" else names.lifecycle_of(lease.workflow_id) == row.name)
    ]


def there_are(session: Session, pool: str) -> bool:
    """Has anybody a budget, or was anybody told of one that is gone?"""
    if session.exec(select(BudgetRow.name).where(BudgetRow.pool == pool).limit(1)).first() is not None:
        return True
    told = select(LeaseRow.token).where(LeaseRow.pool == pool, LeaseRow.state == "noticed", LeaseRow.notice == NOTICE)
    return session.exec(told.limit(1)).first() is not None


def look_after(store: Store, pool: str, now_ms: int, grace: timedelta) -> None:
    """Count on, and hold back or let go on whose budget has been spent or raised. Before each decision."""
    with store.read() as session:
        shared = _pool(session, pool, now_ms)
        rows = _in_use(session, pool, shared)
        news = any(_is_news(session, row, shared) for row in rows)
        if not news and not _is_anybody_told_wrong(session, pool, [row for row in rows if row.spent], shared.tree):
            return
    with store.write() as session:
        shared = _pool(session, pool, now_ms)
        rows = _in_use(session, pool, shared)
        for row in rows:
            fresh = [each for each in _fresh(session, row, shared.tree) if (each.id or 0) <= shared.newest]
            total = _ended(row, shared, fresh)
            row.used_core_ms, row.used_gpu_ms, row.used_micros = total
            row.until_row = max(row.until_row, shared.newest)
            row.spent = bool(budgets.over(bounds_of(row), _used(session, row, shared)))
            session.add(row)
        session.flush()
        _tell(session, pool, shared, [row for row in rows if row.spent], grace)


def _in_use(session: Session, pool: str, shared: Pool) -> list[BudgetRow]:
    """Budgets of queues, and of lifecycles that hold a lease or wait for one: of those that have ended nothing is to be
    decided. What they have spent is written down once in a while, so that nobody has to add it all up.
    """
    queued = select(LeaseRequestRow.workflow_id).where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
    live = {*map(names.lifecycle_of, (lease.workflow_id for lease in shared.held))}
    live |= {*map(names.lifecycle_of, session.exec(queued.distinct()).all())}
    of_pool = select(BudgetRow).where(BudgetRow.pool == pool)
    long_ago = col(BudgetRow.until_row) < shared.newest - AT_ONCE
    rows = list(session.exec(of_pool.where((col(BudgetRow.scope) == "queue") | long_ago)).all())
    known = {row.name for row in rows if row.scope == "lifecycle"}
    left = sorted(live - known)
    for first in range(0, len(left), AT_ONCE):
        some = col(BudgetRow.name).in_(left[first : first + AT_ONCE])
        rows += session.exec(of_pool.where(BudgetRow.scope == "lifecycle", some)).all()
    return sorted(rows, key=lambda row: (row.scope, row.name))


def _is_news(session: Session, row: BudgetRow, pool: Pool) -> bool:
    fresh = _fresh(session, row, pool.tree)
    if fresh or pool.newest > row.until_row + AT_ONCE:
        return True
    return row.spent != bool(budgets.over(bounds_of(row), _used(session, row, pool, fresh)))


def _of(row: BudgetRow, tree: Sequence[Queue], queue: str, lifecycle: str) -> bool:
    return (
        queue in lease_queues.below(tree, row.name)
        if row.scope == "queue"
        else names.lifecycle_of(lifecycle) == row.name
    )


def _is_anybody_told_wrong(session: Session, pool: str, spent: Iterable[BudgetRow], tree: Sequence[Queue]) -> bool:
    """Is there somebody who does not know yet that its budget is spent, or still believes so?"""
    spent = list(spent)

    def is_over(queue: str, lifecycle: str) -> bool:
        return any(_of(row, tree, queue, lifecycle) for row in spent)

    return any(
        lease.state == "active" if is_over(lease.queue, lease.workflow_id) else lease.notice == NOTICE
        for lease in _working(session, pool)
    ) or any(
        is_over(request.queue, request.workflow_id) != (request.code == CODE) for request in _queued(session, pool)
    )


def _working(session: Session, pool: str) -> Sequence[LeaseRow]:
    query = (
        select(LeaseRow)
        .join(LeaseRequestRow, col(LeaseRequestRow.id) == LeaseRow.request_id)
        .where(LeaseRow.pool == pool, col(LeaseRow.state).in_(("active", "noticed")), LeaseRequestRow.kind != CHECK)
    )
    return session.exec(query).all()


def _queued(session: Session, pool: str) -> Sequence[LeaseRequestRow]:
    query = select(LeaseRequestRow).where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
    return session.exec(query.where(LeaseRequestRow.kind != CHECK).order_by(col(LeaseRequestRow.arrival))).all()


def _tell(session: Session, pool: str, shared: Pool, found: Iterable[BudgetRow], grace: timedelta) -> None:
    """Those of a budget that is spent (*found*), and those that were told before and whose budget is raised by now."""
    tree, currency = shared.tree, shared.prices[-1].currency if shared.prices else ""
    why = {
        (row.scope, row.name): budgets.sentence(
            row.scope, row.name, bounds_of(row), _used(session, row, shared), currency
        )
        for row in found
    }
    at = lease_time.rows.EPOCH + timedelta(milliseconds=shared.now_ms)
    for lease in _working(session, pool):
        told = next((row for row in found if _of(row, tree, lease.queue, lease.workflow_id)), None)
        if told is not None and lease.state == "active":
            lease.state, lease.notice, lease.beneficiary = "noticed", NOTICE, ""
            lease.noticed_at, lease.deadline_at = at, at + grace
            lease.why = why[told.scope, told.name]
            session.add(lease)
        elif told is None and lease.state == "noticed" and lease.notice == NOTICE:
            lease.state, lease.notice, lease.why, lease.noticed_at, lease.deadline_at = "active", "", "", None, None
            session.add(lease)
    for place, request in enumerate(_queued(session, pool), 1):
        told = next((row for row in found if _of(row, tree, request.queue, request.workflow_id)), None)
        if told is not None:
            request.code, request.position, request.ahead = CODE, place, place - 1
            request.detail = [
                ["scope", told.scope],
                ["of", told.name],
                ["why", why[told.scope, told.name]],
            ]
            session.add(request)
        elif request.code == CODE:
            request.code, request.detail = "", []
            session.add(request)


def seconds_left(session: Session, pool: str, now_ms: int) -> float | None:
    """Until the next budget is spent, as fast as it is spent now; None: none is."""
    if session.exec(select(BudgetRow.name).where(BudgetRow.pool == pool).limit(1)).first() is None:
        return None
    shared = _pool(session, pool, now_ms)
    rows = [row for row in _in_use(session, pool, shared) if not row.spent]
    found = []
    for row in rows:
        rate = Bounds()
        for lease in _live(row, shared):
            for part in lease_time.leased(session, lease).parts:
                hour = now_ms, now_ms + budgets.HOUR_MS
                more = budgets.spent(shared.prices[-1:], *hour, part.cores, part.milli_gpu)
                rate = budgets.plus(rate, more)
        left = budgets.left_ms(bounds_of(row), _used(session, row, shared), rate)
        found += [left / 1000] if left is not None else []
    return min(found, default=None)


def begin(session: Session, pool: str, lifecycle: str, bounds: Bounds, at_ms: int) -> None:
    """The budget that a lifecycle's spec names, once: what a person has set since stays."""
    if bounds == budgets.NO_BOUNDS or session.get(BudgetRow, (pool, "lifecycle", lifecycle)) is not None:
        return
    row = _new(session, pool, "lifecycle", lifecycle, at_ms)
    row.core_ms, row.gpu_ms, row.micros = bounds
    session.add(row)


def _new(session: Session, pool: str, scope: str, name: str, at_ms: int) -> BudgetRow:
    at = lease_time.rows.EPOCH + timedelta(milliseconds=at_ms)
    return BudgetRow(pool=pool, scope=scope, name=name, since_ms=at_ms, until_row=_newest(session, pool), updated_at=at)


def change(  # noqa: PLR0917
    session: Session, pool: str, scope: str, name: str, bounds: Bounds, at_ms: int, *, person: str, restart: bool
) -> str:
    """Set a budget, or take it away where nothing is bounded. *restart*: what was spent counts no more.

    Returns what is so now. Raises `NotFound`, and `Invalid` for money without prices.
    """
    row = session.get(BudgetRow, (pool, scope, name))
    if bounds == budgets.NO_BOUNDS:
        if row is None:
            raise NotFound(f"{scope} {name} has no budget", field="name")
        session.delete(row)
        return f"{scope} {name} has no budget any more"
    if scope == "queue" and name not in {queue.id for queue in lease_queues.tree(session, pool)}:
        raise NotFound(f"there is no queue {name}", field="name", hint="`everloop queue list` shows what there is")
    known = prices(session, pool)
    if bounds.micros != NO_LIMIT and not known:
        raise Invalid("a budget of money needs prices", field="money", hint="`everloop budget prices` sets them")
    if row is None or restart:
        if row is not None:
            session.delete(row)
            session.flush()
        row = _new(session, pool, scope, name, at_ms)
    row.core_ms, row.gpu_ms, row.micros = bounds
    row.person, row.updated_at = person, lease_time.rows.EPOCH + timedelta(milliseconds=at_ms)
    session.add(row)
    currency = known[-1].currency if known else ""
    told = [budgets.words(each, getattr(bounds, each), currency) for each in Bounds._fields
            if getattr(bounds, each) != NO_LIMIT]  # fmt: skip
    return f"{scope} {name} may spend {', '.join(told)}"


def set_prices(session: Session, pool: str, price: Price, *, person: str) -> str:
    """From `from_ms` on. Raises `Invalid` for another currency than before: budgets are in it."""
    before = prices(session, pool)
    if before and before[-1].currency != price.currency:
        message = f"prices are in {before[-1].currency} already, and what was spent is counted in it"
        raise Invalid(message, field="currency")
    at = lease_time.rows.EPOCH + timedelta(milliseconds=price.from_ms)
    session.merge(PriceRow(pool=pool, person=person, at=at, **price._asdict()))
    core, gpu = (budgets.words("micros", each, price.currency) for each in (price.core_micros, price.gpu_micros))
    return f"a core costs {core} an hour, a GPU {gpu}, from now on"
