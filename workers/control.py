"""The control worker: workflows and the light activities beside them. Holds no heavy library."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.worker import PollerBehaviorAutoscaling, Worker

from activities.alarm import Alarms
from activities.drift import DriftLedger
from activities.fork import ForkOnControl
from activities.journal import JournalOnControl
from activities.labels import LabelLedger
from activities.lease import LeaseOnControl
from activities.lifecycle import LifecycleOnControl
from activities.pool import PoolOnControl
from activities.predictions.keeping import LogKeeper
from activities.registry import RegistryOnControl
from activities.release import ReleaseOnControl
from activities.score import ScoreOnControl
from activities.search import SearchOnControl
from everloop import names
from everloop.artifacts import Artifacts
from everloop.settings import Settings
from everloop.store import Store
from workers import admission, connect
from workers.ends import Ends
from workflows.approval import Approval
from workflows.drift import DriftCheck
from workflows.inputs import Inputs
from workflows.lease import GpuPool
from workflows.lifecycle import Lifecycle
from workflows.pool import PoolOrdering
from workflows.release import Release, RollBack
from workflows.score import Score
from workflows.search import Search

log = logging.getLogger(__name__)

WORKFLOWS = (Lifecycle, Approval, Release, RollBack, DriftCheck, GpuPool, PoolOrdering, Search, Score)
SWEEP_SECONDS = 5.0
STICKY_TIMEOUT = timedelta(seconds=2)
"""After kill -9 of this process its cached workflows wait this long for it (the SDK's default is 10 s)."""
CACHED_WORKFLOWS = 200
"""Open ones that stay in memory, the latest first. The others wait, mostly for people, and are replayed from their
histories when something happens to them. The SDK's default is 1,000."""


async def main(settings: Settings) -> None:
    """Run until told to stop."""
    connect.die_with_parent()
    connect.log_lines("control")
    stop = connect.told_to_stop()
    store = Store(settings.database)
    artifacts = Artifacts(settings.artifacts, settings.disk_floor_bytes)
    client = await connect.connect(settings, "control")
    journal = JournalOnControl(store, artifacts, client)
    ends = Ends(client, journal, LeaseOnControl(store, client))
    alarms = Alarms(store, client, LeaseOnControl(store, client))
    keeper = LogKeeper(store, artifacts, settings.predictions_dir)
    async with worker(client, activities(client, store, artifacts, settings, journal)):
        await connect.first_of(
            *map(_sweep, (journal.sweep, alarms.sweep, keeper.sweep)),
            ends.watch(),
            *_metrics(settings, store),
            stop.wait(),
        )
    store.close()


def worker(client: Client, light: Sequence[Callable[..., Any]]) -> Worker:
    """The Temporal worker of the control queue."""
    pollers = PollerBehaviorAutoscaling(minimum=2, initial=5, maximum=50)
    return Worker(
        client,
        task_queue=names.CONTROL,
        deployment_config=connect.build(),
        workflows=WORKFLOWS,
        activities=light,
        interceptors=[connect.ErrorsCross(), admission.OnlyOurs(client), Inputs()],
        workflow_runner=connect.sandbox(),
        sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
        max_cached_workflows=CACHED_WORKFLOWS,
        workflow_task_poller_behavior=pollers,
        activity_task_poller_behavior=pollers,
        max_eager_activity_reservations_per_workflow_task=100,
        max_concurrent_activities=500,
    )


def activities(
    client: Client, store: Store, artifacts: Artifacts, settings: Settings, journal: JournalOnControl
) -> Sequence[Callable[..., Any]]:
    """The light activities, each bound to what it needs."""
    lease = LeaseOnControl(store, client, settings.away_seconds)
    registry = RegistryOnControl(store, artifacts, settings.keys_dir)
    release = ReleaseOnControl(store, artifacts, settings, client)
    drift, search = DriftLedger(store, settings, client), SearchOnControl(store, artifacts)
    labels = LabelLedger(store, settings, client)
    return (
        journal.append,
        LifecycleOnControl(store, client, settings.keys_dir).admit,
        ForkOnControl(client).kept,
        *(lease.request, lease.accept, lease.adopt, lease.commit, lease.release, lease.cancel, lease.pool_step),
        PoolOnControl(store, lease, settings.keys_dir).order,
        *(registry.champion, registry.register, registry.evidence),
        *(release.route, release.observe, release.roll_back),
        *(drift.watch, drift.next_window, drift.trigger),
        *(labels.due, labels.judge),
        ScoreOnControl(store, settings.keys_dir).open,
        *(search.begin, search.tell),
    )


def _metrics(settings: Settings, store: Store) -> list[Awaitable[None]]:
    """What answers Prometheus, where a port is set. Only then is a web server loaded here."""
    if not settings.metrics_port:
        return []
    from workers import metrics

    return [metrics.serve(settings, store)]


async def _sweep(sweep: Callable[[], Awaitable[object]]) -> None:
    """For ever: what workflows could not journal themselves, the archive of closed histories, alarms, predictions."""
    while True:
        try:
            await sweep()
        except Exception:
            log.exception("a sweep failed; it is tried again")
        await asyncio.sleep(SWEEP_SECONDS)
