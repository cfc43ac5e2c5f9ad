"""Whether a comma is decimal or between thousands, and what is said where that is in doubt."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from activities.compute import data, features
from activities.compute.features import Pipeline
from everloop import contracts
from everloop.errors import TargetUnusable
from everloop.records import Field, Signature
from everloop.rows import from_csv
from tests.job import FolderJob
from tests.stages import SLOT, Passed, csv, snapshot, spec_of, table


def decimal_commas(rows: int = 400) -> pd.DataFrame:
    random = np.random.default_rng(5)
    x = (random.normal(size=rows) * 3000).round(2)
    return pd.DataFrame({"x": x, "n": random.integers(0, 9, rows), "y": np.where(x > 0, "ja", "nein")})


def german(number: float) -> str:
    return f"{number:,.2f}".translate(str.maketrans(",.", ".,"))


def test_a_decimal_comma_is_read_as_one_in_training_and_in_a_file_of_rows(tmp_path: Path, job: FolderJob) -> None:
    frame = decimal_commas()
    path = tmp_path / "t.csv"
    frame.assign(x=frame.x.map(german)).to_csv(path, sep=";", index=False)

    passed = Passed(job, spec_of(path, "binary", "y", training={"rounds": 20}))
    rows = from_csv(path.read_text(), "t.csv", passed.signature.model_dump(mode="json"))

    whole = data.load(job.artifacts, passed.snapshot)
    assert whole.rows["x"].to_pylist() == frame.x.tolist()
    assert [row["x"] for row in rows] == frame.x.tolist()
    assert passed.evaluation.metrics["auc"] > 0.99
    assert len(passed.model.predict(passed.model.check(rows))) == len(frame)


def test_a_file_whose_numbers_need_no_comma_is_read_as_the_others_are(tmp_path: Path, job: FolderJob) -> None:
    head = "x;c;y\n"
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.csv").write_text(head + "1.234,5;a;p\n-0,5;b;q\n" * 30)
    (tmp_path / "s" / "2.csv").write_text(head + "1.234;a;p\n7;b;q\n" * 30)  # thousands, as 1.csv says

    whole = data.load(job.artifacts, snapshot(job, tmp_path / "s"))
    signature = Signature(
        task="binary", fields=(Field(name="x", kind="number", layouts=whole.column("x").layouts),), target="y"
    )
    asked = from_csv("x;c\n1.234;a\n", "t.csv", signature.model_dump(mode="json"))

    assert set(whole.rows["x"].to_pylist()) == {1234.5, -0.5, 1234.0, 7.0}
    assert asked[0]["x"] == 1234


@pytest.mark.parametrize("values", [("1,5", "1.5"), ("1,2,3", "4,5"), ("1.234", "5.678"), ("007,5", "1,5")])
def test_what_may_be_no_decimal_comma_is_not_read_as_one(
    tmp_path: Path, job: FolderJob, values: tuple[str, str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x;y\n" + "".join(f"{value};p\n" for value in values) * 30)

    found = data.load(job.artifacts, snapshot(job, path))

    expected = [1.234, 5.678] if values[0] == "1.234" else list(values)
    assert found.rows["x"].to_pylist()[:2] == expected


def test_numbers_with_one_word_among_them_are_warned_of(tmp_path: Path, job: FolderJob) -> None:
    frame = table(400).assign(mixed=lambda f: [*f.x.head(399).round(4).astype(str), "n/k"])
    path = csv(tmp_path, frame)
    taken = snapshot(job, path)

    found = data.validate(contracts.ValidateRequest(spec=spec_of(path, "binary", "y"), snapshot=taken, slot=SLOT), job)

    told = [check.message for check in found.checks if check.column == "mixed"]
    prepared = features.prepare(
        contracts.PrepareRequest(spec=spec_of(path, "binary", "y"), snapshot=taken, champion=None, slot=SLOT), job
    )
    dropped = {entry.name: entry.reason for entry in Pipeline.read(job.artifacts, prepared.pipeline).dropped}
    assert f"'mixed': {dropped['mixed']}" in told
    assert len(told) == 1
    assert told[0].startswith("'mixed': 399 of 400 values are numbers; the others, like 'n/k', make it text: if these")


def warned(job: FolderJob, tmp_path: Path, values: list[str], separator: str = ",") -> tuple[list[str], list[object]]:
    """What validation says of a column `v` of a CSV file that repeats *values*, and how it was read."""
    path = tmp_path / "t.csv"
    table(400).assign(v=(values * 400)[:400]).to_csv(path, sep=separator, index=False)
    taken = snapshot(job, path)
    found = data.validate(contracts.ValidateRequest(spec=spec_of(path, "binary", "y"), snapshot=taken, slot=SLOT), job)
    read = data.load(job.artifacts, taken).rows["v"].to_pylist()
    return [check.message for check in found.checks if check.column == "v"], read[: len(values)]


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("values", [["999", "1,234", "12,000"], ["1,234", "1,234,567"], ["-1,234.5", "12", "1,000"]])
def test_thousands_are_not_read_as_decimals_and_warned_of(
    tmp_path: Path, job: FolderJob, values: list[str], separator: str
) -> None:
    told, read = warned(job, tmp_path, values, separator)

    assert read == values
    assert "decimal or stand between thousands; if these are numbers, save them without" in told[0]


@pytest.mark.parametrize("settles", ["0,5", "1,25", "0,125", ",125", "1234,567", "1.234,567"])
def test_one_cell_settles_that_commas_are_decimal(tmp_path: Path, job: FolderJob, settles: str) -> None:
    _, read = warned(job, tmp_path, ["999", "1,234", settles], ";")

    assert read == [999, 1.234, float(settles.replace(".", "").replace(",", "."))]


def test_a_dotted_fraction_is_not_read_as_thousands(tmp_path: Path, job: FolderJob) -> None:
    told, read = warned(job, tmp_path, ["0.512", "1,5"], ";")

    assert read == ["0.512", "1,5"]
    assert "values like '1,5' and '0.512' make it text" in told[0]


def test_dotted_fractions_in_one_file_of_a_folder_with_commas_are_ordinary_numbers(
    tmp_path: Path, job: FolderJob, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.csv").write_text("x;y\n1.234,5;p\n-0,5;q\n" + "2,5;p\n" * 60)
    (tmp_path / "s" / "2.csv").write_text("x;y\n0.512;p\n1.234;q\n")

    whole = data.load(job.artifacts, snapshot(job, tmp_path / "s"))
    field = Field(name="x", kind="number", layouts=whole.column("x").layouts)
    schema = Signature(task="binary", fields=(field,), target="y").model_dump(mode="json")

    assert set(whole.rows["x"].to_pylist()) == {1234.5, -0.5, 2.5, 0.512, 1.234}
    assert "2.csv: 'x' has decimal points here" in capsys.readouterr().out
    assert [row["x"] for row in from_csv("x;y\n0.512;p\n1.234;q\n", "t.csv", schema)] == [0.512, 1.234]
    assert [row["x"] for row in from_csv("x;y\n1.234;p\n7;q\n", "t.csv", schema)] == [1234, 7]


def test_one_file_settles_the_commas_of_a_folder(tmp_path: Path, job: FolderJob) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.csv").write_text("x;y\n" + "1,234;p\n7;q\n" * 30)
    (tmp_path / "s" / "2.csv").write_text("x;y\n" + "0,5;p\n1,25;q\n" * 30)

    whole = data.load(job.artifacts, snapshot(job, tmp_path / "s"))

    assert set(whole.rows["x"].to_pylist()) == {1.234, 7, 0.5, 1.25}


def test_a_numeric_target_with_thousands_is_refused_with_the_reason(tmp_path: Path, job: FolderJob) -> None:
    path = tmp_path / "t.csv"
    table(400).assign(pay=[f"{n:,}" for n in range(900, 80_900, 200)]).to_csv(path, sep=";", index=False)
    spec = spec_of(path, "regression", "pay")
    taken = snapshot(job, path, task="regression", target="pay")

    with pytest.raises(TargetUnusable, match=r"'pay' is not numeric: values like '1,100' .* between thousands"):
        data.validate(contracts.ValidateRequest(spec=spec, snapshot=taken, slot=SLOT), job)


@pytest.mark.parametrize("layouts", [("decimal comma",), ()])
def test_one_bad_cell_leaves_the_other_commas_decimal(layouts: tuple[str, ...]) -> None:
    field = Field(name="x", kind="number", layouts=layouts)
    schema = Signature(task="binary", fields=(field,), target="y").model_dump(mode="json")

    rows = from_csv("x;c\n1,5;a\nabc;b\n1.234,5;c\n;d\n", "t.csv", schema)

    assert [row["x"] for row in rows] == [1.5, "abc", 1234.5, None]


def test_thousands_in_a_file_of_rows_are_left_to_be_refused() -> None:
    schema = Signature(task="binary", fields=(Field(name="x", kind="number"),), target="y").model_dump(mode="json")

    rows = from_csv("x\tc\n999\ta\n1,234\tb\n", "t.csv", schema)

    assert [row["x"] for row in rows] == [999, "1,234"]


@pytest.mark.parametrize(
    "values",
    [
        [f"{n}.{n % 9}" for n in range(250, 300)] + ["E909"],
        [f"{n:05d}" for n in range(10001, 10060)] + ["10002-1234"],
        [str(n) for n in range(100, 160)] + ["12A"],
        [str(n) for n in range(1, 60)] + ["12b"],
        [str(1234567890 + n) for n in range(60)] + ["123456789X"],
        [f"{n:05d}" for n in range(1234, 1300)] + ["X1"],
        [f"{n:05d}" for n in range(1234, 1300)] + ["none given"],
    ],
)
def test_of_codes_nothing_is_said(tmp_path: Path, job: FolderJob, values: list[str]) -> None:
    told, read = warned(job, tmp_path, values)

    assert read == values
    assert not [message for message in told if "if these are numbers" in message]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([f"${n},234.50" for n in range(1, 60)], "values like '$1,234.50' are read as text: if these"),
        ([f"{n}.3%" for n in range(60)], "values like '0.3%' are read as text: if these"),
        ([f"{n},5" for n in range(60)] + ["n/k"], "the others, like 'n/k', make it text: if these are numbers"),
    ],
)
def test_numbers_in_a_dress_are_warned_of(tmp_path: Path, job: FolderJob, values: list[str], says: str) -> None:
    told, _ = warned(job, tmp_path, values)

    assert says in told[0]
