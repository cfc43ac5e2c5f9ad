"""The proof that a machine may sleep: `make proof-sleep [MINUTES=10] [RUNS=3] [SEED=0] [PLANT=1..3]`.

Each run puts a whole stack to sleep at a random moment of a training, for MINUTES, and wakes its processes in a
random order. It is written to docs/proof/sleep.csv, and a run that stands there is not made again. PLANT runs a copy
of the sources with a fault in it: the proof must then fail.
"""

import argparse
import csv
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.figures import append
from everloop import engine, stack
from everloop import settings as configuration
from everloop.client import Client
from everloop.errors import EverloopError
from everloop.store import Store
from tests.conftest import free_port_base
from tests.faults.sleeping import SLACK_SECONDS, Launcher, Slept, sleep_while_training, write_table

TABLE = Path(__file__).parent.parent / "docs" / "proof" / "sleep.csv"
COPIED = ("everloop", "workflows", "activities", "api", "workers", "temporal-dev", "examples")
EARLY, LATE, PLANTED = (100_000, 1.0, 25.0), (800_000, 40.0, 75.0), (60_000, 1.0, 3.0)
"""Rows of the table, and the earliest and latest moment of the training at which it falls asleep, in seconds. The
first run sleeps before a checkpoint is due, so that all depends on the one that is made on notice; the others when a
whole interval between two checkpoints is behind them."""

PLANTS: dict[int, tuple[str, tuple[tuple[str, str, str], ...]]] = {
    1: (
        "a lease is over when the clock says so, whether or not its holder lives",
        (("activities/lease.py", "elif await self._lives(row.workflow_id, row.run_id):", "elif False:"),),
    ),
    2: (
        "a lost heartbeat is a person's matter",
        (
            (
                "workflows/stage.py",
                'non_retryable_error_types=["LeaseLost", "StorageLow"],  # waits',
                'maximum_attempts=1, non_retryable_error_types=["LeaseLost", "StorageLow"],  # waits',
            ),
        ),
    ),
    3: (
        "no fence: a job that is not wanted any more goes on, and its slot's lock keeps nobody out",
        (
            (
                "activities/jobs/slot.py",
                "        lost = time.monotonic() + LOST_SECONDS\n        while not _locked(lock.fileno()):",
                "        lost = 0.0\n        while False:",
            ),
            (
                "activities/jobs/supervisor.py",
                "            _end(life, _farewell(task.key))",
                "            return REAPER_KILLED",
            ),
            ("activities/jobs/supervisor.py", "if code == REAPER_KILLED:  # whatever", "if False:  # whatever"),
            ("activities/jobs/supervisor.py", "        os.close(life_w)  # whatever", "        pass  # whatever"),
            ("activities/jobs/supervisor.py", "        while os.read(status_r, 64):", "        while False:"),
            (
                "activities/jobs/supervisor.py",
                "        slot.end_orphans()\n        shutil",
                "        shutil",
            ),
        ),
    ),
}


def main() -> int:
    """0 when every run is as it should be; with a planted fault, 1 when it was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", type=int, choices=sorted(PLANTS), default=None)
    given = parser.parse_args()
    done = {(row["seed"], row["run"], row["minutes"]) for row in _rows()} if given.plant is None else set()
    wrong = 0
    for run in range(given.runs):
        if (str(given.seed), str(run), f"{given.minutes:g}") in done:
            print(f"run {run}: stands in {TABLE.name}")
            continue
        slept, faults = _one(given.seed, run, given.minutes, given.plant)
        print(f"run {run}: {'; '.join(faults) or 'as it should be'} {slept or ''}", flush=True)
        wrong += bool(faults)
        if given.plant is None and slept is not None:
            _write(given.seed, run, slept, faults)
    if given.plant is not None:
        print(f"planted: {PLANTS[given.plant][0]}; {'seen' if wrong else 'NOT SEEN'}")
    return 1 if wrong else 0


def _one(seed: int, run: int, minutes: float, plant: int | None) -> tuple[Slept | None, list[str]]:
    numbers = random.Random(f"{seed} {run}")
    rows, earliest, latest = PLANTED if plant is not None else LATE if run else EARLY
    folder = Path(tempfile.mkdtemp(prefix="everloop-sleep-"))
    here = configuration.load(data_dir=folder / "data", port_base=free_port_base())
    source = None if plant is None else _planted(folder / "source", plant)
    launcher = Launcher(here, source)
    try:
        launcher.ready()
        store = Store(here.database)
        with Client(data_dir=here.data_dir) as client:
            slept = sleep_while_training(
                launcher, client, store, write_table(folder, rows), "asleep",
                minutes=minutes, at_seconds=numbers.uniform(earliest, latest), numbers=numbers,
            )  # fmt: skip
        store.close()
    except (AssertionError, EverloopError) as error:  # it never trained again, or never came to the gate
        return None, [str(error)]
    else:
        return slept, [*slept.faults(), *_too_early(slept, earliest)]
    finally:
        stack.down(here)
        time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)


def _too_early(slept: Slept, earliest: float) -> list[str]:
    """A training that came near its end before the moment was due proves nothing."""
    if slept.trained_seconds >= earliest - SLACK_SECONDS:
        return []
    return [f"it slept after {slept.trained_seconds:.0f} s of training, not after {earliest:.0f} s: take more rows"]


def _planted(folder: Path, plant: int) -> Path:
    """A copy of the sources with the fault in it."""
    for name in COPIED:
        shutil.copytree(engine.source() / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, before, after in PLANTS[plant][1]:
        path = folder / file
        text = path.read_text()
        assert text.count(before) == 1, f"plant {plant} does not fit {file} any more: {before!r}"
        path.write_text(text.replace(before, after))
    return folder


def _rows() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with TABLE.open() as file:
        return list(csv.DictReader(file))


def _write(seed: int, run: int, slept: Slept, faults: list[str]) -> None:
    measured: dict[str, Any] = asdict(slept) | {"failures": len(slept.failures), "overlaps": len(slept.overlaps)}
    measured = {name: f"{value:g}" if isinstance(value, float) else value for name, value in measured.items()}
    row = {"seed": seed, "run": run, **measured, "faults": "; ".join(faults), "on": f"{datetime.now(UTC):%Y-%m-%d}"}
    append(TABLE, row)


if __name__ == "__main__":
    sys.exit(main())
