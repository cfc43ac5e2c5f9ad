"""A device that is lost for good while a job runs on it: the job goes on on another one."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from sqlmodel import col, select

from everloop import stack
from everloop.client import Client
from everloop.settings import Settings
from everloop.store import LeaseRow, Store
from tests.faults.test_kill_each_stage import spec_of, write_table
from tests.loop.test_stack import Launcher, everloop

T = TypeVar("T")
JOB = "features.prepare"


def eventually(look: Callable[[], T | None], seconds: float) -> T:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return found


def job_on(here: Settings, device: str) -> int | None:
    """The pid of the job that runs on *device*."""
    mark = f"EVERLOOP_SLOT={here.scratch_dir}/{device}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            named = (entry / "comm").read_text().strip() == JOB[:15]
            if named and mark in (entry / "environ").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            continue
    return None


@pytest.mark.timeout(300)
def test_a_job_whose_device_is_lost_goes_on_on_another_one(here, tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLOOP_SLOTS", "3")
    monkeypatch.setenv("EVERLOOP_AWAY_SECONDS", "6")  # less than a person waits, more than a slot takes to come back
    Launcher(here).ready()
    slot = next(each.pid for each in stack.members(here) if each.command.endswith("slot cpu0") and _children(each.pid))
    with Client(data_dir=here.data_dir) as client:
        client.submit(spec_of(write_table(tmp_path, random.Random(0)), "lost") | {"until": "prepare"}, "lost")
        job = eventually(lambda: job_on(here, "cpu0"), 60)
        os.kill(job, signal.SIGSTOP)  # it has not ended when its device goes
        os.kill(slot, signal.SIGSTOP)  # nobody starts the Dask worker again
        os.kill(_children(slot)[0], signal.SIGKILL)
        try:
            began = time.monotonic()
            found = client.wait("lost", until="gate", timeout=150)
        finally:
            os.kill(slot, signal.SIGCONT)

    assert found["status"] == "done", found
    assert stack.start_time(job) == 0
    store = Store(here.database)
    with store.read() as session:
        leases = session.exec(select(LeaseRow).order_by(col(LeaseRow.token))).all()
    store.close()
    assert [(lease.device, lease.state) for lease in leases] == [("cpu0", "fenced"), ("cpu1", "released")]
    print(f"prepared {time.monotonic() - began:.0f} s after the loss")
    assert everloop(here, "journal", "verify").returncode == 0


def _children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]
