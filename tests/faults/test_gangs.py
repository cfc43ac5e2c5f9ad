"""Several processes train together: all of them or none, and whatever is killed, the same model comes out."""

import asyncio
import os
import random
import signal

import pytest
from sqlmodel import select
from temporalio.client import WorkflowFailureError

from everloop.store import MetricRow
from tests.faults import gang_faults as gangs
from tests.faults import jobs_harness as harness
from tests.faults.jobs_harness import alive, until

SEED = int(os.environ.get("EVERLOOP_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
TWO = ("cpu0", "cpu1")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def dask(tmp_path_factory, temporal_server):
    started = gangs.room(tmp_path_factory.mktemp("data"), temporal_server.address, 2)
    yield started
    started.stop()


@pytest.fixture
async def bridge(dask):
    async with harness.bridge(dask.settings, dask, root=gangs.ROOT) as made:
        yield made


async def test_a_gang_of_two_that_is_killed_twice_ends_with_the_unkilled_loss(bridge, tmp_path):
    print(f"EVERLOOP_TEST_SEED={SEED}")
    seen = await gangs.killed(bridge, tmp_path, TWO, 2, random.Random(SEED), bound=gangs.LONGEST_SECONDS)
    assert not seen.wrong, seen
    assert seen.kills == 2
    assert seen.accuracy > 0.8
    with bridge.store.read() as session:  # of both ranks
        jobs = {row.job.partition("#")[2] for row in session.exec(select(MetricRow)).all()}
    assert jobs == {"", "1"}
    logs = {path.name for path in bridge.settings.logs_dir.glob("jobs/*/trial.1/*.log")}
    assert {"1.log", "1.1.log", "3.log", "3.1.log"} <= logs


async def test_a_gang_one_of_whose_devices_is_away_for_a_moment_waits_for_it(bridge, dask, tmp_path):
    """Where a device is not there, nobody knows its host, and ranks of two hosts would be told to meet on loopback."""
    os.kill(dask.worker_pid("cpu0"), signal.SIGKILL)
    handle = await bridge.ask(gangs.LEARN, members=TWO, diary=str(tmp_path / "diary"), epochs=2, pace=0.0)
    await asyncio.wait_for(handle.result(), gangs.PATIENCE_SECONDS)
    assert {each.size for each in gangs.entries(tmp_path / "diary")} == {2}


async def test_a_rank_that_raises_is_named_and_the_others_are_not_blamed(bridge, tmp_path):
    diary = tmp_path / "diary"
    handle = await bridge.ask(gangs.LEARN, members=TWO, diary=str(diary), epochs=30, pace=0.01, raises=[1, 3])
    with pytest.raises(WorkflowFailureError) as caught:
        await asyncio.wait_for(handle.result(), gangs.PATIENCE_SECONDS)
    told = caught.value.cause.cause
    assert told.message == "rank 1: ValueError: rank says no"
    assert not [each for each in gangs.entries(diary) if alive(each.pid)]
    run = (await handle.describe()).run_id
    log = (bridge.settings.logs_dir / f"jobs/{run}/trial.1/1.log").read_text()
    assert "rank 1: ValueError: rank says no" in log


async def test_a_gang_that_is_told_to_end_keeps_one_checkpoint_for_all(bridge, tmp_path):
    """And the next one, with one rank, goes on from it."""
    diary = tmp_path / "diary"
    handle = await bridge.ask(gangs.LEARN, members=TWO, diary=str(diary), epochs=2000, pace=0.01)
    running = await until(lambda: gangs.attempt(diary, 2, 10), gangs.PATIENCE_SECONDS)
    await handle.cancel()
    await until(lambda: not [each for each in running.values() if alive(each.pid)], 60)
    last = {each.rank: each.epoch for each in gangs.entries(diary)}
    assert last[0] == last[1]  # they stopped at the same epoch
    kept = [int(path.name) for path in bridge.settings.checkpoints_dir.glob("*/*/*/*/[0-9]*")]
    assert max(kept) == last[0]
