"""What the stack costs while nobody uses it: seconds to ready, memory after a minute, and the wait of the next job.

Memory is PSS: what processes share is counted once. It does not change with what else the machine does; the seconds
do, so the load is printed beside them. Exit code 1 when a goal is missed.
"""

import argparse
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

from everloop import settings as configuration
from everloop import stack
from everloop.client import Client
from everloop.settings import Settings
from tests.conftest import free_port_base
from tests.faults.test_kill_each_stage import spec_of, write_table
from tests.loop.test_stack import Launcher

MOST_MB, READY_SECONDS, JOB_SECONDS = 700.0, 6.0, 4.0


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process; 0 when it has ended."""
    try:
        rolled_up = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", rolled_up, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def measured(here: Settings) -> dict[str, float]:
    """MB of each process of the stack, by what it is; the same twice is counted together."""
    launcher = stack.owner(here)
    assert launcher is not None
    found: dict[str, float] = {}
    for process in [launcher, *stack.members(here)]:
        words = process.command.split(" -m ")[-1].split(" --")[0].split("/")[-1].strip()
        found[words] = found.get(words, 0.0) + pss_bytes(process.pid) / 1e6
    return found


def seconds_to_first_job(here: Settings, spec: dict[str, object], key: str) -> float:
    """From a submission to the moment the job's process runs."""
    with Client(data_dir=here.data_dir) as client:
        client.list()  # the connection is there
        started = time.perf_counter()
        client.submit(spec, key)
    while not _runs("data.snapshot"):
        assert time.perf_counter() - started < 120, "the job did not begin"
        time.sleep(0.01)
    return time.perf_counter() - started


def _runs(name: str) -> bool:
    for entry in Path("/proc").glob("[0-9]*/comm"):
        try:
            if entry.read_text().strip() == name[:15]:
                return True
        except OSError:
            continue
    return False


def goal(name: str, value: float, limit: float) -> bool:
    """One line; is the goal met?"""
    met = value <= limit
    print(f"{name} {value:.1f} goal {limit:g} {'met' if met else 'missed'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=float, default=60.0, help="seconds between ready and the measurement")
    idle = parser.parse_args().idle
    with tempfile.TemporaryDirectory() as name:
        here = configuration.load(data_dir=Path(name) / "data", port_base=free_port_base())
        spec = spec_of(write_table(Path(name), random.Random(0)), "bench")
        try:
            started = time.perf_counter()
            Launcher(here).ready()
            ready = time.perf_counter() - started
            load = os.getloadavg()[0]
            time.sleep(idle)
            found = measured(here)
            job = seconds_to_first_job(here, spec, "bench")
        finally:
            stack.down(here)
    for words, mb in sorted(found.items(), key=lambda each: -each[1]):
        print(f"  {mb:7.1f} MB  {words}")
    print(f"  load of the machine {load:.1f} on {os.cpu_count()} cores: the seconds below are with it")
    met = [
        goal("ready_seconds", ready, READY_SECONDS),
        goal("idle_pss_mb", sum(found.values()), MOST_MB),
        goal("first_job_after_idle_seconds", job, JOB_SECONDS),
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
