"""How a search stands: which numbers are tried together, and when it has ended."""

from typing import Any

from everloop.contracts import SearchRequest, SearchState
from everloop.specs import checked
from everloop.trials import Study, Trial
from tests.unit.test_search import BASE, BLOB, PREPARED, SNAPSHOT
from workflows.search.standing import AT_LENGTH_MOST, MOST_AT_ONCE, Standing


def standing(**search: Any) -> Standing:
    spec = checked(BASE | {"search": search, "metric": "auc"})
    request = SearchRequest(lifecycle="m-1", spec=spec, snapshot=SNAPSHOT, prepared=PREPARED)
    return Standing(request, SearchState(study=Study(id="s", plan=BLOB)))


def ended(stands: Standing, *values: float, seconds: float = 0.1) -> None:
    for value in values:
        number = stands.state.ended
        stands.take_in(Trial(number=number, family="linear", state="complete", values=(value,), seconds=seconds))


def test_short_trials_come_several_to_a_job_and_what_one_did_not_get_to_comes_together_again() -> None:
    stands = standing(budget={"trials": 90})

    assert stands.numbers() == (0,)  # nobody knows how long it takes
    ended(stands, 0.7, seconds=0.01)
    assert stands.numbers() == tuple(range(1, 1 + MOST_AT_ONCE))
    stands.free(range(5, 33))
    assert stands.numbers() == tuple(range(5, 5 + MOST_AT_ONCE))
    assert [stands.numbers() for _ in range(4)] == [tuple(range(37, 69)), tuple(range(69, 90)), (), ()]
    assert stands.ended(again=False) == "budget"
    assert stands.ended(again=True) == ""  # a job that was ended for others asks once more


def test_the_members_of_a_lease_share_what_is_left_of_the_trials() -> None:
    stands = standing(budget={"trials": 50}, parallel=4)
    stands.numbers(members=4)
    ended(stands, 0.7, seconds=0.01)

    shares = []
    while numbers := stands.numbers(members=4):
        shares.append(len(numbers))

    assert shares[:4] == [13, 9, 7, 5]
    assert sum(shares) == 49 and shares == sorted(shares, reverse=True)


def test_a_run_that_is_told_at_length_asks_as_before() -> None:
    stands = standing(budget={"trials": 40})
    stands.numbers(most=AT_LENGTH_MOST)
    ended(stands, 0.7, seconds=0.01)

    assert stands.numbers(most=AT_LENGTH_MOST) == tuple(range(1, 13))
    assert len(stands.numbers(together=False)) == 8


def test_trials_of_nearly_a_second_come_by_twos_and_longer_ones_alone() -> None:
    for seconds, together in ((0.9, 2), (0.6, 3), (1.5, 1), (30.0, 1)):
        stands = standing(budget={"trials": 40})
        stands.numbers()
        ended(stands, 0.7, seconds=seconds)

        assert len(stands.numbers()) == together


def test_no_number_is_given_twice_or_left_out_whatever_jobs_come_to() -> None:
    stands, given = standing(budget={"trials": 100}), []
    while numbers := stands.numbers():
        done, left = numbers[: 1 + len(given) % 3], numbers[1 + len(given) % 3 :]
        given += done
        ended(stands, *[0.5] * len(done), seconds=0.05)
        stands.free(left)

    assert sorted(given) == list(range(100))
    assert stands.fill() == []


def test_a_search_limited_by_time_ends_with_it_or_when_it_gains_no_more() -> None:
    late, idle = (standing(budget="60s", families=["linear"]) for _ in range(2))
    ended(late, 0.7)
    late.spend(60.1)
    assert late.ended(again=False) == "budget"
    assert late.conclusion("budget") == "best of 1 trial: auc 0.7 (linear, trial 0); its 60 s were over"

    ended(idle, *[0.7] * 25)
    assert idle.ended(again=False) == ""
    ended(idle, 0.7)
    assert idle.ended(again=False) == "no_gain"
    assert idle.conclusion("no_gain").endswith("ended early: no gain in the last 25 trials")


def test_a_search_that_found_nothing_goes_on_beyond_its_time_but_not_for_ever() -> None:
    stands = standing(budget="1s")
    stands.spend(5.0)
    assert stands.ended(again=False) == ""
    for number in range(8):
        stands.take_in(Trial(number=number, state="failed", error="no"))

    assert stands.ended(again=False) == "budget"
    assert stands.sentence("budget") == "8 trials, none came to its end; its 1 s were over"
