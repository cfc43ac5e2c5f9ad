"""A window over the threshold causes a retraining unless a rule of the monitor keeps it back."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from activities.trigger_policy import Before, held_back
from everloop.records import Window
from everloop.specs import Monitor

START, HOUR = datetime(2026, 1, 1, tzinfo=UTC), timedelta(hours=1)
LOOSE = {"retrainings_a_month": None, "breaker": None}


def window(number: int) -> Window:
    return Window(start=START + number * HOUR, end=START + (number + 1) * HOUR)


def before(number: int, share: float | None = 0.8, outcome: str | None = None, version: int = 1) -> Before:
    return Before(window(number), version, share, outcome is not None, outcome or "")


def verdict(rules: dict, number: int, *past: Before, version: int = 1, rearmed_at: datetime | None = None) -> str:
    held = held_back(window(number), version, Monitor.model_validate(rules), past, rearmed_at)
    return held[0] if held else "retrain"


def run(rules: dict, shares: list[float], outcome: str) -> list[str]:
    """What comes of window after window, where each retraining ends with *outcome* at once."""
    past: list[Before] = []
    told = []
    for number, share in enumerate(shares):
        said = "quiet" if share < 0.5 else verdict(rules, number, *past)
        past.append(before(number, share, outcome if said == "retrain" else None))
        told.append(said)
    return told


def test_one_lasting_drift_is_not_retrained_for_ever() -> None:
    assert run({}, [0.9] * 5, "not_better") == ["retrain"] * 3 + ["breaker_open"] * 2


def test_an_open_breaker_tries_again_after_ever_more_windows() -> None:
    told = run(LOOSE | {"breaker": 2}, [0.9] * 30, "not_better")

    assert [number for number, said in enumerate(told) if said == "retrain"] == [0, 1, 4, 9, 18]
    assert set(told) == {"retrain", "breaker_open"}


def test_windows_that_were_not_measured_bring_an_open_breaker_no_nearer_to_its_next_try() -> None:
    failed = [before(0, 0.9, "not_better"), *(before(number, None) for number in range(1, 9))]
    assert verdict({"breaker": 1}, 9, *failed) == "breaker_open"
    assert verdict({"breaker": 1}, 10, *failed, before(9, 0.9)) == "retrain"


def test_retrainings_that_bring_a_better_version_go_on_until_the_budget_is_spent() -> None:
    assert run({}, [0.9] * 10, "released") == ["retrain"] * 8 + ["over_budget"] * 2
    after = [before(number, 0.9, "released") for number in range(8)]
    assert verdict({}, 30 * 24 - 1, *after) == "over_budget"
    assert verdict({}, 30 * 24, *after) == "retrain"  # the first of them was 30 days ago


def test_the_breaker_counts_what_was_tried_against_the_champion_of_now_alone() -> None:
    failed = [before(number, 0.9, "not_better") for number in range(3)]
    assert verdict({}, 3, *failed) == "breaker_open"
    assert verdict({}, 3, *failed, version=2) == "retrain"
    assert verdict({}, 4, *failed, before(3, 0.9, "released", 2), version=2) == "retrain"


@pytest.mark.parametrize("outcome", ["not_better", "rejected", "expired", "failed", "aborted", "cancelled", ""])
def test_every_end_without_a_release_is_no_gain(outcome: str) -> None:
    assert verdict({"breaker": 1}, 1, before(0, 0.9, outcome)) == "breaker_open"


def test_a_person_lets_a_broken_monitor_retrain_again() -> None:
    failed = [before(number, 0.9, "not_better") for number in range(3)]
    assert verdict({}, 4, *failed, before(3), rearmed_at=window(3).end) == "retrain"
    again = [*failed, before(3), *(before(number, 0.9, "not_better") for number in range(4, 7))]
    assert verdict({}, 7, *again, rearmed_at=window(3).end) == "breaker_open"


def test_so_many_windows_in_a_row_must_be_over_the_threshold() -> None:
    rules = LOOSE | {"windows_in_a_row": 3}
    assert run(rules, [0.9, 0.9, 0.1, 0.9, 0.9, 0.9], "released") == ["not_yet"] * 2 + ["quiet"] + ["not_yet"] * 2 + [
        "retrain"
    ]
    # a window with too few rows says nothing, and breaks no row
    assert verdict(rules, 3, before(0), before(1, None), before(2)) == "retrain"


def test_after_a_retraining_without_a_release_the_drift_must_calm_down_first() -> None:
    rules = LOOSE | {"calm": 0.3}
    assert run(rules, [0.9, 0.9, 0.4, 0.9, 0.2, 0.9], "not_better") == [
        "retrain",
        "same_drift",
        "quiet",
        "same_drift",
        "quiet",
        "retrain",
    ]
    assert verdict(rules, 1, before(0, 0.9, "not_better"), version=2) == "retrain"  # another champion


def test_after_a_retraining_the_next_waits_for_the_cool_down_of_event_time() -> None:
    rules = LOOSE | {"cool_down": "PT3H"}
    assert run(rules, [0.9] * 7, "released") == ["retrain", *["cooling_down"] * 2] * 2 + ["retrain"]


def test_windows_after_this_one_are_no_past_of_it() -> None:
    assert verdict({"breaker": 1}, 0, before(1, 0.9, "not_better")) == "retrain"


def test_calm_above_the_threshold_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"calm: must not be above share, which is 0\.5"):
        Monitor.model_validate({"calm": 0.6})


def of(over: str) -> frozenset[str]:
    return frozenset(over.split())


def told(rules: dict, number: int, over: str, *past: Before) -> str:
    held = held_back(window(number), 1, Monitor.model_validate(rules), past, None, of(over))
    return held[0] if held else "retrain"


def measured(number: int, over: str, outcome: str | None = None) -> Before:
    return Before(window(number), 1, 0.1, outcome is not None, outcome or "", of(over))


def test_each_measure_has_its_own_row_of_windows() -> None:
    rules = LOOSE | {"windows_in_a_row": 2}
    assert told(rules, 2, "predictions", measured(0, "predictions"), measured(1, "missing")) == "not_yet"
    assert told(rules, 2, "predictions missing", measured(0, ""), measured(1, "missing")) == "retrain"


def test_a_measure_calms_down_where_it_is_no_more_over_and_another_one_was_not_answered() -> None:
    rules = LOOSE | {"calm": 0.3}
    first = measured(0, "predictions", "not_better")
    assert told(rules, 2, "predictions", first, measured(1, "predictions")) == "same_drift"
    assert told(rules, 3, "predictions", first, measured(1, "predictions"), measured(2, "")) == "retrain"
    assert told(rules, 2, "performance", first, measured(1, "predictions")) == "retrain"


def test_the_breaker_counts_retrainings_of_every_measure() -> None:
    past = [measured(n, name, "not_better") for n, name in enumerate(("predictions", "missing", "performance"))]
    assert told({}, 3, "target", *past) == "breaker_open"


def test_decisions_of_before_mean_what_they_meant() -> None:
    """Rows that do not say which measures were over are read by their share."""
    assert verdict(LOOSE | {"windows_in_a_row": 2}, 2, before(0), before(1, 0.8)) == "retrain"
    assert verdict(LOOSE | {"windows_in_a_row": 2}, 2, before(0), before(1, 0.4)) == "not_yet"
    assert verdict(LOOSE | {"calm": 0.3}, 1, before(0, 0.9, "not_better")) == "same_drift"
