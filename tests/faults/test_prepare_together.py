"""Two members prepare a table as two processes; one is killed, both begin again, and the bytes are the same."""

import asyncio
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil
import pytest
from temporalio.testing import ActivityEnvironment

from activities.compute import data
from activities.jobs.submit import Jobs
from everloop import contracts
from everloop.artifacts import Artifacts
from everloop.errors import ComputeLost, JobFailed
from everloop.records import Member, Prepared, Slot
from tests.faults import gang_faults as gangs
from tests.faults import jobs_harness as harness
from tests.faults.jobs_harness import alive, until
from tests.job import FolderJob
from tests.stages import SLOT, spec_of

SEED = int(os.environ.get("EVERLOOP_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
ROWS = 200_000
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def dask(tmp_path, temporal_server):
    started = gangs.room(tmp_path / "data", temporal_server.address, 2)
    yield started
    started.stop()


def table() -> pd.DataFrame:
    numbers = np.random.default_rng(1)
    frame = pd.DataFrame(numbers.normal(size=(ROWS, 8)).round(3), columns=[f"x{place}" for place in range(8)])
    frame["town"] = numbers.choice([f"town {number}" for number in range(300)], ROWS)
    frame["y"] = (frame.x0 + numbers.normal(size=ROWS) > 0).astype(int)
    return frame.mask(numbers.random(frame.shape) < 0.01).assign(y=frame.y)


def jobs_of(settings) -> list[int]:
    """Pids of the ranks that run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "features.prepare"[:15]:
                found += [process.pid] if process.environ().get("EVERLOOP_DATA_DIR") == str(settings.data_dir) else []
        except psutil.Error:
            continue
    return found


async def prepare(jobs: Jobs, request: contracts.PrepareRequest, attempt: int, members: int) -> Prepared:
    """As an attempt of the activity of that stage."""
    surroundings = ActivityEnvironment()
    run = f"run-{members}"
    surroundings.info = replace(
        ActivityEnvironment.default_info(), workflow_run_id=run, activity_id="prepare.1", attempt=attempt
    )
    ranks = tuple(Member(rank=rank, device=f"cpu{rank}") for rank in range(members))
    holder = f"{surroundings.info.workflow_id}/{run}"
    slot = Slot(device="cpu0", token=members, holder=holder, members=ranks)
    asked = request.model_copy(update={"slot": slot})
    return await surroundings.run(jobs.run, "features.prepare", asked, Prepared)


async def test_a_table_that_two_members_prepare_is_that_of_one_whichever_is_killed(dask, tmp_path):
    print(f"EVERLOOP_TEST_SEED={SEED}")
    here = dask.settings
    table().to_csv(tmp_path / "table.csv", index=False)
    spec = spec_of(tmp_path / "table.csv", "binary", "y", features={"target_mean": True})
    own = FolderJob(tmp_path)
    own.artifacts = Artifacts(here.artifacts)
    taken = await asyncio.to_thread(data.snapshot, contracts.SnapshotRequest(spec=spec, slot=SLOT), own)
    request = contracts.PrepareRequest(spec=spec, snapshot=taken, champion=None, slot=SLOT)

    async with harness.bridge(here, dask, compute=False, root="activities.compute") as bridge:
        alone = await prepare(bridge.jobs, request, 1, 1)
        together = asyncio.create_task(prepare(bridge.jobs, request, 1, 2))
        meeting = here.scratch_dir / "jobs" / "run-2" / "prepare.1" / "gangs"
        said = await until(lambda: list(meeting.glob("*/shares/divided.0")), 300, "the ranks have not met")
        ranks = await until(lambda: found if len(found := jobs_of(here)) == 2 else None, 60, "no two ranks")
        os.kill(random.Random(SEED).choice(ranks), signal.SIGKILL)
        with pytest.raises((ComputeLost, JobFailed)):
            await together
        assert not [pid for pid in ranks if alive(pid)]
        assert not said[0].exists(), "an attempt after this one would meet what it has left"

        again = await prepare(bridge.jobs, request, 2, 2)

    assert again.model_copy(update={"ran": None}) == alone.model_copy(update={"ran": None})
    assert [each.device for each in again.ran.members] == ["cpu0", "cpu1"]
    logs = [(here.logs_dir / f"jobs/run-2/prepare.1/2{rank}.log").read_text() for rank in ("", ".1")]
    assert "rank 0 of 2 has prepared the rows" in logs[0]
    assert "rank 1 of 2 has prepared the rows" in logs[1]
