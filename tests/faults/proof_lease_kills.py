"""`make proof-lease-kills`: 100 lifecycles of several sizes on 4 devices of two cores, kill -9 of each process in turn,
Temporal itself among them.

A training lasts 5 to 15 s. The kills are spread over the run, each while a training writes its record, and every other
one is of the slot that runs it: if no training had to begin again, nothing is shown, and this ends with 1.
With --gpus the trainings take fractions of 4 simulated GPUs instead, by share and by memory.
By the jobs' own records no device is used beyond what it has at any moment, and nothing is left behind.
A line goes to docs/proof/lease_kills.csv, or fraction_kills.csv. PLANT=1, 2 puts a fault into the stack (it gives twice
what a device has; the first two leases stay counted when they are given back): it then ends with 1 and leaves no line.
"""

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from everloop import settings as configuration
from everloop import stack
from tests.conftest import free_port_base
from tests.faults import leases_harness as harness
from tests.faults.test_kill_each_stage import up, write_table

PATIENCE_SECONDS = 120.0
LASTING = (5.0, 15.0)
OTHERS = ("compute", "control", "scheduler", "api", "serve", harness.TEMPORAL)
TABLE = Path(__file__).parents[2] / "docs" / "proof" / "lease_kills.csv"
KEPT = """
try:
    from activities.lease_ledger import capacity
except ImportError:  # a process that is not of the stack
    pass
else:
    right = capacity.give_back
    capacity.give_back = lambda session, row, *rest: None if row.token <= 2 else right(session, row, *rest)
"""
"""Read by every Python process at its start, as `sitecustomize`."""
HEADER = ["at", "commit", "seed", "lifecycles", "jobs", "kills", "seconds", "overlaps", "leaks"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lifecycles", type=int, default=100)
    processes = [each for other in OTHERS for each in (harness.BUSY_SLOT, other)]
    parser.add_argument("--kills", type=int, default=2 * len(processes))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--gpus", action="store_true", help="fractions of 4 simulated GPUs, instead of cores")
    asked = parser.parse_args()
    plant = os.environ.get("PLANT", "")
    if asked.gpus:
        os.environ |= {"EVERLOOP_DEVICES": "sim:4x16000", "EVERLOOP_SLOT_CORES": "1", "EVERLOOP_SLOTS": ""}
    has = (4, 1000, 16_000) if asked.gpus else (2,)
    with tempfile.TemporaryDirectory(prefix="everloop-leases-") as folder:
        here = configuration.load(data_dir=Path(folder) / "data", port_base=free_port_base())
        records, table = Path(folder) / "records", write_table(Path(folder), random.Random(asked.seed))
        planted(plant, Path(folder))
        began = time.monotonic()
        up(here)
        try:
            harness.run(
                here, table, records, lifecycles=asked.lifecycles, kills=asked.kills, seed=asked.seed,
                processes=processes, pause=None, lasting=LASTING, gpus=asked.gpus,
            )  # fmt: skip
            left = _left(here, 10.0 if plant else PATIENCE_SECONDS)
        finally:
            stack.down(here)
        over = harness.overlaps(records, *has)
        ran = len(harness.spans(records))
        print(
            f"seed {asked.seed}: {asked.lifecycles} lifecycles, {ran} trainings, {asked.kills} kills in "
            f"{time.monotonic() - began:.0f} s: {len(over)} overlaps, {len(left)} leaks"
        )
        print(*over, *left, sep="\n")
        if not plant:
            _write(asked, ran, time.monotonic() - began, len(over), len(left))
        if ran <= asked.lifecycles:
            print("no training had to begin again: the kills have met none")
        return int(bool(over or left or ran <= asked.lifecycles))


def planted(plant: str, folder: Path) -> None:
    """A fault in the stack that is started after this."""
    if plant == "1":
        devices = os.environ.get("EVERLOOP_DEVICES", "").replace("16000", "32000")
        os.environ |= {"EVERLOOP_SLOT_CORES": "4", "EVERLOOP_DEVICES": devices}
    if plant == "2":
        (folder / "planted").mkdir()
        (folder / "planted" / "sitecustomize.py").write_text(KEPT)
        os.environ["PYTHONPATH"] = str(folder / "planted")


def _write(asked: argparse.Namespace, ran: int, seconds: float, over: int, left: int) -> None:
    """A line in the table of what was proven."""
    git = ["git", "-C", str(TABLE.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    at = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    row = [at, commit, asked.seed, asked.lifecycles, ran, asked.kills, round(seconds), over, left]
    path = TABLE.with_name("fraction_kills.csv") if asked.gpus else TABLE
    new = not path.exists()
    with path.open("a", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows(([HEADER] if new else []) + [row])


def _left(here: configuration.Settings, seconds: float) -> list[str]:
    deadline = time.monotonic() + seconds
    while (left := harness.leaks(here)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


if __name__ == "__main__":
    sys.exit(main())
