"""What a trial of a search costs beside its fit: asking, the job, what is written down, the workflow.

The whole stack on a small table, where a fit takes some hundredths of a second: the time from a search's first trial
to its last, less what the fits took, by trial; one at a time, and four at once. A search before each warms what the
jobs are forked from.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from sqlmodel import col, select

from bench.figures import said
from everloop import settings as configuration
from everloop import stack
from everloop.client import Client
from everloop.store import Store, StudyRow, TrialRow
from tests.conftest import free_port_base
from tests.loop.test_stack import Launcher

LIMITS = {1: 120.0, 4: 40.0}
"""Milliseconds of a trial, by how many run at once."""


def table(folder: Path) -> Path:
    numbers = random.Random(0)
    rows = ["age,plan,left"]
    for _ in range(400):
        age, plan = numbers.randint(18, 80), numbers.choice(["basic", "gold"])
        rows.append(f"{age},{plan},{int(age + (20 if plan == 'basic' else 0) + numbers.gauss(0, 10) > 60)}")
    path = folder / "churn.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def searched(client: Client, store: Store, path: Path, key: str, parallel: int, trials: int) -> float:  # noqa: PLR0917
    """Milliseconds of a trial beside its fit."""
    spec = {
        "model": key,
        "task": "binary",
        "target": "left",
        "source": {"path": str(path)},
        "monitor": None,
        "until": "train",
        "validation": {"method": "holdout"},
        "search": {
            "budget": {"trials": trials},
            "families": ["lightgbm"],
            "parallel": parallel,
            "pruner": "none",
        },
        "training": {"rounds": 20},
    }
    client.submit(spec, key=key)
    while client.show(key)["status"] == "running":
        time.sleep(0.2)
    with store.read() as session:
        study = session.exec(select(StudyRow).where(StudyRow.lifecycle == key)).one()
        found = session.exec(select(TrialRow).where(TrialRow.study == study.id).order_by(col(TrialRow.at))).all()
    assert len(found) == trials, len(found)
    begun = [row for row in found if row.at > found[0].at]
    wall = (found[-1].at - found[0].at).total_seconds()
    fits = sum(row.seconds for row in begun)
    print(f"{parallel} at once: {len(begun)} trials in {wall:.2f} s, {fits:.2f} s of it fits", flush=True)
    return 1000 * (wall - fits / parallel) / len(begun)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--at-once", type=int, nargs="*", default=sorted(LIMITS))
    asked = parser.parse_args()
    os.environ["EVERLOOP_SLOTS"] = str(max(asked.at_once) + 1)
    met = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here = configuration.load(data_dir=folder / "data", port_base=free_port_base())
        Launcher(here).ready()
        store = Store(here.database)
        try:
            with Client(data_dir=here.data_dir) as client:
                path = table(folder)
                for parallel in asked.at_once:
                    searched(client, store, path, f"warm-{parallel}", parallel, 4 * parallel)
                    taken = searched(client, store, path, f"search-{parallel}", parallel, asked.trials)
                    met.append(said(f"trial_overhead_ms_at_{parallel}", taken, LIMITS.get(parallel, 120.0)))
        finally:
            store.close()
            stack.down(here)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
