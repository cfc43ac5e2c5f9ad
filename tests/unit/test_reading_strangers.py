"""Odd files of several scripts and formats: each is read right, or refused with a sentence that names what is odd."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from activities.compute import data
from activities.compute.profile import profile
from everloop import contracts
from everloop.errors import EverloopError
from tests.job import FolderJob
from tests.stages import SLOT, spec_of

ROWS = 120
TOWNS = ["Москва", "Казань", "Уфа"]
SIGNS = ["北京", "上海", "广州"]


def lines(header: str, line: Any, rows: int = ROWS) -> str:
    return header + "\n" + "".join(f"{line(row)}\n" for row in range(rows))


def read(job: FolderJob, path: Path, content: bytes, **source: str) -> data.Table:
    path.write_bytes(content)
    spec = spec_of(path, "binary", "y", source={"path": str(path), **source})
    kept = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    data.validate(contracts.ValidateRequest(spec=spec, snapshot=kept, slot=SLOT), job)
    return data.load(job.artifacts, kept)


def refused(job: FolderJob, path: Path, content: bytes, **source: str) -> EverloopError:
    """Why neither `init` nor a lifecycle takes the file, in the same words."""
    with pytest.raises(EverloopError) as caught:
        read(job, path, content, **source)
    if not source:
        with pytest.raises(EverloopError) as looked:
            profile(path, "y", None)
        assert str(looked.value) == str(caught.value)
    return caught.value


RUSSIAN = lines("город;цена;y", lambda n: f"{TOWNS[n % 3]};{n},5;{n % 2}")
CHINESE = lines("城市,价,y", lambda n: f"{SIGNS[n % 3]},{n},{n % 2}")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_letters_of_any_script_are_found(tmp_path: Path, job: FolderJob, encoding: str) -> None:
    found = read(job, tmp_path / "t.csv", RUSSIAN.encode(encoding))
    other = read(job, tmp_path / "z.csv", CHINESE.encode(encoding))

    assert found.rows["город"].to_pylist()[:3] == TOWNS
    assert found.rows["цена"].to_pylist()[:2] == [0.5, 1.5]
    assert other.rows["城市"].to_pylist()[:3] == SIGNS


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(RUSSIAN, "cp1251"), (RUSSIAN, "koi8-r"), (CHINESE, "gb18030"), (CHINESE.replace("京", "都"), "euc_jp")],
)
def test_a_code_that_the_bytes_do_not_tell_is_asked_for_and_then_read(
    tmp_path: Path, job: FolderJob, text: str, encoding: str
) -> None:
    text = text.replace("广", "広").replace("价", "値") if encoding == "euc_jp" else text
    error = refused(job, tmp_path / "t.csv", text.encode(encoding))
    found = read(job, tmp_path / "t.csv", text.encode(encoding), encoding=encoding)

    assert str(error) == "t.csv is not UTF-8, and its letters are not those of western languages (cp1252)"
    assert "say its encoding" in error.hint
    assert found.rows.column_names[0] in text
    assert set(found.rows[0].to_pylist()) <= set(text.replace(";", ",").replace("\n", ",").split(","))


def test_western_words_need_no_word_from_anybody(tmp_path: Path, job: FolderJob) -> None:
    german = lines("Größe;Preis;Ort;y", lambda n: f"{n},25;1.{n:03d},50;{['Köln', 'Düren'][n % 2]};{n % 2}")
    words = ["créée", "Noël", "l\u2019été"]
    french = lines("cœur;y", lambda n: f"{words[n % 3]};{n % 2}")

    found = read(job, tmp_path / "de.csv", german.encode("cp1252"))
    other = read(job, tmp_path / "fr.csv", french.encode("cp1252"))

    assert found.rows["Größe"].to_pylist()[:2] == [0.25, 1.25]
    assert found.rows["Preis"].to_pylist()[:2] == [1000.5, 1001.5]
    assert set(found.rows["Ort"].to_pylist()) == {"Köln", "Düren"}
    assert set(other.rows["cœur"].to_pylist()) == set(words)


def test_a_declared_encoding_that_is_none_of_the_file_is_named(tmp_path: Path, job: FolderJob) -> None:
    text = lines("a,b,y", lambda n: f"é{n % 4},{n},{n % 2}")

    error = refused(job, tmp_path / "t.csv", text.encode("latin-1"), encoding="utf-8")

    assert (str(error), error.field) == ("t.csv is not utf-8 text", "source.encoding")


def json_lines(line: Any) -> bytes:
    return lines(json.dumps({"a": 0, "u": {"n": 0}, "y": 0}), line).encode()


def row(n: int) -> str:
    return json.dumps({"a": n, "u": {"n": n * 3, "tags": ["x"]}, "big": 2**63 + n, "y": n % 2})


def test_json_lines_keep_whole_numbers_and_nested_objects(tmp_path: Path, job: FolderJob) -> None:
    found = read(job, tmp_path / "t.jsonl", json_lines(row))

    assert found.rows["a"].type == pa.int64()
    assert found.rows["a"].to_pylist()[:3] == [0, 0, 1]
    assert found.rows["big"].to_pylist()[1] == Decimal(2**63)
    assert json.loads(found.rows["u"].to_pylist()[2]) == {"n": 3, "tags": ["x"]}


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("[1]", "line 62 is no JSON object but an array"),
        ("7", "line 62 is no JSON object but a number"),
        ('{"a": 1, "y": ', "line 62 is no JSON (expecting value)"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, job: FolderJob, odd: str, said: str) -> None:
    error = refused(job, tmp_path / "t.jsonl", json_lines(lambda n: odd if n == 60 else row(n)))

    assert str(error) == f"t.jsonl: {said}"
    assert "one object" in error.hint


def test_parquet_of_every_type_is_read_or_its_column_is_named(tmp_path: Path, job: FolderJob) -> None:
    days = [datetime(2024, 1, 1 + day, tzinfo=UTC) for day in range(28)]
    table = {
        "": pa.array([["a", "b", None][n % 3] for n in range(ROWS)]).dictionary_encode(),
        "price": pa.array([Decimal(n) / 100 for n in range(ROWS)], pa.decimal128(12, 2)),
        "at": pa.array([days[n % 28] for n in range(ROWS)], pa.timestamp("ns", "Asia/Tokyo")),
        "took": pa.array(range(ROWS), pa.duration("s")),
        "code": pa.array(["é", "b"] * (ROWS // 2), pa.string_view()),
        "half": pa.array([1.5] * ROWS, pa.float32()),
        "tags": pa.array([[n] for n in range(ROWS)]),
        "clock": pa.array(range(ROWS), pa.time32("ms")),
        "y": [n % 2 for n in range(ROWS)],
    }
    pa.parquet.write_table(pa.table(list(table.values()), names=list(table)), tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()

    found = read(job, tmp_path / "t.parquet", content)
    seen = profile(tmp_path / "t.parquet", "y", None)

    assert found.rows["unnamed_1"].to_pylist()[:3] == ["a", "b", None]
    assert found.rows["price"].to_pylist()[1] == Decimal("0.01")
    assert found.rows["at"].to_pylist()[1] == datetime(2024, 1, 2, tzinfo=UTC)
    assert found.rows["took"].to_pylist()[2] == 2_000_000
    assert found.rows["code"].to_pylist()[:2] == ["é", "b"]
    assert seen["unused"]["tags"].startswith("values of type list")
    assert seen["unused"]["clock"] == "values of type time32[ms] are not understood"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"", "t.csv is empty"),
        ("t.csv", b"\n\n\n", "t.csv has no header line"),
        ("t.csv", b"a,b,y\n", "t.csv has a header but no rows"),
        ("t.csv", lines("y", lambda n: n % 2).encode(), "t.csv is no table: its first line has one column"),
        ("t.csv", lines("a,a,y", lambda n: f"{n},1,{n % 2}").encode(), "t.csv has two columns named 'a'"),
        (
            "t.csv",
            lines("a,b,y", lambda n: f"{n},1,{n % 2}{',9' * (n == 77)}").encode(),
            "t.csv: row 79 (the header is row 1) has 4 fields where the header has 3",
        ),
        (
            "t.csv",
            lines("a,b,y", lambda n: f'{n},"w{n % 3}{chr(34) * (n != 77)},{n % 2}').encode(),
            "t.csv: row 79 (the header is row 1) has a quote that does not end",
        ),
        ("t.csv.gz", lines("a,b,y", lambda n: f"{n},1,{n % 2}").encode(), "t.csv.gz is not readable as gz"),
        ("t.xlsx", b"PK\x03\x04 nothing", "t.xlsx is not a readable Excel file"),
        ("t.parquet", b"PAR1 nothing", "t.parquet is not a readable Parquet file"),
    ],
)
def test_a_file_that_is_no_table_is_named_with_its_row(
    tmp_path: Path, job: FolderJob, name: str, content: bytes, said: str
) -> None:
    assert str(refused(job, tmp_path / name, content)).startswith(said)


def test_a_short_table_of_many_columns_is_read(tmp_path: Path, job: FolderJob) -> None:
    names = ",".join(f"c{place}" for place in range(300))
    text = lines(f"{names},y", lambda n: ",".join(str(n * place % 97) for place in range(300)) + f",{n % 2}")
    path = tmp_path / "t.csv"
    path.write_text(text)

    kept = data.snapshot(contracts.SnapshotRequest(spec=spec_of(path, "binary", "y"), slot=SLOT), job)
    found = data.load(job.artifacts, kept)

    assert [found.rows[f"c{place}"][7].as_py() for place in (0, 1, 299)] == [0, 7, 7 * 299 % 97]
    assert found.column("c1").distinct == 97
