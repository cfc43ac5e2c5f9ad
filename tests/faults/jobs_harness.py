"""The bridge with its real parts: Dask processes with TLS, a compute worker, a workflow that asks for a job."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.jobs.submit import Jobs
from everloop import engine, names
from everloop.records import Code, Member, Slot
from everloop.settings import SCHEDULER, TEMPORAL, Settings
from everloop.store import Store
from workers import cluster, connect

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # as in the jobs: see `environment`
from job_functions.words import Trial, Tried  # noqa: E402

ROOT = "job_functions"
QUEUE = names.COMPUTE


class TrialJobs:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    @activity.defn(name="everloop.trial")
    async def trial(self, request: Trial) -> Tried:
        return await self._jobs.run(request.function, request, Tried)


@workflow.defn(name="everloop.Trial")
class TrialWorkflow:
    @workflow.run
    async def run(self, request: Trial, heartbeat_seconds: float, queue: str) -> Tried:
        info = workflow.info()
        slot = request.slot.model_copy(update={"holder": f"{info.workflow_id}/{info.run_id}"})
        return await workflow.execute_activity(
            "everloop.trial",
            request.model_copy(update={"slot": slot}),
            activity_id="trial.1",
            result_type=Tried,
            task_queue=queue,
            start_to_close_timeout=timedelta(minutes=5),
            heartbeat_timeout=timedelta(seconds=heartbeat_seconds),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200), backoff_coefficient=1.0),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


class Dask:
    """Scheduler and slots as processes of their own; the test kills and starts them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        call = "scheduler_main(s)" if name == "scheduler" else f"slot_main(s, {name!r})"
        code = f"from workers import cluster; from everloop import settings; s = settings.load(); cluster.{call}"
        self.settings.logs_dir.mkdir(parents=True, exist_ok=True)
        with (self.settings.logs_dir / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", code], env=environment(self.settings), stdout=log, stderr=log
            )

    def start_all(self) -> None:
        """In the launcher's order: a slot gives up on a scheduler that does not answer for some seconds."""
        cluster.create_certificates(self.settings.keys_dir)
        self.start("scheduler")
        deadline = time.monotonic() + 60
        while not self.listens():
            assert time.monotonic() < deadline, (self.settings.logs_dir / "scheduler.log").read_text()
            time.sleep(0.05)
        for index in range(self.settings.slots):
            self.start(f"cpu{index}")

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.settings.port(SCHEDULER))) == 0

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def worker_pid(self, name: str) -> int:
        """Of the Dask worker that the slot *name* keeps running."""
        return psutil.Process(self.processes[name].pid).children()[0].pid

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                process.kill()


def environment(settings: Settings) -> dict[str, str]:
    """Of a process of the stack, with a secret in it that no job may see, and the tests' jobs on its path."""
    planted = os.environ.get("EVERLOOP_TEST_PLANTED", "")  # a folder with a fault, see proof_compute.py
    path = os.pathsep.join([engine.environment()["PYTHONPATH"], str(HERE), *filter(None, [planted])])
    secret = {"EVERLOOP_DATABASE_URL": settings.database, "AWS_SECRET_ACCESS_KEY": "secret"}
    return engine.environment(settings.environment() | secret | {"PYTHONPATH": path})


class Bridge:
    """A compute worker in this process, on one Dask."""

    def __init__(  # noqa: PLR0917
        self, settings: Settings, store: Store, client: Client, dask: Dask, queue: str, root: str = ROOT
    ) -> None:
        self.settings = settings
        self.store = store
        self.client = client
        self.dask = dask
        self.queue = queue
        self.root = root
        self.jobs = Jobs(settings, store, root=root)

    async def ask(  # noqa: PLR0917
        self,
        function: str,
        token: int = 1,
        device: str = "cpu0",
        heartbeat: float = 30.0,
        code: Code | None = None,
        members: tuple[str, ...] = (),
        **values,
    ) -> WorkflowHandle:
        """*members*: devices of the ranks of a gang."""
        of_gang = tuple(Member(rank=rank, device=each) for rank, each in enumerate(members))
        slot = Slot(device=members[0] if members else device, token=token, holder="", members=of_gang)
        request = Trial(function=function, values=values, slot=slot, code=code)
        return await self.client.start_workflow(
            "everloop.Trial",
            args=[request, heartbeat, self.queue],
            id=f"trial-{time.monotonic_ns()}",
            task_queue=f"{self.queue}-control",
            result_type=Tried,
            execution_timeout=timedelta(seconds=900),
        )

    async def call(self, function: str, **values) -> Tried:
        return await asyncio.wait_for((await self.ask(function, **values)).result(), 60)

    async def jobs_as(
        self, run_id: str, function: str, token: int = 1, device: str = "cpu0", activity_id: str = "trial.1", **values
    ) -> Tried:
        """Run a job as an activity of a run and id of our choice."""
        info = replace(ActivityEnvironment.default_info(), workflow_run_id=run_id, activity_id=activity_id)
        slot = Slot(device=device, token=token, holder=f"{info.workflow_id}/{run_id}")
        request = Trial(function=function, values=values, slot=slot)
        surroundings = ActivityEnvironment()
        surroundings.info = info
        return await surroundings.run(self.jobs.run, function, request, Tried)

    def control(self) -> Worker:
        return Worker(
            self.client,
            task_queue=f"{self.queue}-control",
            workflows=[TrialWorkflow],
            workflow_runner=UnsandboxedWorkflowRunner(),
        )

    def compute(self) -> Worker:
        return compute_worker(self.client, self.jobs, self.queue)


def compute_worker(client: Client, jobs: Jobs, queue: str) -> Worker:
    return Worker(
        client,
        task_queue=queue,
        activities=[TrialJobs(jobs).trial],
        interceptors=[connect.ErrorsCross()],
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
    )


def compute_process(bridge: Bridge) -> subprocess.Popen[bytes]:
    """A compute worker for *bridge* that can be killed."""
    return compute_process_of(bridge.settings, bridge.queue, bridge.root)


def compute_process_of(settings: Settings, queue: str, root: str) -> subprocess.Popen[bytes]:
    settings.logs_dir.mkdir(parents=True, exist_ok=True)
    with (settings.logs_dir / "compute.log").open("ab") as log:
        command = [sys.executable, __file__, queue, root]
        return subprocess.Popen(command, env=environment(settings), stdout=log, stderr=log)


def new_settings(data_dir: Path, temporal_address: str, slots: int = 2) -> Settings:
    from tests.conftest import free_port_base

    settings = Settings(data_dir=data_dir, port_base=free_port_base(), slots=slots, session=f"t{os.getpid()}")
    assert settings.port(SCHEDULER) != settings.port(TEMPORAL)
    return replace(settings, temporal_address=temporal_address)


@asynccontextmanager
async def bridge(settings: Settings, dask: Dask, *, compute: bool = True, root: str = ROOT, queue: str = ""):
    store = Store(settings.database)
    store.migrate()
    client = await connect.connect(settings, "test")
    made = Bridge(settings, store, client, dask, queue or f"queue-{time.monotonic_ns()}", root)
    try:
        async with made.control():
            if compute:
                async with made.compute():
                    yield made
            else:
                yield made
    finally:
        await made.jobs.close()
        store.close()


async def failure(bridge, function, **values) -> ApplicationError:
    """What a job that fails is told to have failed with."""
    with pytest.raises(WorkflowFailureError) as caught:
        await bridge.call(function, **values)
    assert isinstance(caught.value.cause.cause, ApplicationError)
    return caught.value.cause.cause


async def until(claim, seconds: float = 20.0, what: str = "it did not happen"):
    """Wait until *claim()* is truthy; its value."""
    deadline = time.monotonic() + seconds
    while not (found := claim()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def entries(diary: Path) -> list[tuple[str, int, float]]:
    lines = diary.read_text().splitlines() if diary.exists() else []
    return [(what, int(pid), float(at)) for what, pid, at in (line.split() for line in lines)]


def running(diary: Path) -> int | None:
    """Pid of the job that has begun, while it is alive."""
    begun = entries(diary)
    return begun[-1][1] if begun and begun[-1][0] == "begin" and alive(begun[-1][1]) else None


def main() -> None:
    """A compute worker as a process of its own, for tests that kill it: `python jobs_harness.py QUEUE ROOT`."""
    from everloop import settings as configuration

    async def serve() -> None:
        settings = configuration.load()
        client = await connect.connect(settings, "compute")
        jobs = Jobs(settings, Store(settings.database), root=sys.argv[2])
        async with compute_worker(client, jobs, sys.argv[1]):
            await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
