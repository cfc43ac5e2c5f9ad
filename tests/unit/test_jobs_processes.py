"""Processes around jobs: what they load, how they end, and the internals that we lean on."""

import asyncio
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import distributed
import pytest
from distributed import LocalCluster

from activities.jobs import supervisor, warming
from everloop import engine
from workers import cluster


def test_the_warm_process_ends_when_no_job_has_come_for_a_while_and_the_next_job_gets_a_new_one(monkeypatch):
    environment = engine.environment()
    monkeypatch.setattr(warming, "IDLE_SECONDS", 1.0)
    first = warming.warm_up("activities.jobs", environment)
    assert warming.warm_up("activities.jobs", environment) is first

    warming.cool_down_later()
    warming.warm_up("activities.jobs", environment)  # a job comes meanwhile
    time.sleep(1.5)
    assert warming.pid() == first.pid

    warming.cool_down_later()
    deadline = time.monotonic() + 60
    while warming.pid():
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.02)
    second = warming.warm_up("activities.jobs", environment)

    assert second.pid != first.pid
    while (told := Path(f"/proc/{first.pid}/stat")).exists() and ") Z " not in told.read_text():
        assert time.monotonic() < deadline + 10, "it is still there"
        time.sleep(0.02)
    warming.cool_down_later()
    while warming.pid():
        time.sleep(0.02)


def state_of_me() -> str:
    """In a Dask task: the state that the supervisor looks at."""
    worker = distributed.get_worker()
    return str(worker.state.tasks[worker.get_current_task()].state)


def watch_myself(folder: str) -> None:
    """In a Dask task: write down when it is no longer wanted."""
    task = supervisor.Task("topic")
    Path(folder, "begun").touch()
    deadline = time.monotonic() + 60
    while task.wanted() and time.monotonic() < deadline:
        time.sleep(0.02)
    Path(folder, "unwanted").write_text(str(time.monotonic() < deadline))


async def test_the_internals_of_distributed_that_tell_a_cancelled_task_are_as_we_know_them(tmp_path):
    options = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    async with (
        LocalCluster(**options, asynchronous=True, protocol="inproc") as local,
        distributed.Client(local, asynchronous=True) as client,
    ):
        assert await client.submit(state_of_me) == "executing"
        future = client.submit(watch_myself, str(tmp_path), pure=False)
        for _ in range(500):
            if (tmp_path / "begun").exists():
                break
            await asyncio.sleep(0.02)
        await future.cancel()
        for _ in range(100):
            if (tmp_path / "unwanted").exists():
                break
            await asyncio.sleep(0.05)

    assert (tmp_path / "unwanted").read_text() == "True"


@pytest.mark.parametrize(("slept", "left"), [(True, 1), (False, 0)], ids=["it has slept", "it was awake"])
async def test_a_scheduler_takes_no_silent_worker_for_dead_when_it_has_slept_itself(slept, left):
    """A worker that has not been heard of for ten minutes, by a scheduler that gives it one."""
    options = {"protocol": "inproc://", "dashboard_address": None, "dashboard": False, "worker_ttl": 60}
    async with (
        cluster.LightSleeper(**options) as scheduler,
        distributed.Worker(scheduler.address, nthreads=1, dashboard=False),
    ):
        ten_minutes_ago = time.time() - 600
        scheduler.notice_sleep()
        if slept:
            scheduler._looked = ten_minutes_ago
        next(iter(scheduler.workers.values())).last_seen = ten_minutes_ago

        await scheduler.check_worker_ttl()

        assert len(scheduler.workers) == left


@pytest.mark.parametrize("process", ["workers.connect", "workers.takeover", "workers.devices"])
def test_control_side_modules_do_not_load_dask(process):
    code = f"import sys, {process}; sys.exit('distributed' in sys.modules or 'dask' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=engine.environment(), check=True)


def test_dask_processes_load_neither_temporal_nor_the_store():
    code = "import sys, workers.cluster, activities.jobs.supervisor; heavy = {'temporalio', 'sqlalchemy', 'pydantic'}"
    code += "; sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", code], env=engine.environment(), check=True)


def test_the_compute_worker_loads_nothing_heavy():
    code = "import sys, workers.compute, workers.cluster; "
    code += "heavy = {'pandas', 'sklearn', 'lightgbm', 'onnx', 'evidently', 'torch'}"
    code += "; sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", code], env=engine.environment(), check=True)


def test_a_process_ends_with_its_parent(tmp_path):
    """The parent starts it and is killed at once."""
    code = textwrap.dedent(f"""
        import subprocess, sys, time
        inner = "import time; from workers import process; process.die_with_parent(); print(1, flush=True)"
        inner += "; time.sleep(60)"
        p = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE)
        p.stdout.readline()
        open({str(tmp_path / "pid")!r}, "w").write(str(p.pid))
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], env=engine.environment())
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    pid = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.02)

    assert not Path(f"/proc/{pid}").exists()


def test_the_warm_process_ends_with_its_dask_worker_even_while_it_loads():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "activities.jobs.warm", "activities.compute", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=engine.environment())
    theirs.close()
    loading = f"/proc/{process.pid}/maps"
    while "numpy" not in Path(loading).read_text():
        time.sleep(0.01)  # it has begun to load, which goes on for seconds

    ours.close()

    assert process.wait(60) == 0
