"""What the stack costs while nobody uses it: seconds to ready, memory after a minute, and the wait of the next job.

Memory is PSS: what processes share is counted once. It does not change with what else the machine does; the seconds
do, so the load is printed beside them. Exit code 1 when a goal is missed.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from bench.figures import memory_mib, said
from everloop import settings as configuration
from everloop import stack
from everloop.client import Client
from everloop.settings import Settings
from tests.conftest import free_port_base
from tests.faults.test_kill_each_stage import spec_of, write_table
from tests.loop.test_stack import Launcher

MOST_MB, READY_SECONDS, JOB_SECONDS = 700.0, 6.0, 4.0


def measured(here: Settings) -> dict[str, float]:
    """MB of each process of the stack, by what it is; the same twice is counted together."""
    launcher = stack.owner(here)
    assert launcher is not None
    found: dict[str, float] = {}
    for process in [launcher, *stack.members(here)]:
        words = process.command.split(" -m ")[-1].split(" --")[0].split("/")[-1].strip()
        with contextlib.suppress(OSError, KeyError):  # it has ended meanwhile
            found[words] = found.get(words, 0.0) + memory_mib(process.pid)[1] * 1.048576
    return found


def processor_seconds(here: Settings) -> float:
    """What the stack has used since its start; that of ended processes is their parents'."""
    launcher, ticks = stack.owner(here), 0
    for process in [*filter(None, [launcher]), *stack.members(here)]:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


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
            load, busy = os.getloadavg()[0], processor_seconds(here)
            time.sleep(idle)
            found = measured(here)
            job = seconds_to_first_job(here, spec, "bench")
        finally:
            stack.down(here)
    for words, mb in sorted(found.items(), key=lambda each: -each[1]):
        print(f"  {mb:7.1f} MB  {words}")
    print(f"  load of the machine {load:.1f} on {os.cpu_count()} cores: the seconds below are with it")
    print(f"  {busy:.1f} s of processor time until ready, which do not change with it")
    met = [
        said("ready_seconds", ready, READY_SECONDS),
        said("idle_pss_mb", sum(found.values()), MOST_MB),
        said("first_job_after_idle_seconds", job, JOB_SECONDS),
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
