"""The faults that the proofs plant still fit the sources: a fault that is not planted is seen by nobody."""

import pytest

from bench.sleep import PLANTS
from everloop import engine


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_each_planted_fault_changes_the_sources(plant: int) -> None:
    _, edits = PLANTS[plant]

    for file, before, after in edits:
        assert (engine.source() / file).read_text().count(before) == 1, (file, before)
        assert before != after
