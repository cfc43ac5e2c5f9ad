"""Whatever is killed, the next attempt finishes, and never do two jobs run on one device."""

import asyncio
import os
import random
import signal
from pathlib import Path

import psutil
import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ActivityError, CancelledError
from temporalio.worker import Worker

from everloop.errors import ComputeLost
from tests.faults import compute_faults as faults
from tests.faults import jobs_harness as harness
from tests.faults.jobs_harness import alive, entries, running, until

SEED = int(os.environ.get("EVERLOOP_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


@pytest.fixture(scope="module")
def dask(tmp_path_factory, temporal_server):
    settings = harness.new_settings(tmp_path_factory.mktemp("data"), temporal_server.address, slots=1)
    started = harness.Dask(settings)
    started.start_all()
    yield started
    started.stop()


@pytest.fixture
async def bridge(dask):
    async with harness.bridge(dask.settings, dask) as made:
        yield made


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    made = faults.Room(tmp_path_factory.mktemp("room"))
    yield made
    made.stop()


@pytest.mark.parametrize("fault", faults.FAULTS)
async def test_a_training_that_is_disturbed_at_a_random_moment_gives_the_same_bytes(room, tmp_path, fault):
    """No orphan, no overlap on a device, no more done again than one interval between checkpoints."""
    print(f"EVERLOOP_TEST_SEED={SEED}")
    for number in range(3):
        seen = await faults.run(room, fault, random.Random(f"{SEED} {fault} {number}"), tmp_path)
        assert not seen.wrong
        if seen.hit:
            break
    assert seen.hit, "the fault never hit"
    assert seen.again_seconds is None or seen.again_seconds < 60  # what a quiet machine needs: docs/proof/compute.csv
    assert seen.gone_seconds is None or seen.gone_seconds < 1.5


async def test_grandchildren_of_a_killed_reaper_are_gone_before_the_next_attempt(bridge, tmp_path):
    diary = tmp_path / "diary"
    handle = await bridge.ask("trial.family", diary=str(diary), orphan=True)
    pids = await family(diary)
    psutil.Process(pids[0]).parent().kill()

    await until(lambda: diary.exists() and diary.read_text() and pids[0] not in told(diary), 60, "no second attempt")

    assert not [pid for pid in pids if alive(pid)]
    await handle.cancel()


async def test_what_is_left_of_a_job_whose_worker_and_reaper_were_killed_does_not_hold_the_slot(bridge, tmp_path):
    handle = await bridge.ask("trial.forked", diary=str(tmp_path / "diary"))
    job, fork, reaper = await family(tmp_path / "diary")

    os.kill(bridge.dask.worker_pid("cpu0"), signal.SIGKILL)
    os.kill(reaper, signal.SIGKILL)
    await handle.cancel()

    assert (await bridge.call("trial.echo", hello="again")).values["hello"] == "again"
    assert not [pid for pid in (job, fork) if alive(pid)]


async def family(diary: Path) -> list[int]:
    await until(lambda: len(told(diary)) >= 3, 60, "the family never met")
    return told(diary)


def told(diary: Path) -> list[int]:
    return [int(pid) for pid in diary.read_text().split()] if diary.exists() else []


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_cancel_ends_the_whole_tree_and_the_workflow_hears_of_it_only_then(bridge, tmp_path, stubborn):
    diary = tmp_path / "diary"
    handle = await bridge.ask("trial.family", diary=str(diary), orphan=True, stubborn=stubborn)
    pids = await family(diary)

    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await asyncio.wait_for(handle.result(), 60)

    assert not [pid for pid in pids if alive(pid)]
    cause = caught.value.cause
    assert isinstance(cause.cause if isinstance(cause, ActivityError) else cause, CancelledError)


async def test_a_result_whose_completion_was_lost_is_found_and_nothing_is_done_again(bridge, tmp_path):
    diary = tmp_path / "diary"
    first = asyncio.create_task(bridge.jobs_as("run-kept", "trial.stay", diary=str(diary), seconds=0.5))
    await until(lambda: running(diary))
    folder = bridge.settings.scratch_dir / "jobs" / "run-kept" / "trial.1" / "1"
    await until((folder / "result.json").exists)
    first.cancel()  # the attempt's answer goes nowhere
    await asyncio.gather(first, return_exceptions=True)

    again = await bridge.jobs_as("run-kept", "trial.stay", token=2, diary=str(diary), seconds=0.5)

    assert again.ran.kept
    assert [what for what, _, _ in entries(diary)] == ["begin", "end"]


async def test_two_attempts_never_overlap_on_a_device_even_without_a_common_scheduler(bridge, tmp_path):
    """The first job's Dask worker is killed and its job is stubborn: the second waits for it, not for Dask."""
    diary, family_diary = tmp_path / "diary", tmp_path / "family"
    first = asyncio.create_task(
        bridge.jobs_as("run-overlap", "trial.family", diary=str(family_diary), stubborn=True, orphan=True)
    )
    pids = await family(family_diary)
    os.kill(bridge.dask.worker_pid("cpu0"), signal.SIGKILL)
    with pytest.raises(ComputeLost):
        await first
    seen = alive(pids[0])

    second = asyncio.create_task(bridge.jobs_as("run-overlap-2", "trial.stay", diary=str(diary), seconds=0.2))
    overlap = False
    while not second.done():
        overlap = overlap or (running(diary) is not None and alive(pids[0]))
        await asyncio.sleep(0.01)

    await second
    assert seen, "the old job was gone too soon for this test to prove anything"
    assert not overlap
    assert not [pid for pid in pids if alive(pid)]


async def test_jobs_end_when_the_compute_worker_is_told_to_stop(dask, tmp_path):
    diary = tmp_path / "diary"
    async with harness.bridge(dask.settings, dask, compute=False) as bridge:
        worker: Worker = bridge.compute()
        running_worker = asyncio.create_task(worker.run())
        handle = await bridge.ask("trial.stay", diary=str(diary), seconds=1.0)
        job = await until(lambda: running(diary))

        await worker.shutdown()
        await running_worker
        await bridge.jobs.close()
        await until(lambda: not alive(job), 30, "the job outlived its worker")
        async with bridge.compute():
            tried = await asyncio.wait_for(handle.result(), 30)

    assert tried.ran.attempt == 2
