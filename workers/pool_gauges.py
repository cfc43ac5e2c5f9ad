"""Gauges of a pool that are worked out, not read: fragmentation, how long ago holders were asked, what slips."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily, Metric
from sqlmodel import Session, col, select

from activities.lease_ledger import rows
from activities.lease_ledger.state import read
from activities.lease_policy.room import NOTHING, Four, fit, minus, most, plus
from activities.lease_policy.state import PoolState
from api import budget
from api.pool.answers import PoolView, QueueView
from everloop.amounts import COUNTED, Amount
from everloop.store import LeaseRow

PLACES = tuple(Amount._fields.index(name) for name in COUNTED)


def families(session: Session, views: Sequence[PoolView], now: datetime) -> Iterator[Metric]:
    """Of each pool."""
    age = GaugeMetricFamily(
        "everloop_lease_renew_age_seconds",
        "How long ago the holder was last found alive, of the lease for which that is longest.",
        labels=("pool",),
    )
    broken = GaugeMetricFamily(
        "everloop_fragmentation",
        "Part of what is free that lies on devices without room for a member of the shape that most requests have.",
        labels=("pool", "resource"),
    )
    slip = GaugeMetricFamily(
        "everloop_reservation_slip_seconds",
        "How much later a reservation starts than it was to at first, the most of a queue's.",
        labels=("pool", "queue"),
    )
    for view in views:
        age.add_metric([view.pool], _renew_age(session, view.pool, now))
        for name, part in fragmentation(read(session, view.pool, rows.ms(now))).items():
            broken.add_metric([view.pool, name], part)
        late: dict[str, float] = {}
        for each in view.reservations:
            late[each.queue] = max(late.get(each.queue, 0.0), each.slipped_seconds)
        for queue, seconds in sorted(late.items()):
            slip.add_metric([view.pool, queue], seconds)
    yield from (age, broken, slip, *_usage(views), _budgets(session, views))


def _usage(views: Sequence[PoolView]) -> Iterator[Metric]:
    about = "that the queue and all below it have used, decayed by the policy's half-life."
    cores = GaugeMetricFamily("everloop_usage_decayed_core_seconds", f"Core time {about}", labels=("pool", "queue"))
    gpus = GaugeMetricFamily("everloop_usage_decayed_gpu_seconds", f"GPU time {about}", labels=("pool", "queue"))
    for view in views:
        for queue in view.queues:
            cores.add_metric([view.pool, queue.id], queue.usage.cores / 1000)
            if _has_gpus(view, queue):
                gpus.add_metric([view.pool, queue.id], queue.usage.milli_gpu / 1_000_000)
    yield from (cores, gpus)


def _budgets(session: Session, views: Sequence[PoolView]) -> Metric:
    spent = GaugeMetricFamily(
        "everloop_budget_spent",
        "Part of the budget that is spent; from 1 on it waits.",
        labels=("pool", "scope", "name"),
    )
    for view in views:
        for each in budget.seen(session, view.pool).items:
            spent.add_metric([view.pool, each.scope, each.name], each.part)
    return spent


def _has_gpus(view: PoolView, queue: QueueView) -> bool:
    return queue.usage.milli_gpu > 0 or any(device.whole.milli_gpu for device in view.devices)


def _renew_age(session: Session, pool: str, now: datetime) -> float:
    """Seconds; 0 where nothing is held."""
    live = select(LeaseRow).where(LeaseRow.pool == pool, col(LeaseRow.state).in_(rows.WORKING))
    return max(((now - rows.seen_alive(row)).total_seconds() for row in session.exec(live).all()), default=0.0)


def fragmentation(state: PoolState) -> dict[str, float]:
    """By resource, of what is free; nothing where nobody waits or nothing is free."""
    shapes = Counter(request.member for request in state.waiting if not request.light)
    if not shapes:
        return {}
    most_of_all = max(shapes.values())
    shape = min(member for member, count in shapes.items() if count == most_of_all)
    used: dict[str, Four] = {}
    for held in state.held:
        for part in held.members:
            used[part.device] = plus(used.get(part.device, NOTHING), part.amount)
    open_ones = (device for device in state.devices if device.open and not device.light)
    free = [most(minus(device.whole, used.get(device.name, NOTHING)), NOTHING) for device in open_ones]
    found = {}
    for name, place in zip(COUNTED, PLACES, strict=True):
        total = sum(each[place] for each in free)
        if total and shape[place]:
            found[name] = sum(each[place] for each in free if not fit(each, shape)) / total
    return found
