"""`make proof-lease-kills`: 100 lifecycles of several sizes on 4 devices of two cores, kill -9 of each process in turn.

With --gpus the trainings take fractions of 4 simulated GPUs instead, by share and by memory.
By the jobs' own records no device is used beyond what it has at any moment, and nothing is left behind.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from everloop import settings as configuration
from everloop import stack
from tests.conftest import free_port_base
from tests.faults import leases_harness as harness
from tests.faults.test_kill_each_stage import up, write_table

PATIENCE_SECONDS = 120.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lifecycles", type=int, default=100)
    parser.add_argument("--kills", type=int, default=3 * len(harness.PROCESSES))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--gpus", action="store_true", help="fractions of 4 simulated GPUs, instead of cores")
    asked = parser.parse_args()
    if asked.gpus:
        os.environ |= {"EVERLOOP_DEVICES": "sim:4x16000", "EVERLOOP_SLOT_CORES": "1", "EVERLOOP_SLOTS": ""}
    has = (4, 1000, 16_000) if asked.gpus else (2,)
    with tempfile.TemporaryDirectory(prefix="everloop-leases-") as folder:
        here = configuration.load(data_dir=Path(folder) / "data", port_base=free_port_base())
        records, table = Path(folder) / "records", write_table(Path(folder), random.Random(asked.seed))
        began = time.monotonic()
        up(here)
        try:
            sizes = {"lifecycles": asked.lifecycles, "kills": asked.kills, "seed": asked.seed, "gpus": asked.gpus}
            harness.run(here, table, records, **sizes)
            left = _left(here)
        finally:
            stack.down(here)
        over = harness.overlaps(records, *has)
        ran = len(harness.spans(records))
        print(
            f"seed {asked.seed}: {asked.lifecycles} lifecycles, {ran} jobs, {asked.kills} kills in "
            f"{time.monotonic() - began:.0f} s: {len(over)} overlaps, {len(left)} leaks"
        )
        print(*over, *left, sep="\n")
        return int(bool(over or left))


def _left(here: configuration.Settings) -> list[str]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (left := harness.leaks(here)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


if __name__ == "__main__":
    sys.exit(main())
