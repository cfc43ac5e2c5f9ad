"""The compute worker: takes activities from its queue, runs each as a job on the slot of its lease."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.data import DataJobs
from activities.disk import DiskOnCompute
from activities.drift import DriftCompute
from activities.evaluation import EvaluationJobs
from activities.export import ExportJobs
from activities.features import FeaturesJobs
from activities.jobs import scratch
from activities.jobs.submit import Jobs
from activities.labels import LabelCompute
from activities.proof import ProofOnCompute
from activities.score import ScoreJobs
from activities.search import SearchJobs
from activities.training import TrainingJobs
from everloop import logs, names
from everloop.errors import Unavailable
from everloop.settings import Settings
from everloop.store import Store
from workers import admission, connect, devices, sleep

log = logging.getLogger(__name__)

MOST_ACTIVITIES = 20
HEARTBEAT_THROTTLE = timedelta(seconds=1)
LOOK_SECONDS = 0.5
TIDY_SECONDS = 10.0
TELL_SECONDS = 60.0
"""The pool hears of its devices this often even without news: somebody may have told it something else, or ended it."""
SLOT = "slot"
"""What the Dask workers of our devices have; a cluster may have others."""
LOOPBACK = ("127.0.0.1", "::1", "localhost", "")
MISSED_SECONDS = 5.0
"""A Dask worker that comes back sooner (its slot starts it again) was never reported as gone."""


async def main(settings: Settings) -> None:
    """Run until told to stop. Jobs that run then are ended and start again with the next worker."""
    connect.die_with_parent()
    connect.log_lines("compute")
    logging.getLogger("distributed").setLevel(logging.ERROR)  # lost schedulers are reported by the jobs themselves
    stop = connect.told_to_stop()
    client = await connect.connect(settings, "compute")
    store = Store(settings.database)
    jobs = Jobs(settings, store)
    async with worker(client, jobs, store, settings):
        await connect.first_of(Inventory(client, jobs).report(), _tidied(store, settings), stop.wait())
    await jobs.close()


def worker(client: Client, jobs: Jobs, store: Store, settings: Settings) -> Worker:
    """The Temporal worker of the compute queue."""
    return Worker(
        client,
        task_queue=names.COMPUTE,
        deployment_config=connect.build(),
        activities=activities(jobs, store, settings),
        interceptors=[sleep.GivenUpAtOnce(client), connect.ErrorsCross(), admission.OnlyOurs(client)],
        max_concurrent_activities=MOST_ACTIVITIES,
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
    )


def activities(jobs: Jobs, store: Store, settings: Settings) -> Sequence[Callable[..., Any]]:
    data, features, training = DataJobs(jobs), FeaturesJobs(jobs), TrainingJobs(jobs)
    score = ScoreJobs(jobs)
    evaluation, export = EvaluationJobs(jobs), ExportJobs(jobs)
    return (
        data.snapshot,
        data.validate,
        features.prepare,
        training.train,
        training.refit,
        SearchJobs(jobs).attempt,
        evaluation.evaluate,
        export.export,
        DriftCompute(jobs, store, settings).measure,
        LabelCompute(jobs, store, settings).perform,
        *(score.cut, score.chunk, score.join),
        DiskOnCompute(settings).room,
        ProofOnCompute(jobs).prove,
    )


async def _tidied(store: Store, settings: Settings) -> None:
    """For ever: remove what ended runs have left in scratch, checkpoints too."""
    while True:
        try:
            await asyncio.to_thread(scratch.remove_ended, store, settings.scratch_dir / "jobs")
            await asyncio.to_thread(scratch.remove_checkpoints, store, settings.checkpoints_dir)
            if settings.has_store:
                await asyncio.to_thread(scratch.remove_checkpoints_of_store, store, settings.checkpoints_url)
                await asyncio.to_thread(scratch.remove_ended_of_store, store, f"{settings.artifacts}/jobs")
            if settings.dask_address:  # elsewhere the slots do it, whose disk it is
                await asyncio.to_thread(logs.bound_all, settings.logs_dir / "jobs")
        except Exception:
            log.exception("scratch could not be tidied; it is tried again")
        await asyncio.sleep(TIDY_SECONDS)


class Inventory:
    """Tells the pool which Dask workers there are: at the start, and whenever that changes."""

    def __init__(self, client: Client, jobs: Jobs) -> None:
        self._client = client
        self._jobs = jobs
        self._seen: dict[str, float] = {}
        self._reported: list[str] | None = None

    async def report(self) -> None:
        """For ever."""
        told_at = 0.0
        while True:
            present = await self._present()
            news = present != self._reported and (present or self._reported is not None)
            if news or (present and time.monotonic() - told_at > TELL_SECONDS):
                await self._tell(present)
                told_at = time.monotonic()
            await asyncio.sleep(LOOK_SECONDS)

    async def _present(self) -> list[str]:
        now = time.monotonic()
        for name in await self._connected():
            self._seen[name] = now
        return sorted(name for name, at in self._seen.items() if now - at <= MISSED_SECONDS)

    async def _connected(self) -> list[str]:
        try:
            client = await self._jobs.client()
            identity = await asyncio.wait_for(client.scheduler.identity(n_workers=-1), MISSED_SECONDS)
        except (Unavailable, OSError, TimeoutError) as error:
            log.warning("the Dask scheduler does not answer: %s", error)
            return []
        return [_as_reported(each) for each in identity["workers"].values() if SLOT in each["resources"]]

    async def _tell(self, present: list[str]) -> None:
        try:
            await self._client.start_workflow(
                names.GPU_POOL,
                names.DEFAULT_POOL,
                id=names.pool_id(names.DEFAULT_POOL),
                task_queue=names.CONTROL,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                start_signal=names.POOL_INVENTORY,
                start_signal_args=[present],
            )
        except RPCError as error:
            log.warning("the pool could not be told of %s: %s", present, error)
            return
        self._reported = present


def _as_reported(worker: dict[str, Any]) -> str:
    """The name the pool keeps, and what the device has, which its Dask worker says by its resources."""
    has = worker["resources"]
    light = names.LIGHT_SUFFIX if "light" in has else ""
    amounts = "".join(f":{what}={int(has[what])}" for what in devices.SAID if what in has)
    host = str(worker.get("host", ""))
    node = worker.get(devices.NODE) or (socket.gethostname() if host in LOOPBACK else host)
    return f"{worker['name']}{light}:node={node.replace(':', '-')}{amounts}"
