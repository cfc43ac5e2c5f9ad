"""What Prometheus reads of the pools: an address of the control worker, on loopback, for whoever has the API's key.

Gauges are read from the ledger when somebody asks, so they are true whatever was restarted. Sums over what has ended
are read on from where the last look came to, and begin anew with the process, which Prometheus knows how to count.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from sqlmodel import Session, col, select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from activities import lease_refused
from activities.lease_timing import TIMINGS, refused
from api import connections
from api.identity import Guard
from api.pool import seen
from api.pool.answers import Counted, PoolView, QueueView
from everloop.settings import Settings
from everloop.store import DeviceRow, LeaseRequestRow, LeaseRow, LeaseTimeRow, Store
from workers import pool_gauges

log = logging.getLogger(__name__)

STATES = ("ready", "cordoned", "draining", "quarantined", "away")
LEASE_STATES = ("offered", "active", "noticed", "killing")
WAITS = (0.5, 1, 2, 5, 10, 30, 60, 300, 735, 1800, 3600, 4 * 3600, 24 * 3600)
"""Seconds. 735: what a request within its queue's quota waits at most (gpu.md 2.6)."""
MOST_AT_ONCE = 5_000
"""Ended leases that one look reads; the next look goes on."""


async def serve(settings: Settings, store: Store) -> None:
    """Answer until cancelled."""
    metrics = Metrics(store)

    async def shown(_: Request) -> Response:
        text = await asyncio.to_thread(metrics.text)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = Starlette(routes=[Route("/metrics", shown)])
    guarded = Guard(app, settings, store, settings.metrics_port, cookies=False, audit=False, open_paths=False)
    await _Quiet(connections.config(guarded, settings.metrics_port)).serve()


class _Quiet(uvicorn.Server):
    """Leaves the process's signals to the worker."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Metrics(Collector):
    """All pools of a store, as families of metrics."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._registry = CollectorRegistry()
        self._wait = Histogram(
            "everloop_queue_wait_seconds",
            "From a request to its grant.",
            ("pool", "queue"),
            buckets=WAITS,
            registry=self._registry,
        )
        self._gang_wait = Histogram(
            "everloop_gang_wait_seconds",
            "From a request of several members to its grant.",
            ("pool", "queue"),
            buckets=WAITS,
            registry=self._registry,
        )
        self._preempted = Counter(
            "everloop_preemptions", "Leases that were told to let go.", ("pool", "queue", "reason"),
            registry=self._registry,
        )  # fmt: skip
        self._core_seconds = Counter(
            "everloop_leased_core_seconds", "Core time of ended leases, by what it was for.",
            ("pool", "queue", "kind"), registry=self._registry,
        )  # fmt: skip
        self._gpu_seconds = Counter(
            "everloop_leased_gpu_seconds", "GPU time of ended leases, by what it was for.", ("pool", "queue", "kind"),
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(self)
        self._granted_until, self._row = self._now_at()
        self.began = datetime.now(UTC)
        self._noticed: set[int] = set()

    def _now_at(self) -> tuple[int, int]:
        """Where the sums begin: what was before this process is not in them."""
        with self._store.read() as session:
            token = session.exec(select(LeaseRow.token).order_by(col(LeaseRow.token).desc()).limit(1)).first()
            row = session.exec(select(LeaseTimeRow.id).order_by(col(LeaseTimeRow.id).desc()).limit(1)).first()
        return token or 0, row or 0

    def text(self) -> bytes:
        """What Prometheus reads."""
        with self._store.read() as session:
            self._go_on(session)
        return generate_latest(self._registry) + generate_latest(TIMINGS)

    def _go_on(self, session: Session) -> None:
        granted = select(LeaseRow, LeaseRequestRow).join(
            LeaseRequestRow, col(LeaseRequestRow.id) == col(LeaseRow.request_id)
        )
        fresh = granted.where(LeaseRow.token > self._granted_until).order_by(col(LeaseRow.token)).limit(MOST_AT_ONCE)
        for lease, request in session.exec(fresh).all():
            waited = max(0.0, (lease.granted_at - request.requested_at).total_seconds())
            self._wait.labels(lease.pool, lease.queue).observe(waited)
            if request.members_min > 1:
                self._gang_wait.labels(lease.pool, lease.queue).observe(waited)
            self._granted_until = lease.token
        noticed = select(LeaseRow).where(col(LeaseRow.noticed_at) >= self.began)
        for lease in session.exec(noticed.order_by(col(LeaseRow.token).desc()).limit(MOST_AT_ONCE)).all():
            if lease.token not in self._noticed:
                self._noticed.add(lease.token)
                self._preempted.labels(lease.pool, lease.queue, lease.notice or "revoke").inc()
        rows = select(LeaseTimeRow).where(col(LeaseTimeRow.id) > self._row).order_by(col(LeaseTimeRow.id))
        for row in session.exec(rows.limit(MOST_AT_ONCE)).all():
            self._row = row.id or self._row
            if row.token:
                seconds = (row.to_ms - row.from_ms) / 1000
                self._core_seconds.labels(row.pool, row.queue, row.kind).inc(row.cores * seconds)
                self._gpu_seconds.labels(row.pool, row.queue, row.kind).inc(row.milli_gpu / 1000 * seconds)

    def collect(self) -> Iterator[Metric]:
        """The gauges, from the ledger as it is now."""
        with self._store.read() as session:
            names = session.exec(select(DeviceRow.pool).distinct()).all()
            views = [seen.pool(session, name, 10_000) for name in sorted(names)]
            refusals = refused() | lease_refused.counted(session)
            worked_out = list(pool_gauges.families(session, views, datetime.now(UTC)))
        yield from _devices(views)
        yield from _queues(views)
        yield from _requests(views)
        yield from worked_out
        yield _fence(refusals)


def _family(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"everloop_{name}", about, labels=labels)


def _fence(refusals: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(
        "everloop_fence_rejections", "What was refused to a holder whose lease was taken away.", labels=("store",)
    )
    for what, count in refusals.items():
        family.add_metric([what], count)
    return family


def _devices(views: list[PoolView]) -> Iterator[Metric]:
    cores = _family("capacity_cores", "Cores of all devices.", "pool")
    gpus = _family("gpu_capacity_mgpu", "Thousandths of a GPU of all devices.", "pool")
    state = _family("device_state", "1 for the state that the device is in.", "pool", "device", "state")
    memory = _family("device_memory_held_mib", "MiB of memory that leases hold.", "pool", "device")
    leases = _family("leases", "Live leases.", "pool", "state")
    for view in views:
        cores.add_metric([view.pool], sum(device.whole.cores for device in view.devices))
        gpus.add_metric([view.pool], sum(device.whole.milli_gpu for device in view.devices))
        for device in view.devices:
            memory.add_metric([view.pool, device.name], device.used.memory_mib)
            for each in STATES:
                state.add_metric([view.pool, device.name, each], float(device.state == each))
        for each in LEASE_STATES:
            leases.add_metric([view.pool, each], sum(lease.state == each for lease in view.leases))
    yield from (cores, gpus, state, memory, leases)


def _queues(views: list[PoolView]) -> Iterator[Metric]:
    """Per queue, its own and of all below it. A quota that is not set is left out."""
    kinds: dict[str, tuple[str, Callable[[QueueView], Counted | None]]] = {
        "allocated": ("held", lambda queue: queue.use),
        "share": ("that it is to have now", lambda queue: queue.share),
        "quota": ("of its quota", lambda queue: queue.quota),
    }
    for name, (about, of) in kinds.items():
        cores = _family(f"{name}_cores", f"Cores {about}.", "pool", "queue")
        gpus = _family(f"gpu_{name}_mgpu", f"Thousandths of a GPU {about}.", "pool", "queue")
        for view in views:
            for queue in view.queues:
                values = of(queue)
                if values is not None and values.cores >= 0:
                    cores.add_metric([view.pool, queue.id], values.cores)
                if values is not None and values.milli_gpu >= 0:
                    gpus.add_metric([view.pool, queue.id], values.milli_gpu)
        yield cores
        yield gpus


def _requests(views: list[PoolView]) -> Iterator[Metric]:
    pending = _family("requests_pending", "Requests that wait, by the reason.", "pool", "queue", "reason")
    starved = _family(
        "starved_seconds_max", "How long the longest wait within its queue's quota has been.", "pool", "queue"
    )
    now = datetime.now(UTC)
    for view in views:
        counts: dict[tuple[str, str], int] = {}
        for each in view.waiting:
            counts[each.queue, each.code] = counts.get((each.queue, each.code), 0) + 1
        for (queue, code), count in sorted(counts.items()):
            pending.add_metric([view.pool, queue, code], count)
        for queue_view in view.queues:
            starved.add_metric([view.pool, queue_view.id], _starved(view, queue_view, now))
    yield from (pending, starved)


def _starved(view: PoolView, queue: QueueView, now: datetime) -> float:
    """Seconds; 0 where nobody waits whose queue has less than its quota."""
    longest = 0.0
    for each in view.waiting:
        owed = queue.quota.cores >= queue.use.cores + each.needs.cores * each.members
        if each.queue == queue.id and owed:
            longest = max(longest, (now - each.since).total_seconds())
    return longest
