"""A search on the whole stack: kill -9 of everything in its middle changes nothing that it finds."""

import pytest

from everloop.settings import Settings
from tests.faults.searching import run, suggestions, wrong_with


@pytest.mark.timeout(600)
def test_after_kill_9_of_everything_a_search_makes_the_same_suggestions_and_loses_none(here: Settings) -> None:
    found = run(here, trials=40, kill_at=7, parallel=1)

    assert found.told < 40, "it was over before it was killed"
    assert suggestions(found.killed) == suggestions(found.whole)
    assert wrong_with(found.killed, here, 40) == []
    assert found.jobs_again <= 1 and found.told_again == []  # only what was in flight
