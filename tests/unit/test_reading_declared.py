"""What the spec says of columns holds at every door: for files with types of their own, and for a row to predict."""

import math
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from activities.compute import data
from activities.compute.inference import read_loosely
from everloop import contracts
from everloop.cli.rows import rows_of
from everloop.errors import Invalid
from everloop.reading import ReadColumn
from everloop.records import Field, Signature
from everloop.rows import from_csv
from tests.job import FolderJob
from tests.reading import drafted
from tests.stages import SLOT, Passed, spec_of

ROWS = 120


def read(job: FolderJob, path: Path, **more: Any) -> data.Table:
    kept = data.snapshot(contracts.SnapshotRequest(spec=spec_of(path, "binary", "y", **more), slot=SLOT), job)
    return data.load(job.artifacts, kept)


def test_parquet_whole_numbers_and_decimals_stay_exact_where_the_spec_says_they_are_numbers(
    tmp_path: Path, job: FolderJob
) -> None:
    """A draft of `init` calls both `number`: that must not make floats of them."""
    ids, cents = [10**18 + n for n in range(ROWS)], [Decimal(n) / 100 for n in range(ROWS)]
    table = {"n": ids, "c": pa.array(cents, pa.decimal128(30, 2)), "b": [n % 3 for n in range(ROWS)]}
    pa.parquet.write_table(pa.table(table | {"y": [n % 2 for n in range(ROWS)]}), tmp_path / "t.parquet")
    offered = yaml.safe_load(drafted(tmp_path / "t.parquet", "y"))
    said = offered["columns"] | {"b": {"missing": ["0"]}}

    found = read(job, tmp_path / "t.parquet", columns=said)
    again = read(job, tmp_path / "t.parquet", columns=said | {"n": {"type": "number", "missing": [str(10**18)]}})

    assert {"n": {"type": "number"}, "c": {"type": "number"}}.items() <= said.items()
    assert (found.rows["n"].to_pylist(), found.rows["c"].to_pylist()) == (ids, cents)
    assert found.rows["b"].to_pylist()[:4] == [None, 1, 2, None]
    assert again.rows["n"].to_pylist() == [None, *ids[1:]]


def test_days_written_in_two_ways_are_said_and_read_where_they_are_declared(tmp_path: Path, job: FolderJob) -> None:
    dates = [date(2023, 1, 1) + timedelta(days=n) for n in range(ROWS)]
    days = [f"{day:%d.%m.%Y}" if n % 2 == 0 else f"{day:%Y-%m-%d}" for n, day in enumerate(dates)]
    text = "due,x,y\n" + "".join(f"{day},{n % 5},{n // 2 % 2}\n" for n, day in enumerate(days))
    (tmp_path / "t.csv").write_text(text)

    offered = drafted(tmp_path / "t.csv", "y")
    found = read(job, tmp_path / "t.csv", columns={"due": {"type": "datetime"}})

    assert "due: days like '2023-01-02' and '01.01.2023' make it text" in offered
    assert [day.date() for day in found.rows["due"].to_pylist()] == dates


def test_a_point_that_may_be_for_thousands_is_said_beside_a_decimal_comma(tmp_path: Path, job: FolderJob) -> None:
    lines = "".join(f"{n / 10:.1f};{n + 1}.{500 + n};{n % 2}\n".replace(".", ",", 1) for n in range(ROWS))
    (tmp_path / "t.csv").write_text("size;sales;y\n" + lines)

    found = read(job, tmp_path / "t.csv")
    said = [sentence for change in found.changed for sentence in change.sentences()]
    told = read(job, tmp_path / "t.csv", columns={"sales": {"decimal": ","}})
    kept = read(job, tmp_path / "t.csv", columns={"sales": {"decimal": "."}})

    beside = "`sales` has '1.500' with a decimal point, `size` a decimal comma"
    assert said == [f"{beside}: say `decimal: ','` if it means 1500, `decimal: '.'` if not"]
    assert said[0] in drafted(tmp_path / "t.csv", "y")
    assert told.rows["sales"].to_pylist()[:2] == [1500, 2501]
    assert kept.rows["sales"].to_pylist()[:2] == [1.5, 2.501]
    assert [*told.changed, *kept.changed] == []


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_infinite_numbers_are_missing_and_said(tmp_path: Path, job: FolderJob, name: str) -> None:
    values = [["1.5", "1e999", "-Infinity", "2"][n % 4] for n in range(ROWS)]
    lines = "".join(f"{value},formation,{n % 2}\n" for n, value in enumerate(values))
    (tmp_path / "t.csv").write_text(f"x,note,y\n{lines}")
    numbers = {"x": [float(value) for value in values], "y": [n % 2 for n in range(ROWS)]}
    pa.parquet.write_table(pa.table(numbers), tmp_path / "t.parquet")

    found = read(job, tmp_path / name)
    offered = drafted(tmp_path / name, "y")

    assert found.rows["x"].to_pylist()[:4] == [1.5, None, None, 2]
    said = [sentence for change in found.changed for sentence in change.sentences()]
    assert said == ["60 values of `x` are read as missing: '-inf', 'inf'"]
    assert said[0] in offered


@pytest.mark.parametrize(
    ("kind", "column", "value", "right"),
    [
        ("number", ReadColumn(name="a", type="integer", missing=("-1",), declared=True), -1, None),
        ("number", ReadColumn(name="a", type="integer", missing=("-1",)), -1.0, None),
        ("number", ReadColumn(name="a", type="integer", missing=("-1",), declared=True), "-1", None),
        ("number", ReadColumn(name="a", type="number", missing=("9999,5",), decimal=",", declared=True), 9999.5, None),
        ("number", ReadColumn(name="a", type="integer", missing=("-1",), declared=True), 1, 1.0),
        ("boolean", ReadColumn(name="a", type="boolean", missing=("?",), declared=True), "Yes", 1.0),
        ("boolean", ReadColumn(name="a", type="boolean", missing=("?",), declared=True), "n", 0.0),
        ("boolean", ReadColumn(name="a", type="boolean", missing=("?",), declared=True), "?", None),
        ("boolean", ReadColumn(name="a", type="boolean", missing=("?",), declared=True), False, 0.0),
    ],
)
def test_a_request_means_what_the_declared_column_means(
    kind: Any, column: ReadColumn, value: object, right: float | None
) -> None:
    found = read_loosely(Field(name="a", kind=kind, read=column), value)

    assert found == right or (right is None and isinstance(found, float) and math.isnan(found))


def test_blanks_that_are_meant_stay_in_a_file_of_rows() -> None:
    kept = ReadColumn(name="c", type="category", trim=False, declared=True)
    fields = (Field(name="c", kind="category", known=("x", " x"), read=kept), Field(name="n", kind="number"))
    schema = Signature(task="regression", fields=fields, target="y").model_dump(mode="json")

    assert from_csv("n,c\n1,x\n 2, x\n3,x \n", "t.csv", schema) == [
        {"n": 1, "c": "x"},
        {"n": 2, "c": " x"},
        {"n": 3, "c": "x "},
    ]


def test_a_file_of_rows_is_in_the_encoding_that_the_spec_says(tmp_path: Path, job: FolderJob) -> None:
    """With names in ASCII nothing in the file says which one: cp1252 would read other letters without a word."""
    towns = ["Уфа", "Казань", "Москва"]
    text = "town,x,y\n" + "".join(f"{towns[n % 3]},{n * 7 % 11},{n % 2}\n" for n in range(ROWS))
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("cp1251"))
    spec = spec_of(path, "binary", "y", source={"path": str(path), "encoding": "cp1251"}, training={"rounds": 2})
    signature = Passed(job, spec).signature

    asked = rows_of(str(path), lambda: signature.model_dump(mode="json"))

    assert [row["town"] for row in asked[:3]] == towns
    with pytest.raises(Invalid, match="not those of western languages"):
        rows_of(str(path), lambda: signature.model_copy(update={"encoding": ""}).model_dump(mode="json"))
