"""kill -9 of the whole stack in the middle of a training: `up` goes on inside it, and says so where people look."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from everloop.client import Client
from everloop.settings import Settings
from everloop.store import Store
from tests.faults.test_kill_each_stage import SEED, row, spec_of, up, write_table
from tests.loop.test_stack import everloop

ROUNDS = 1500


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


@pytest.mark.timeout(400)
def test_kill_9_of_everything_in_a_training_goes_on_from_its_last_checkpoint(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"EVERLOOP_TEST_SEED={SEED}")
    numbers = random.Random(SEED)
    monkeypatch.setenv("EVERLOOP_CHECKPOINT_SECONDS", "0.2")
    spec = spec_of(write_table(tmp_path, numbers), "long")
    spec |= {"training": {"rounds": ROUNDS, "early_stopping": 1000, "learning_rate": 0.001, "leaves": 31}}
    spec |= {"params": {"bagging_fraction": 0.8, "feature_fraction": 0.8}}
    launcher = up(here)
    store = Store(here.database)
    with Client(data_dir=here.data_dir) as client:
        client.submit(spec, "long")
    deadline = time.monotonic() + 120
    while not checkpoints(here):
        assert time.monotonic() < deadline, row(store, "long")
        time.sleep(0.02)
    time.sleep(numbers.random() * 0.3)
    launcher.kill_everything()
    kept = max(int(path.name) for path in checkpoints(here))
    assert row(store, "long").stage == "train"

    up(here)
    with Client(data_dir=here.data_dir) as client:
        train = trained(client)
        log = client.logs("long", "train")
        shown = everloop(here, "show", "long").stdout
        client.cancel("long")

    resumed = train["ran"]["resumed"]
    assert resumed["times"] == 1
    assert 50 <= resumed["step"] <= kept  # the newest may not have been whole
    assert resumed["seconds_again"] < 5
    assert resumed["at"] == f"round {resumed['step']:,} of at most {ROUNDS:,}"
    said = f"resumed at {resumed['at']} from a checkpoint of token {resumed['token']}"
    assert said in train["summary"]
    assert said in " ".join(shown.split())
    assert "work done again" in log
    assert checkpoints(here) == []
