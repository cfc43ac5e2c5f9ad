"""kill -9 of everything, in each stage of a lifecycle and inside a training: `up` goes on, and says so to people."""

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from everloop import settings as configuration
from everloop import stack
from everloop.client import Client
from everloop.errors import EverloopError
from everloop.settings import Settings
from everloop.specs import STAGES
from everloop.store import LifecycleRow, StageRow, Store, VersionRow
from tests.conftest import free_port_base
from tests.loop.test_stack import Launcher, everloop

SEED = int(os.environ.get("EVERLOOP_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
STAGE_SECONDS = 60
ROUNDS = 1500
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


@dataclass
class Running:
    """The stack as it runs now."""

    launcher: Launcher


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """One stack for both tests: each kills it again and again."""
    made = configuration.load(data_dir=tmp_path_factory.mktemp("killed") / "data", port_base=free_port_base())
    yield made
    stack.down(made)


@pytest.fixture(scope="module")
def running(here: Settings) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERLOOP_CHECKPOINT_SECONDS", "0.2")
        yield Running(up(here))


@pytest.mark.timeout(900)
def test_kill_9_of_everything_in_each_stage_ends_in_the_same_lifecycle_with_each_stage_done_once(
    here: Settings, running: Running, tmp_path: Path
) -> None:
    print(f"EVERLOOP_TEST_SEED={SEED}")
    numbers = random.Random(SEED)
    table = write_table(tmp_path, numbers)
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
            running.launcher.kill_everything()
            hit = unfinished(store, lifecycle)
            hits.append(hit or "between two stages")
            left = [each for each in left if each != hit]  # `hit` may be a later one than was aimed at
            running.launcher = up(here)
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


@pytest.mark.timeout(400)
def test_kill_9_of_everything_in_a_training_goes_on_from_its_last_checkpoint(
    here: Settings, running: Running, tmp_path: Path
) -> None:
    print(f"EVERLOOP_TEST_SEED={SEED}")
    numbers = random.Random(SEED)
    spec = spec_of(write_table(tmp_path, numbers), "long")
    spec |= {"training": {"rounds": ROUNDS, "early_stopping": 1000, "learning_rate": 0.001, "leaves": 31}}
    spec |= {"params": {"bagging_fraction": 0.8, "feature_fraction": 0.8}}
    store = Store(here.database)
    with Client(data_dir=here.data_dir) as client:
        client.submit(spec, "long")
    deadline = time.monotonic() + 120
    while not checkpoints(here):
        assert time.monotonic() < deadline, row(store, "long")
        time.sleep(0.02)
    time.sleep(numbers.random() * 0.3)
    running.launcher.kill_everything()
    kept = max(int(path.name) for path in checkpoints(here))
    assert row(store, "long").stage == "train"

    running.launcher = up(here)
    with Client(data_dir=here.data_dir) as client:
        train = trained(client)
        log = client.logs("long", "train")
        shown = everloop(here, "show", "long").stdout
        client.cancel("long")

    resumed = train["ran"]["resumed"]
    assert resumed["times"] == 1
    assert 50 <= resumed["step"] <= kept  # the newest may not have been whole
    assert resumed["seconds_again"] < 15
    assert resumed["at"] == f"round {resumed['step']:,} of at most {ROUNDS:,}"
    said = f"resumed at {resumed['at']} from a checkpoint of token {resumed['token']}"
    assert said in train["summary"]
    assert said in " ".join(shown.split())
    assert "work done again" in log
    assert checkpoints(here) == []


def checkpoints(here: Settings) -> list[Path]:
    return list(here.checkpoints_dir.glob("*/training.train/*/[0-9]*/[0-9]*"))


def trained(client: Client) -> dict[str, Any]:
    """The training's stage, once it has ended."""
    deadline = time.monotonic() + 180
    while True:
        (train,) = [stage for stage in client.show("long")["stages"] if stage["stage"] == "train"]
        if train["status"] == "done":
            return dict(train)
        assert time.monotonic() < deadline, train
        time.sleep(0.2)


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
