"""After everything was killed: the dead are proven dead, their attempts fail at once, the job ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
from temporalio import workflow
from temporalio.client import WorkflowFailureError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.lease_ledger import devices
from everloop import names
from tests.faults import jobs_harness as harness
from tests.faults.jobs_harness import alive, compute_process, entries, running, until
from workers import connect
from workers.takeover import take_over


@pytest.fixture
def dask(tmp_path, temporal_server):
    settings = harness.new_settings(tmp_path / "data", temporal_server.address, slots=1)
    started = harness.Dask(replace(settings, session="first"))
    started.start_all()
    yield started
    started.stop()


def kill_all(processes: list[subprocess.Popen]) -> None:
    """kill -9 of every process and all below, reapers and jobs too, as one would from outside."""
    trees = [each for process in processes for each in psutil.Process(process.pid).children(recursive=True)]
    for process in processes:
        process.kill()
    for each in trees:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    for process in processes:
        process.wait()


async def ended_by_a_new_compute_process(bridge, handle):
    newer = compute_process(bridge)
    try:
        return await asyncio.wait_for(handle.result(), 60)
    finally:
        newer.kill()
        newer.wait()


async def test_after_a_kill_of_everything_the_job_goes_on_without_waiting_for_a_heartbeat(dask, tmp_path):
    diary = tmp_path / "diary"
    async with harness.bridge(dask.settings, dask, compute=False) as bridge:
        compute = compute_process(bridge)
        handle = await bridge.ask("trial.stay", heartbeat=120.0, diary=str(diary), seconds=1.0)
        try:
            first = await until(lambda: running(diary), 40)
        finally:
            kill_all([compute, *dask.processes.values()])
        second = replace(dask.settings, session="second")

        killed = time.monotonic()
        client = await connect.connect(second, "up")
        taken = await take_over(client, second)
        again = await take_over(client, second)
        assert not alive(first)

        dask.settings = bridge.settings = second
        dask.start_all()
        tried = await ended_by_a_new_compute_process(bridge, handle)

    assert (taken, again) == (1, 0)
    assert tried.ran.attempt == 2
    assert [what for what, _, _ in entries(diary)] == ["begin", "begin", "end"]
    assert time.monotonic() - killed < 60  # half of the heartbeat timeout


async def test_what_one_killed_process_of_a_living_session_was_doing_is_taken_over(dask, tmp_path):
    diary = tmp_path / "diary"
    async with harness.bridge(dask.settings, dask, compute=False) as bridge:
        compute = compute_process(bridge)
        handle = await bridge.ask("trial.stay", heartbeat=120.0, diary=str(diary), seconds=1.0)
        try:
            await until(lambda: running(diary), 40)
            assert await take_over(bridge.client, dask.settings, jobs_too=False) == 0  # it lives
        finally:
            kill_all([compute])

        taken = await take_over(bridge.client, dask.settings)
        tried = await ended_by_a_new_compute_process(bridge, handle)

    assert taken == 1
    assert tried.ran.attempt == 2


async def test_an_attempt_of_a_living_session_is_left_alone(dask, tmp_path):
    diary = tmp_path / "diary"
    async with harness.bridge(dask.settings, dask) as bridge:
        handle = await bridge.ask("trial.stay", diary=str(diary), seconds=1.0)
        await until(lambda: running(diary), 40)
        mine = replace(dask.settings, session=bridge.client.identity.partition("@")[2].partition("/")[0])

        assert await take_over(bridge.client, mine) == 0
        assert (await handle.result()).ran.attempt == 1


async def test_a_cancel_that_the_dead_cannot_answer_is_answered_for_them(dask, tmp_path):
    diary = tmp_path / "diary"
    async with harness.bridge(dask.settings, dask, compute=False) as bridge:
        compute = compute_process(bridge)
        handle = await bridge.ask("trial.stay", heartbeat=120.0, diary=str(diary), seconds=30.0)
        try:
            await until(lambda: running(diary), 40)
        finally:
            kill_all([compute])
        await handle.cancel()
        await asyncio.sleep(0.5)  # the workflow hands the cancel on to its activity
        second = replace(dask.settings, session="second")

        assert await take_over(bridge.client, second) == 1
        with pytest.raises(WorkflowFailureError):
            await asyncio.wait_for(handle.result(), 60)


@pytest.mark.parametrize("scheduler", ["alive", "gone"])
async def test_dask_processes_end_after_sigterm_and_leave_no_job(dask, tmp_path, scheduler):
    diary = tmp_path / "diary"
    async with harness.bridge(dask.settings, dask) as bridge:
        await bridge.ask("trial.stay", diary=str(diary), seconds=30.0)
        job = await until(lambda: running(diary), 40)
        tree = psutil.Process(dask.processes["cpu0"].pid).children(recursive=True)
        if scheduler == "gone":
            dask.kill("scheduler")
        for process in dask.processes.values():
            process.send_signal(signal.SIGTERM)

        for process in dask.processes.values():
            await until(lambda process=process: process.poll() is not None, 60, "it did not end")

        assert not alive(job)
        await until(lambda: not [each.pid for each in tree if alive(each.pid)], 15, "something is left")


async def test_a_slot_without_a_scheduler_ends_with_1_for_its_launcher_to_start_it_again(dask):
    dask.stop()
    dask.start("cpu0")

    await until(lambda: dask.processes["cpu0"].poll() is not None, 40, "it waits for ever")

    assert dask.processes["cpu0"].returncode == 1


async def test_the_pool_is_told_of_dask_workers_at_the_start_and_when_that_changes(dask, temporal_server):
    """The real `workers.compute.main` in its own process, and a workflow in the place of the pool."""
    client = await connect.connect(dask.settings, "test")
    control = Worker(
        client, task_queue=names.CONTROL, workflows=[HeardByPool], workflow_runner=UnsandboxedWorkflowRunner()
    )
    code = "import asyncio; from workers import compute; from everloop import settings as s; "
    code += "asyncio.run(compute.main(s.load()))"
    command = [sys.executable, "-c", code]
    store = harness.Store(dask.settings.database)
    store.migrate()
    store.close()
    compute = subprocess.Popen(command, env=harness.environment(dask.settings))  # noqa: ASYNC220
    handle = client.get_workflow_handle(names.pool_id(names.DEFAULT_POOL))
    try:
        async with control:
            ((first,),) = await heard(handle, 1)
            device = devices.parsed(first)
            assert (device.name, device.light, device.whole["cores"]) == ("cpu0", False, 1)
            assert device.node == socket.gethostname()
            assert device.whole["memory_mib"] > 500

            os.kill(dask.worker_pid("cpu0"), signal.SIGKILL)  # its slot starts it again: nothing to tell
            await asyncio.sleep(3)
            dask.kill("cpu0")
            assert await heard(handle, 2) == [[first], []]

            dask.start("cpu0")
            assert await heard(handle, 3) == [[first], [], [first]]

            compute.send_signal(signal.SIGTERM)
            await until(lambda: compute.poll() is not None, 60, "the compute worker did not end")
            assert compute.returncode == 0
            await handle.terminate()
    finally:
        compute.kill()


async def heard(handle, count: int) -> list[list[str]]:
    deadline = time.monotonic() + 60
    told: list[list[str]] = []
    while len(told) < count:
        assert time.monotonic() < deadline, told
        try:
            told = await handle.query("heard")
        except Exception:  # noqa: BLE001  # not started yet
            told = []
        await asyncio.sleep(0.1)
    return told


@workflow.defn(name="everloop.GpuPool")
class HeardByPool:
    def __init__(self) -> None:
        self.told: list[list[str]] = []

    @workflow.run
    async def run(self, pool: str) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.signal
    def inventory(self, present: list[str]) -> None:
        self.told.append(present)

    @workflow.query
    def heard(self) -> list[list[str]]:
        return self.told
