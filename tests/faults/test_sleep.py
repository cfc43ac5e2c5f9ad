"""The machine sleeps: every process of the stack is stopped in the middle of a training, and goes on later."""

import os
import random
from pathlib import Path

import pytest

from everloop.client import Client
from everloop.settings import Settings
from everloop.store import Store
from tests.faults.sleeping import Launcher, sleep_while_training, write_table

SEED = int(os.environ.get("EVERLOOP_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


@pytest.mark.timeout(600)
def test_after_33_seconds_of_sleep_the_same_lifecycle_goes_on_without_a_person(here: Settings, tmp_path: Path) -> None:
    print(f"EVERLOOP_TEST_SEED={SEED}")
    launcher = Launcher(here)
    launcher.ready()
    store = Store(here.database)
    with Client(data_dir=here.data_dir) as client:
        slept = sleep_while_training(
            launcher, client, store, write_table(tmp_path), "asleep",
            minutes=0.55, at_seconds=2, numbers=random.Random(SEED), until="train",
        )  # fmt: skip
    store.close()

    assert slept.faults("done") == []
