"""kill -9 of everything at a random moment in each stage of one lifecycle; each time `up` goes on with it."""

import json
import os
import random
import time
from pathlib import Path

import pytest
from sqlmodel import select

from everloop.client import Client
from everloop.errors import EverloopError
from everloop.settings import Settings
from everloop.specs import STAGES
from everloop.store import LifecycleRow, StageRow, Store, VersionRow
from tests.loop.test_stack import Launcher, everloop

SEED = int(os.environ.get("EVERLOOP_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
STAGE_SECONDS = 60
LIFECYCLES = 8
"""A stage that was over before the kill came is killed in the next lifecycle; each hits most of what is left."""


def write_table(folder: Path, numbers: random.Random) -> Path:
    rows = ["age,plan,spend,since,left"]
    for _ in range(4000):
        age, plan, spend = numbers.randint(18, 80), numbers.choice(["basic", "gold", "team"]), numbers.expovariate(0.1)
        left = int(age + 20 * (plan == "basic") - spend + numbers.gauss(0, 10) > 55)
        since = f"2026-{numbers.randint(1, 9):02d}-{numbers.randint(1, 28):02d}T{numbers.randint(0, 23):02d}:00:00Z"
        rows.append(f"{age},{plan},{spend:.2f},{since},{left}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


def spec_of(table: Path, model: str) -> dict[str, object]:
    source = {"path": str(table)}
    return {"model": model, "task": "binary", "target": "left", "time": "since", "source": source}


@pytest.mark.timeout(900)
def test_kill_9_of_everything_in_each_stage_ends_in_the_same_lifecycle_with_each_stage_done_once(
    here: Settings, tmp_path: Path
) -> None:
    print(f"EVERLOOP_TEST_SEED={SEED}")
    numbers = random.Random(SEED)
    table = write_table(tmp_path, numbers)
    launcher = up(here)
    store = Store(here.database)
    submit(here, table, "unhurt")
    to_the_end(store, here, "unhurt")
    usual = seconds_of(store, "unhurt")
    left, hits = list(STAGES), []
    lifecycles = []
    while left:
        assert len(lifecycles) < LIFECYCLES, (left, hits)
        lifecycle = f"killed-{len(lifecycles) + 1}"
        lifecycles.append(lifecycle)
        submit(here, table, lifecycle)
        for stage in list(left):
            if not reached(store, here, lifecycle, stage):
                continue
            time.sleep(numbers.uniform(0, usual[stage]))
            launcher.kill_everything()
            hit = unfinished(store, lifecycle)
            hits.append(hit or "between two stages")
            left = [each for each in left if each != hit]  # `hit` may be a later one than was aimed at
            launcher = up(here)
        to_the_end(store, here, lifecycle)
        took = seconds_of(store, lifecycle)  # the first job of all took longer than the later ones will
        usual = {stage: min(seconds, took.get(stage, seconds)) * 0.8 for stage, seconds in usual.items()}

    for lifecycle in lifecycles:
        with Client(data_dir=here.data_dir) as client:
            found = client.show(lifecycle)
        assert found["status"] == "released", found
        assert [each["stage"] for each in found["stages"] if each["status"] == "done"] == list(STAGES)
    assert versions(store) == 1 + len(lifecycles)
    assert json.loads(everloop(here, "journal", "verify", "--json").stdout)["differences"] == []
    print(f"killed in {hits}")


def submit(here: Settings, table: Path, lifecycle: str) -> None:
    """A model of its own: the second lifecycle of a model would have to beat the first."""
    with Client(data_dir=here.data_dir) as client:
        client.submit(spec_of(table, lifecycle), lifecycle)


def to_the_end(store: Store, here: Settings, lifecycle: str) -> None:
    with Client(data_dir=here.data_dir) as client:
        client.wait(lifecycle, until="gate", timeout=STAGE_SECONDS)
        approve_when_asked(store, client, lifecycle)
        client.wait(lifecycle, timeout=STAGE_SECONDS)


def seconds_of(store: Store, lifecycle: str) -> dict[str, float]:
    with store.read() as session:
        rows = session.exec(select(StageRow).where(StageRow.lifecycle == lifecycle)).all()
    return {row.stage: (row.ended_at - row.started_at).total_seconds() for row in rows if row.ended_at}


def unfinished(store: Store, lifecycle: str) -> str:
    """The stage that the journal holds the start of, and no end."""
    with store.read() as session:
        running = select(StageRow).where(StageRow.lifecycle == lifecycle, StageRow.status == "running")
        found = session.exec(running).first()
        return found.stage if found else ""


def up(here: Settings) -> Launcher:
    launcher = Launcher(here)
    launcher.ready()
    return launcher


def row(store: Store, lifecycle: str) -> LifecycleRow:
    with store.read() as session:
        return session.get_one(LifecycleRow, lifecycle)


def reached(store: Store, here: Settings, lifecycle: str, stage: str) -> bool:
    """Wait until *stage* runs. False when it is done already."""
    deadline = time.monotonic() + STAGE_SECONDS
    while time.monotonic() < deadline:
        with store.read() as session:
            known = session.get(LifecycleRow, lifecycle)
            done = select(StageRow).where(
                StageRow.lifecycle == lifecycle, StageRow.stage == stage, StageRow.status == "done"
            )
            if session.exec(done).first() is not None:
                return False
        if known is not None and known.stage == stage:
            return True
        if known is not None and known.status == "waiting_approval":
            with Client(data_dir=here.data_dir) as client:
                approve_when_asked(store, client, lifecycle)
        time.sleep(0.005)
    raise TimeoutError(f"stage {stage} was never reached")


def approve_when_asked(store: Store, client: Client, lifecycle: str) -> None:
    deadline = time.monotonic() + STAGE_SECONDS
    while (now := row(store, lifecycle)).status in ("running", "waiting_approval") and time.monotonic() < deadline:
        if now.stage in ("release", "monitor"):
            return
        if now.status == "waiting_approval":
            try:
                client.approve(lifecycle)
            except EverloopError as error:
                print(f"approve: {error}")
        time.sleep(0.005)


def versions(store: Store) -> int:
    with store.read() as session:
        return len(session.exec(select(VersionRow)).all())
