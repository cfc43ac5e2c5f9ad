"""Data that moved, and data that is broken: each is told as what it is."""

import numpy as np
import pytest

from activities.compute.measures import answers_of, changed_unit, distribution, measures_of
from activities.schema_breaks import schema_of
from everloop.records import Field, Signature
from everloop.specs import Monitor

DRAW = np.random.default_rng(0)
ROWS = 1500
FIELDS = (Field(name="amount", kind="number", minimum=-4, maximum=4), Field(name="word", kind="category", known=("a",)))
SIGNATURE = Signature(task="binary", fields=FIELDS, target="y", classes=("0", "1"), positive="1")


def columns(**changed: object) -> dict[str, np.ndarray]:
    usual = {"amount": DRAW.normal(size=ROWS), "word": DRAW.choice(list("abc"), ROWS).astype(object)}
    return usual | changed  # type: ignore[return-value]


def told(now: dict[str, np.ndarray]) -> tuple[dict, list]:
    measures, broken = measures_of(SIGNATURE, columns(), now, Monitor())
    return {measure.name: measure for measure in measures}, broken


def test_whole_data_is_whole() -> None:
    measures, broken = told(columns())
    assert not broken
    assert {name: (measure.over, measure.value) for name, measure in measures.items()} == {
        "missing": (False, 0.0),
        "new_categories": (False, 0.0),
        "out_of_range": (False, 0.0),
    }


def test_what_is_missing_new_and_out_of_range_is_told_with_its_column() -> None:
    amount = DRAW.normal(size=ROWS)
    amount[:450] = np.nan
    amount[450:700] = 9
    words = DRAW.choice(list("abcz"), ROWS).astype(object)
    measures, broken = told(columns(amount=amount, word=words))
    assert not broken
    assert all(measure.over for measure in measures.values())
    assert measures["missing"].why == "more values are missing than in training: 'amount' 30.0%"
    assert (measures["new_categories"].column, measures["out_of_range"].column) == ("word", "amount")
    assert measures["out_of_range"].value == pytest.approx(250 / ROWS)


def test_a_column_without_values_is_broken_not_moved() -> None:
    _, broken = told(columns(amount=np.full(ROWS, np.nan), word=np.full(ROWS, "", object)))
    assert [(each.column, each.kind) for each in broken] == [("amount", "missing"), ("word", "missing")]
    assert broken[0].why == "all values are missing; 0.0% were in training"


def test_texts_of_another_type_are_broken_not_new() -> None:
    codes = np.array([str(number) for number in DRAW.integers(100, 999, ROWS)], object)
    days = np.array([f"2026-01-{number:02}" for number in DRAW.integers(1, 28, ROWS)], object)
    for word, said in ((codes, "its values are numbers"), (days, "its values are dates")):
        _, broken = told(columns(word=word))
        assert [(each.column, each.kind) for each in broken] == [("word", "schema")]
        assert broken[0].why.startswith(said)
        assert broken[0].why.endswith("they were words in training")
    mixed = np.where(DRAW.random(ROWS) < 0.5, codes, "a").astype(object)
    assert not told(columns(word=mixed))[1]  # some are as they were: moved


def test_rows_that_were_refused_are_told_by_their_column() -> None:
    measure, broken = schema_of({}, 1000, Monitor())
    assert (measure.over, broken, measure.why) == (False, [], "no row was refused")

    measure, broken = schema_of({"income": 180, "age": 20}, 800, Monitor())
    assert (measure.over, measure.value, measure.column, broken) == (True, 0.2, "income", [])
    assert "'income' in 180, 'age' in 20" in measure.why

    measure, broken = schema_of({"income": 1800, "age": 20}, 180, Monitor())
    assert [(each.column, each.kind) for each in broken] == [("income", "schema")]
    assert broken[0].why == "1,800 of 2,000 rows were refused for it"


@pytest.mark.parametrize(("factor", "said"), [(100, "100 times"), (0.001, "1/1000 of"), (2.20462, "2.205 times")])
def test_a_change_of_the_unit_is_seen(factor: float, said: str) -> None:
    then = DRAW.lognormal(3, 0.2, 3000)
    assert said in changed_unit(then, DRAW.lognormal(3, 0.2, 800) * factor)


def test_temperatures_in_another_unit_are_seen() -> None:
    then = DRAW.normal(18, 6, 3000)
    assert "in Fahrenheit" in changed_unit(then, DRAW.normal(18, 6, 800) * 1.8 + 32)
    assert "in Celsius" in changed_unit(then * 1.8 + 32, DRAW.normal(18, 6, 800))


@pytest.mark.parametrize("moved", [lambda x: x + 30, lambda x: x * 1.4, lambda x: x - 15, lambda x: 40 - x])
def test_what_only_moved_is_no_change_of_the_unit(moved: object) -> None:
    then = DRAW.normal(18, 6, 3000)
    assert changed_unit(then, moved(DRAW.normal(18, 6, 800))) == ""  # type: ignore[operator]


@pytest.mark.parametrize("change", [lambda x: x * 60, lambda x: x / 10, lambda x: x * 1.8 + 32])
def test_a_change_of_the_unit_is_seen_in_a_column_of_few_values(change: object) -> None:
    hours = np.array([0.0, 20.0, 30.0, 40.0])
    now = change(DRAW.choice(hours, 800, p=[0.1, 0.6, 0.2, 0.1]))  # type: ignore[operator]
    assert changed_unit(DRAW.choice(hours, 3000), now) != ""


def test_few_values_that_moved_are_no_change_of_the_unit() -> None:
    scale, tens = np.arange(1.0, 6.0), np.arange(1.0, 100.0)
    for then, now in (
        (scale, DRAW.choice([4.0, 5.0], 800)),  # of those that were known
        (scale, DRAW.choice([10.0, 20.0], 800)),  # two may agree by chance
        (scale, DRAW.choice([6.0, 7.0, 8.0, 9.0], 800)),
        (tens, DRAW.choice([10.0, 20.0, 30.0, 40.0], 800)),  # round ones, all known
        (np.array([0.0, 1.0]), DRAW.choice([0.0, 10.0], 800)),
        (np.array([7.0]), DRAW.choice([70.0, 700.0, 7000.0], 800)),
        (np.zeros(3), DRAW.choice([1.0, 2.0, 3.0], 800)),
    ):
        assert changed_unit(DRAW.choice(then, 3000), now) == ""


def test_answers_are_compared_with_those_of_the_evaluation() -> None:
    sample = {"sample": {"answers": DRAW.uniform(0, 0.4, 2000).tolist()}}

    steady, moved = (answers_of(SIGNATURE, DRAW.uniform(low, low + 0.4, 2000), sample) for low in (0.0, 0.3))
    assert steady is not None
    assert not steady.over
    assert moved is not None
    assert moved.over
    assert "the answers have moved away from those of the evaluation" in moved.why
    assert answers_of(SIGNATURE, np.full(99, 0.9), sample) is None  # too few
    assert answers_of(SIGNATURE, np.full(500, 0.9), {}) is None  # the version does not say its own


def test_distributions_sum_up_and_tell_what_is_missing() -> None:
    then = np.array([1.0, 2.0, np.nan, 4.0])
    made = distribution(True, then, np.full(4, np.nan))
    assert sum(made["then"]) == pytest.approx(1)
    assert (made["then"][-1], made["now"][-1], made["labels"][-1]) == (0.25, 1.0, "missing")
    words = distribution(False, np.array(list("aab"), object), np.array([f"w{n}" for n in range(40)], object))
    assert sum(words["now"]) == pytest.approx(1)
    assert words["labels"][-1] == "others"
