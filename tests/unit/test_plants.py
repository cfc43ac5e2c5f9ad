"""The faults that the proofs plant still fit the sources: a fault that is not planted is seen by nobody."""

import pytest

from bench import sleep
from everloop import engine
from tests.faults import log_harness

PLANTS = {
    f"{name}-{number}": plant
    for name, of in (("sleep", sleep.PLANTS), ("log", log_harness.PLANTS))
    for number, plant in of.items()
}


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_each_planted_fault_changes_the_sources(plant: str) -> None:
    _, edits = PLANTS[plant]

    for file, before, after in edits:
        assert (engine.source() / file).read_text().count(before) == 1, (file, before)
        assert before != after
