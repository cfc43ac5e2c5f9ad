"""A job that wants more memory than its lease has: it is ended, said with figures, and nothing else is hurt."""

import asyncio
import re
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError

from activities.jobs import memory
from everloop import logs
from tests.faults import jobs_harness as harness
from tests.faults.jobs_harness import alive, failure, until

LIMIT_MIB = 200


@pytest.fixture(scope="module")
def dask(tmp_path_factory, temporal_server):
    settings = harness.new_settings(tmp_path_factory.mktemp("data"), temporal_server.address)
    started = harness.Dask(replace(settings, job_memory_mib=LIMIT_MIB))
    started.start_all()
    yield started
    started.stop()


@pytest.fixture
async def bridge(dask):
    async with harness.bridge(dask.settings, dask) as made:
        yield made


def held_mib(error: ApplicationError) -> int:
    found = re.search(r"it held ([\d,]+) MiB, and its lease allows 200 MiB", error.message)
    assert found, error.message
    return int(found[1].replace(",", ""))


async def test_a_job_that_eats_more_than_its_lease_is_ended_once_with_the_figures(bridge, tmp_path):
    error = await failure(bridge, "trial.eat", way="itself", mib=4000, diary=str(tmp_path / "diary"))

    assert error.type == "OutOfMemory"
    assert error.non_retryable
    assert LIMIT_MIB < held_mib(error) < 2000
    assert "EVERLOOP_JOB_MEMORY_MIB" in error.details[1]
    assert (tmp_path / "diary").read_text() == "x"  # not tried again blindly
    newest = max((bridge.settings.logs_dir / "jobs").glob("*/trial.1/1.log"), key=lambda log: log.stat().st_mtime)
    assert error.message in logs.last_words(newest, 1)


async def test_what_a_job_s_descendants_hold_counts_and_the_job_beside_it_goes_on(bridge, tmp_path):
    diary = tmp_path / "beside"
    beside = await bridge.ask("trial.stay", device="cpu1", diary=str(diary), seconds=6.0)
    await until(diary.exists, 30)

    error = await failure(
        bridge, "trial.eat", way="descendants", mib=400, pids=str(tmp_path / "pids"), diary=str(tmp_path / "diary")
    )

    assert error.type == "OutOfMemory"
    assert held_mib(error) > LIMIT_MIB
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    assert not [pid for pid in pids if alive(pid)]
    assert (await asyncio.wait_for(beside.result(), 30)).ran.attempt == 1
    assert (await bridge.call("trial.echo", hello="again")).values["hello"] == "again"  # the slot works on


async def test_a_job_is_told_what_it_may_hold(bridge):
    assert (await bridge.call("trial.surroundings")).values["memory_mib"] == LIMIT_MIB


async def test_mapped_files_and_what_forks_share_do_not_count(bridge):
    tried = await bridge.call("trial.shared", mib=120)  # 120 of its own, 120 mapped, and three forks

    assert tried.values["total"] > 0


async def test_a_memory_error_is_told_with_what_was_asked_for(bridge, tmp_path):
    error = await failure(bridge, "trial.eat", way="at once", mib=0, diary=str(tmp_path / "diary"))

    assert error.type == "OutOfMemory"
    assert held_mib(error) < LIMIT_MIB
    assert (tmp_path / "diary").read_text() == "x"


async def test_a_job_that_can_do_with_less_is_run_again_with_less(bridge, tmp_path):
    tried = await bridge.call("trial.halved", mib=600, most=3, diary=str(tmp_path / "diary"))

    assert tried.values["shrunk"] == 2  # 600 and 300 are too much, 150 is not
    assert (tmp_path / "diary").read_text() == "xxx"
    assert "it is run again with less" in (bridge.settings.logs_dir / tried.ran.log).read_text()


async def test_a_job_that_cannot_do_with_less_enough_is_left_to_a_person(bridge, tmp_path):
    error = await failure(bridge, "trial.halved", mib=4000, most=1, diary=str(tmp_path / "diary"))

    assert error.type == "OutOfMemory"
    assert error.message.endswith("; tries with less: 1")
    assert (tmp_path / "diary").read_text() == "xx"


@pytest.fixture
def group():
    """A control group of 100 MiB below our own."""
    found = re.search(r"^\d+:memory:(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    unified = re.search(r"^0::(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    name = f"everloop-{uuid.uuid4().hex[:8]}"
    if found:
        folder, limit = Path(f"/sys/fs/cgroup/memory{found[1]}") / name, "memory.limit_in_bytes"
    else:
        folder, limit = Path(f"/sys/fs/cgroup{unified[1] if unified else ''}") / name, "memory.max"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(100 << 20))
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        pytest.skip(f"no control group may be made here: {error}")
    yield folder
    folder.rmdir()


async def test_a_job_that_the_kernel_ends_for_want_of_memory_is_told_apart_from_one_that_somebody_kills(
    bridge, group, tmp_path
):
    by_kernel = await failure(bridge, "trial.in_a_group", group=str(group), mib=400, diary=str(tmp_path / "diary"))
    by_somebody = await failure(bridge, "trial.killed", diary=str(tmp_path / "other"))

    assert by_kernel.type == "OutOfMemory"
    assert "the kernel ended it" in by_kernel.message
    assert (tmp_path / "diary").read_text() == "x"
    assert by_somebody.message == "the job crashed 3 times, the last time by SIGKILL"


EATING = """
import subprocess, sys
eat = '''
import os, pathlib, sys
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
b"x" * (400 << 20)
'''
while True:
    assert subprocess.run([sys.executable, "-c", eat, sys.argv[1]]).returncode == -9
    print("killed", flush=True)
"""


@pytest.fixture
def ended_by_kernel(group):
    """A process that is none of ours, which the kernel ends again and again for want of memory."""
    if memory._named_by_kernel() is None:
        pytest.skip("the kernel's log may not be read here")
    with subprocess.Popen([sys.executable, "-c", EATING, str(group)], stdout=subprocess.PIPE) as others:
        assert others.stdout.readline() == b"killed\n"
        yield others
        others.kill()
    while (group / "cgroup.procs").read_text():  # the last one
        time.sleep(0.05)


async def test_a_job_that_somebody_kills_while_the_kernel_ends_another_s_process_did_not_run_out_of_memory(
    bridge, ended_by_kernel, tmp_path
):
    by_somebody = await failure(bridge, "trial.killed", diary=str(tmp_path / "diary"))

    assert ended_by_kernel.poll() is None
    assert by_somebody.message == "the job crashed 3 times, the last time by SIGKILL"
