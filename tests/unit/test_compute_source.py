"""A source's bytes become columns: the same in every file, and what is wrong is named."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from activities.compute import data
from activities.compute.features import Pipeline
from activities.compute.inference import moment
from everloop import contracts
from everloop.errors import DatasetMissing, DatasetTooSmall, EverloopError, InvalidData, InvalidSpec, SchemaMismatch
from everloop.records import Signature
from everloop.rows import delimiter_of, from_csv
from tests.job import FolderJob
from tests.stages import SLOT, Passed, csv, snapshot, spec_of, table


def test_a_folder_that_grows_keeps_its_old_blobs(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "source", table(100, seed=1), "1.csv")
    before = snapshot(job, tmp_path / "source")
    csv(tmp_path / "source", table(100, seed=2), "2.csv")
    (tmp_path / "source" / "3.csv.part").write_text("x,c\n1")
    (tmp_path / "source" / ".hidden.csv").write_text("x")

    after = snapshot(job, tmp_path / "source")

    first, second = (json.loads(job.artifacts.get(each.manifest))["files"] for each in (before, after))
    assert (after.files, after.rows) == (2, 200)
    assert second[0] == first[0]
    assert after.schema_digest == before.schema_digest


def test_the_table_is_read_from_what_was_kept(tmp_path: Path, job: FolderJob) -> None:
    path = csv(tmp_path, table(100))
    kept = snapshot(job, path)

    path.write_text("something else")

    assert len(data.load(job.artifacts, kept)) == 100


def test_integers_and_fractions_in_different_files_are_one_kind(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", table(60).assign(n=1, e=None), "1.csv")
    csv(tmp_path / "s", table(60).assign(n=1.5, e="text"), "2.csv")

    kinds = {column.name: column.kind for column in snapshot(job, tmp_path / "s").columns}

    assert kinds == {"x": "number", "c": "category", "y": "number", "n": "number", "e": "category"}


def test_codes_are_text_in_every_file_and_spelled_as_written(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", table(60).assign(room=["101", "102"] * 30), "1.csv")
    csv(tmp_path / "s", table(60).assign(room=["B12", "101"] * 30), "2.csv")
    csv(tmp_path / "s", table(60).assign(room=["007", "7"] * 30), "3.csv")

    whole = data.load(job.artifacts, snapshot(job, tmp_path / "s"))

    assert whole.column("room").kind == "category"
    assert set(whole.rows["room"].to_pylist()) == {"101", "102", "B12", "007", "7"}


def test_separators_in_quoted_names_do_not_count(tmp_path: Path, job: FolderJob) -> None:
    path = tmp_path / "t.csv"
    head = '"Größe, m2, netto";"Lage,\nkm, Luftlinie";"y"\n'
    path.write_text(head + '"1";"2";"p"\n"3";"4";"q"\n' * 30)

    names = [column.name for column in snapshot(job, path).columns]
    rows = from_csv(path.read_text(), "t.csv", Signature(task="binary", fields=(), target="y").model_dump(mode="json"))

    assert names == list(rows[0]) == ["Größe, m2, netto", "Lage,\nkm, Luftlinie", "y"]


def test_commas_in_unquoted_names_do_not_split_a_file_of_semicolons(tmp_path: Path, job: FolderJob) -> None:
    frame = pd.DataFrame({"Größe, m2": [12.5, 7.25] * 30, "Lage, km": [1.5, 3.5] * 30, "Art": ["a", "b"] * 30})
    frame["Preis, EUR"] = [99.9, 120.5] * 30
    path = tmp_path / "t.csv"
    frame.to_csv(path, sep=";", decimal=",", index=False)

    whole = data.load(job.artifacts, snapshot(job, path, task="regression", target="Preis, EUR"))
    schema = Signature(task="regression", fields=(), target="Preis, EUR").model_dump(mode="json")

    assert whole.rows.to_pydict() == frame.to_dict("list")
    assert list(from_csv(path.read_text(), "t.csv", schema)[0]) == list(frame.columns)


@pytest.mark.parametrize(
    ("head", "delimiter"),
    [
        ("a;b,c\n", ","),  # a draw
        ("a, m2;b, km, far;c\n1;2;3\n", ";"),
        ("a, m2;b\n1,5;2\n1;2,5\n", ";"),
        ("a,b\n1;2,x\n1,2;3;4\n", ","),
        ("a,b,c\n1,2\n1,2,3\n", ","),  # a row that lacks a field
        ("a\tb, c\n1,5\t2\n", "\t"),
        ('a,b\n"1;2","x"\n"3;4","y"\n', ","),
        ("a\n1\n2\n", ","),
        ("", ","),
    ],
)
def test_what_splits_the_header_and_the_rows_alike_separates_the_columns(head: str, delimiter: str) -> None:
    assert delimiter_of(head) == delimiter


def test_whole_numbers_beyond_64_bits_are_read_and_warned_of(tmp_path: Path, job: FolderJob) -> None:
    frame = table(400).assign(big=np.random.default_rng(0).integers(2**63, 2**64 - 1, 400, dtype=np.uint64))
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    taken = snapshot(job, path)

    found = data.validate(contracts.ValidateRequest(spec=spec_of(path, "binary", "y"), snapshot=taken, slot=SLOT), job)

    assert data.load(job.artifacts, taken).column("big").kind == "number"
    assert any(check.column == "big" and "beyond 2^63" in check.message for check in found.checks)


def days(layout: str, first: str, rows: int = 60) -> pd.DataFrame:
    return table(rows).assign(day=pd.date_range(first, periods=rows).strftime(layout))


def test_a_day_is_read_the_same_in_every_file_of_a_folder(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", days("%d/%m/%Y", "2024-03-01", 12), "1.csv")  # alone it could be January to December
    csv(tmp_path / "s", days("%d/%m/%Y", "2024-03-13"), "2.csv")

    kept = snapshot(job, tmp_path / "s", time="day")

    assert (str(kept.time_from), str(kept.time_to)) == ("2024-03-01 00:00:00+00:00", "2024-05-11 00:00:00+00:00")
    assert next(column for column in kept.columns if column.name == "day").layouts == ("%d/%m/%Y",)


def test_files_that_disagree_on_what_comes_first_are_refused(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", days("%d/%m/%Y", "2024-03-01"), "1.csv")
    csv(tmp_path / "s", days("%m/%d/%Y", "2024-05-01"), "2.csv")

    with pytest.raises(SchemaMismatch, match=r"2.csv: the column 'day' writes the month first") as refused:
        snapshot(job, tmp_path / "s")

    assert refused.value.field == "day"


@pytest.mark.parametrize(
    ("written", "layouts", "of_row_5"),
    [
        (lambda times: times.strftime("%d.%m.%Y %H:%M"), ("%d.%m.%Y %H:%M",), "06.01.2024 00:00"),
        (lambda times: times.year * 10000 + times.month * 100 + times.day, ("day",), 20240106),
        (lambda times: times.astype("int64") // 10**9, ("seconds",), 1704499200),
        (lambda times: times.strftime("%Y-%m-%d"), (), "2024-01-06"),
    ],
)
def test_a_time_means_the_same_in_the_table_and_in_a_request(
    tmp_path: Path, job: FolderJob, written: Callable[[Any], Any], layouts: tuple[str, ...], of_row_5: object
) -> None:
    path = csv(tmp_path, table(100).assign(at=written(pd.date_range("2024-01-01", periods=100))))

    passed = Passed(job, spec_of(path, "binary", "y", time="at", training={"rounds": 5}))

    assert passed.signature.time_layouts == layouts
    assert moment(of_row_5, layouts).replace(tzinfo=None) == datetime(2024, 1, 6)  # noqa: DTZ001


def test_the_model_looks_at_the_columns_that_were_evaluated(tmp_path: Path, job: FolderJob) -> None:
    """More than half of the texts differ in the train part, fewer in the whole table: still no new column."""
    rows = 400
    path = csv(tmp_path, table(rows).assign(free=[f"t{row * 10 // 22}" for row in range(rows)]))
    passed = Passed(job, spec_of(path, "binary", "y", training={"rounds": 5}))

    evaluated = Pipeline.read(job.artifacts, passed.prepared.pipeline)
    released = Pipeline.read(job.artifacts, passed.refitted.pipeline)

    assert "free" in {column.name for column in evaluated.dropped}
    assert [entry.name for entry in released.inputs] == [entry.name for entry in evaluated.inputs]
    assert "free" in passed.signature.ignored


BAD_SOURCES: dict[str, tuple[Callable[[Path], Any], type[EverloopError], str]] = {
    "vanished": (lambda path: None, DatasetMissing, "there is no file or folder"),
    "empty": (lambda path: path.write_bytes(b""), InvalidData, "t.csv is empty"),
    "header only": (lambda path: path.write_text("x,y\n"), InvalidData, "a header but no rows"),
    "ragged": (
        lambda path: path.write_text("x,y\n" + "1,2\n" * 60 + "1,2,3\n"),
        InvalidData,
        r"row 62 \(the header is row 1\) has 3 fields where the header has 2",
    ),
    "short row": (lambda path: path.write_text("x,y\n1,2\n1\n"), InvalidData, "row 3 .* has 1 fields"),
    "bytes that are no text": (lambda path: path.write_bytes(b"x,y\n\xff\x00\x01,1\n"), InvalidData, "not UTF-8"),
    "binary": (lambda path: path.write_bytes(b"\x80\x04\x95\x00\x01"), InvalidData, "not UTF-8"),
    "one row": (lambda path: path.write_text("x,y\n1,2\n"), DatasetTooSmall, "the data has 1 row$"),
    "the same name twice": (lambda path: path.write_text("x,x,y\n1,2,3\n"), InvalidData, "two columns named 'x'"),
    "no target": (lambda path: table(60).drop(columns="y").to_csv(path, index=False), InvalidSpec, "no column 'y'"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_refused_with_what_is_wrong(tmp_path: Path, job: FolderJob, name: str) -> None:
    make, kind, message = BAD_SOURCES[name]
    make(tmp_path / "t.csv")

    with pytest.raises(kind, match=message) as refused:
        snapshot(job, tmp_path / "t.csv")

    assert refused.value.field
    assert refused.value.hint


@pytest.mark.parametrize("rows", [60, 9000])
def test_a_table_in_latin_1_is_read_wherever_its_first_umlaut_is(tmp_path: Path, job: FolderJob, rows: int) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"x,y\n" + b"1,2\n" * rows + "é,1\n€,1\n".encode("cp1252"))

    kept = snapshot(job, path)

    assert data.load(job.artifacts, kept).rows["x"].to_pylist()[-2:] == ["é", "€"]
    assert json.loads(job.artifacts.get(kept.manifest))["files"][0]["dialect"]["encoding"] == "cp1252"


def test_a_pickle_with_another_name_is_not_opened(tmp_path: Path, job: FolderJob) -> None:
    path = tmp_path / "t.parquet"
    table(60).to_pickle(path)

    with pytest.raises(InvalidData, match="not a readable Parquet file"):
        snapshot(job, path)


@pytest.mark.parametrize(
    ("change", "column"),
    [
        (lambda frame: frame.drop(columns="c"), "c"),
        (lambda frame: frame.assign(extra=1), "extra"),
        (lambda frame: frame.assign(x="words"), "x"),  # fractions in the others: these are no codes
    ],
)
def test_a_file_unlike_the_others_is_named(
    tmp_path: Path, job: FolderJob, change: Callable[[pd.DataFrame], pd.DataFrame], column: str
) -> None:
    for name in ("1.csv", "2.csv"):
        csv(tmp_path / "s", table(60), name)
    csv(tmp_path / "s", change(table(60)), "3.csv")

    with pytest.raises(SchemaMismatch, match=r"3\.csv") as refused:
        snapshot(job, tmp_path / "s")

    assert refused.value.field == column


def test_an_unknown_column_is_refused_with_the_nearest_names(tmp_path: Path, job: FolderJob) -> None:
    with pytest.raises(InvalidSpec) as refused:
        snapshot(job, csv(tmp_path, table(60)), target="Y")

    assert refused.value.field == "target"
    assert "'y'" in refused.value.hint
