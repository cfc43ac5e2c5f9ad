"""How long `up` takes, and how soon after kill -9 of everything a lifecycle makes progress again.

Each round: up on an empty folder, a lifecycle into its training, kill -9 of everything, up again, and the
seconds from "ready" to the next journal event. Beside it: what importing the heavy libraries costs here.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import func
from sqlmodel import select

from everloop import settings as configuration
from everloop import stack
from everloop.client import Client
from everloop.store import JournalRow, LifecycleRow, Store
from tests.conftest import free_port_base
from tests.faults.test_kill_each_stage import spec_of, write_table
from tests.loop.test_stack import Launcher

STAGES = ("snapshot", "prepare", "train", "evaluate", "refit", "export")


def events(store: Store) -> int:
    with store.read() as session:
        return session.exec(select(func.count()).select_from(JournalRow)).one()


def stage(store: Store) -> str:
    with store.read() as session:
        row = session.get(LifecycleRow, "bench")
        return row.stage if row else ""


def one_round(number: int) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here = configuration.load(data_dir=folder / "data", port_base=free_port_base())
        spec = spec_of(write_table(folder, random.Random(number)), "bench")
        first = seconds_to_ready(launcher := Launcher(here))
        with Client(data_dir=here.data_dir) as client:
            client.submit(spec, "bench")
        store = Store(here.database)
        while stage(store) not in STAGES[number % len(STAGES) :]:
            time.sleep(0.01)
        launcher.kill_everything()
        before = events(store)
        again = seconds_to_ready(Launcher(here))
        ready = time.perf_counter()
        while events(store) == before:
            time.sleep(0.01)
        progress = time.perf_counter() - ready
        stack.down(here)
        return first, again, progress


def seconds_to_ready(launcher: Launcher) -> float:
    started = time.perf_counter()
    launcher.ready()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import lightgbm, pandas, onnxruntime, evidently"], check=True)
    print(f"import of the heavy libraries          {time.perf_counter() - started:6.1f} s")
    rounds = [one_round(number) for number in range(parser.parse_args().rounds)]
    for name, values in zip(
        ("up on an empty folder", "up after kill -9", "from ready to progress"), zip(*rounds, strict=True), strict=True
    ):
        print(f"{name:38} {statistics.median(values):6.1f} s (max {max(values):.1f})     goal: at most 10")


if __name__ == "__main__":
    main()
