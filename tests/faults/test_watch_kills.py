"""Five kills of `make proof-watch`: one retraining for a window, whoever dies."""

import asyncio
from pathlib import Path

from tests.faults import proof_watch
from tests.faults.watch_harness import PROCESSES

SEED, KILLS = 298, 5


def test_one_lifecycle_never_two_never_none(tmp_path: Path) -> None:
    seen = asyncio.run(proof_watch.run(tmp_path, KILLS, SEED))

    assert [one.wrong for one in seen] == [[]] * KILLS
    assert {one.process for one in seen} == set(PROCESSES)
    assert sum(one.hit for one in seen) >= KILLS - 1
