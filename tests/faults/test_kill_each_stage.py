"""kill -9 of everything at a random moment in each stage of one lifecycle; each time `up` goes on with it."""

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

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
LIFECYCLE = "killed-everywhere"
STAGE_SECONDS = 60


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Settings]:
    made = configuration.load(data_dir=tmp_path / "data", port_base=free_port_base())
    yield made
    stack.down(made)


def write_table(folder: Path, numbers: random.Random) -> Path:
    rows = ["age,plan,spend,since,left"]
    for _ in range(4000):
        age, plan, spend = numbers.randint(18, 80), numbers.choice(["basic", "gold", "team"]), numbers.expovariate(0.1)
        left = int(age + 20 * (plan == "basic") - spend + numbers.gauss(0, 10) > 55)
        since = f"2026-{numbers.randint(1, 9):02d}-{numbers.randint(1, 28):02d}T{numbers.randint(0, 23):02d}:00:00Z"
        rows.append(f"{age},{plan},{spend:.2f},{since},{left}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    spec = folder / "table.yaml"
    spec.write_text("model: table\ntask: binary\ntarget: left\ntime: since\nsource: {path: table.csv}\n")
    return spec


@pytest.mark.timeout(600)
def test_kill_9_of_everything_in_each_stage_ends_in_the_same_lifecycle_with_each_stage_done_once(
    here: Settings, tmp_path: Path
) -> None:
    print(f"EVERLOOP_TEST_SEED={SEED}")
    numbers = random.Random(SEED)
    spec = write_table(tmp_path, numbers)
    hits: list[str] = []
    launcher = up(here)
    with Client(data_dir=here.data_dir) as client:
        client.submit(spec, LIFECYCLE)
    store = Store(here.database)
    for stage in STAGES:
        if not reached(store, here, stage):
            continue  # the stage was over before it could be seen: a kill in its successor counts for that one
        time.sleep(numbers.uniform(0, 0.4))
        hits.append(row(store).stage)
        launcher.kill_everything()
        launcher = up(here)
    with Client(data_dir=here.data_dir) as client:
        approve_when_asked(store, client)
        client.wait(LIFECYCLE, timeout=STAGE_SECONDS)
        found = client.show(LIFECYCLE)
    verified = everloop(here, "journal", "verify", "--json")

    assert found["status"] == "released", found
    done = [each["stage"] for each in found["stages"] if each["status"] == "done"]
    assert done == list(STAGES)
    assert len(set(hits)) >= len(STAGES) - 3, hits
    assert json.loads(verified.stdout)["differences"] == []
    assert versions(store) == 1
    print(f"killed in {hits}")


def up(here: Settings) -> Launcher:
    launcher = Launcher(here)
    launcher.ready()
    return launcher


def row(store: Store) -> LifecycleRow:
    with store.read() as session:
        return session.get_one(LifecycleRow, LIFECYCLE)


def reached(store: Store, here: Settings, stage: str) -> bool:
    """Wait until *stage* runs. False when it is done already."""
    deadline = time.monotonic() + STAGE_SECONDS
    while time.monotonic() < deadline:
        with store.read() as session:
            known = session.get(LifecycleRow, LIFECYCLE)
            done = select(StageRow).where(
                StageRow.lifecycle == LIFECYCLE, StageRow.stage == stage, StageRow.status == "done"
            )
            if session.exec(done).first() is not None:
                return False
        if known is not None and known.stage == stage:
            return True
        if known is not None and known.status == "waiting_approval":
            with Client(data_dir=here.data_dir) as client:
                approve_when_asked(store, client)
        time.sleep(0.01)
    raise TimeoutError(f"stage {stage} was never reached")


def approve_when_asked(store: Store, client: Client) -> None:
    deadline = time.monotonic() + STAGE_SECONDS
    while row(store).status in ("running", "waiting_approval") and time.monotonic() < deadline:
        if row(store).stage in ("release", "monitor"):
            return
        if row(store).status == "waiting_approval":
            try:
                client.approve(LIFECYCLE)
            except EverloopError as error:
                print(f"approve: {error}")
        time.sleep(0.1)


def versions(store: Store) -> int:
    with store.read() as session:
        return len(session.exec(select(VersionRow)).all())
