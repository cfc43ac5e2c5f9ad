"""Files as strangers write them: lines before the header, encodings, ends of lines, archives and sheets."""

import bz2
import gzip
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from activities.compute import data, features
from activities.compute.features import Pipeline
from activities.compute.profile import profile
from everloop import contracts
from everloop.cli.rows import rows_of
from everloop.errors import InvalidData, InvalidSpec
from everloop.init import name_from
from everloop.reading import Reading
from everloop.rows import from_csv
from everloop.specs import LifecycleSpec
from tests.job import FolderJob
from tests.reading import ROWS, first_rows, read, taken, written
from tests.stages import SLOT, spec_of, table


def test_quotes_that_spark_escapes_are_quotes_also_far_below(tmp_path: Path, job: FolderJob) -> None:
    items = ['"12\\" pipe"', '"nail"', '"\\"L\\" box"']
    path = written(tmp_path, "item,n,y", lambda n: f"{items[n % 3] if n > 3000 else 'nail'},{n},{n % 2}", rows=3300)

    found = read(job, path)
    schema = {"task": "binary", "fields": [], "target": "y"}
    asked = from_csv('item,n\n"12\\" pipe",1\n', "ask.csv", schema)

    assert set(found.rows["item"].to_pylist()) == {'12" pipe', "nail", '"L" box'}
    assert asked[0]["item"] == '12" pipe'


@pytest.mark.parametrize("before", ["sep=;\n", "\ufeffsep=;\n", "Report of May\n\n", "# made by us\n# v2\n"])
def test_lines_before_the_header_are_passed_over(tmp_path: Path, job: FolderJob, before: str) -> None:
    path = written(tmp_path, before + "x;n;y", lambda n: f"0.{n};{n};{n % 2}")

    found = read(job, path)
    asked = from_csv(path.read_text("utf-8"), "t.csv", {"task": "binary", "fields": [], "target": "y"})

    assert found.rows.column_names == list(asked[0]) == ["x", "n", "y"]
    assert len(found) == len(asked) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_an_encoding_is_found_and_named(tmp_path: Path, job: FolderJob, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(("größe,y\n" + "".join(f"né{n % 3},{n % 2}\n" for n in range(ROWS))).encode(encoding))

    kept = taken(job, path)

    assert set(data.load(job.artifacts, kept).rows["größe"].to_pylist()) == {"né0", "né1", "né2"}
    reading = Reading.model_validate_json(job.artifacts.get(kept.reading))
    assert reading.dialect.encoding == encoding.removesuffix("-sig")


@pytest.mark.parametrize("ends", ["\r\n", "\r", "mixed"])
def test_lines_may_end_in_any_way_also_within_quotes(tmp_path: Path, job: FolderJob, ends: str) -> None:
    path = tmp_path / "t.csv"
    lines = ['x,"a\nname",y', *(f'{n},"line\nbreak",{n % 2}' for n in range(ROWS))]
    text = "".join(line + (("\r\n", "\n")[place % 2] if ends == "mixed" else ends) for place, line in enumerate(lines))
    path.write_bytes(text.encode())

    found = read(job, path)

    assert found.rows.column_names == ["x", "a\nname", "y"]
    assert found.rows["x"].to_pylist() == list(range(ROWS))
    assert set(found.rows["a\nname"].to_pylist()) == {"line\nbreak"}


@pytest.mark.parametrize("last", ["\r\n", ""], ids=["ended", "open"])
def test_a_file_from_windows_is_read_to_its_last_row(tmp_path: Path, job: FolderJob, last: str) -> None:
    """Every line ends in CR LF, also those within quotes: nothing in the file ends otherwise."""
    path = tmp_path / "t.csv"
    lines = ["x,a,y", *(f'{n},"line\r\nbreak, ""{n % 3}""",{n % 2}' for n in range(ROWS))]
    path.write_bytes(("\r\n".join(lines) + last).encode())

    found = read(job, path)

    assert found.rows["x"].to_pylist() == list(range(ROWS))
    assert found.rows["y"].to_pylist() == [n % 2 for n in range(ROWS)]
    assert set(found.rows["a"].to_pylist()) == {f'line\r\nbreak, "{n}"' for n in range(3)}


def test_names_that_differ_in_case_or_a_blank_alone_are_two_names(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "Country,country, lead,lead,y", lambda n: f"{n},{n + 1},{n + 2},{n + 3},{n % 2}")
    frame = pd.DataFrame({"Country": range(ROWS), "country": range(1, ROWS + 1), "y": [0, 1] * (ROWS // 2)})
    frame.to_parquet(tmp_path / "t.parquet")

    names = {path: ["Country", "country", " lead", "lead"], tmp_path / "t.parquet": ["Country", "country"]}
    for source, expected in names.items():
        kept = taken(job, source)
        found = data.load(job.artifacts, kept)
        drawn = json.loads(job.artifacts.get(kept.profile))["columns"]
        assert [sum(rows for _, rows in column["bars"]) for column in drawn] == [ROWS] * len(found.rows.column_names)
        assert [first_rows(found, name, 1) for name in expected] == [[place] for place in range(len(expected))]


def test_the_same_rows_are_the_same_in_every_format(tmp_path: Path, job: FolderJob) -> None:
    frame = pd.DataFrame(
        {"n": range(ROWS), "x": np.arange(ROWS) / 8, "c": ["a", "b"] * (ROWS // 2), "b": [True, False] * (ROWS // 2)}
    ).assign(t=pd.date_range("2024", periods=ROWS, freq="h"), y=lambda f: f.n % 2)
    text = frame.to_csv(index=False)
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "t.csv.bz2").write_bytes(bz2.compress(text.encode()))
    with pa.output_stream(str(tmp_path / "z.csv.zst"), compression="zstd") as out:
        out.write(text.encode())
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True, date_format="iso")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_feather(tmp_path / "t.feather")

    rows = {
        path.name: read(job, path).rows.to_pydict()
        for path in tmp_path.iterdir()
        if path.suffix != "" and path.is_file()
    }

    assert len(rows) == 8
    assert all(found == rows["t.csv"] for found in rows.values()), {
        name: str(found)[:300] for name, found in rows.items()
    }
    assert rows["t.csv"]["n"] == list(range(ROWS))


def test_a_name_that_is_not_utf_8_is_read_in_a_folder_and_by_a_glob(tmp_path: Path, job: FolderJob) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for name in (b"a.csv", b"\xff\xfe.csv"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(
            "x,y\n" + "".join(f"{n},{n % 2}\n" for n in range(ROWS))
        )
    (folder / "notes.md").write_text("no rows")

    assert len(read(job, folder)) == len(read(job, folder / "*.csv")) == 2 * ROWS
    assert profile(folder, "y", None)["rows"] == 2 * ROWS
    assert json.loads(taken(job, folder).model_dump_json())["files"] == 2


def test_pandas_unnamed_index_is_a_column_that_can_be_the_time_and_no_feature(tmp_path: Path, job: FolderJob) -> None:
    frame = table(200).set_index(pd.date_range("2024", periods=200, freq="h"))
    frame.to_parquet(tmp_path / "t.parquet")

    kept = taken(job, tmp_path / "t.parquet", time="__index_level_0__")
    prepared = features.prepare(
        contracts.PrepareRequest(
            spec=spec_of(tmp_path / "t.parquet", "binary", "y"), snapshot=kept, champion=None, slot=SLOT
        ),
        job,
    )

    assert str(kept.time_to) == "2024-01-09 07:00:00+00:00"
    names = {entry.name for entry in Pipeline.read(job.artifacts, prepared.pipeline).inputs}
    assert names == {"x", "c"}


def test_two_files_of_other_scripts_are_two_models(tmp_path: Path) -> None:
    names = [name_from(Path(name)) for name in ("房价.csv", "客户.csv", "Churn_2024.csv.gz", "Ünal.csv")]

    assert len(set(names)) == 4
    assert names[2:] == ["churn_2024", "unal"]
    for name in (*names, "My_Model"):
        LifecycleSpec.model_validate({"model": name, "task": "binary", "target": "y", "source": {"path": "/t.csv"}})


def test_an_unknown_column_under_columns_is_refused(tmp_path: Path, job: FolderJob) -> None:
    with pytest.raises(InvalidSpec, match="columns: the data has no column 'age'"):
        taken(job, written(tmp_path, "x,y", lambda n: f"{n},{n % 2}"), columns={"age": {"type": "number"}})


SCRIPTS = {
    "cp1251": ("возраст", "Тверь"),
    "gb18030": ("年龄", "北京市"),
    "cp932": ("年齢", "東京都"),
    "cp949": ("나이", "서울시"),
    "cp1256": ("العمر", "الرياض"),
}


@pytest.mark.parametrize("encoding", SCRIPTS)
def test_names_that_the_spec_says_tell_the_encoding_of_a_file(tmp_path: Path, job: FolderJob, encoding: str) -> None:
    """In training and where a file of rows is asked about."""
    name, value = SCRIPTS[encoding]
    path = tmp_path / "t.csv"
    lines = [f"{name},x,y", *(f"{value},{n * 7919 % 97},{n % 2}" for n in range(ROWS))]
    path.write_bytes("\n".join(lines).encode(encoding))

    kept = taken(job, path, columns={name: {"type": "category"}})
    schema = {"task": "binary", "fields": [{"name": name, "kind": "category"}, {"name": "x", "kind": "number"}]}

    assert Reading.model_validate_json(job.artifacts.get(kept.reading)).dialect.encoding == encoding
    assert set(data.load(job.artifacts, kept).rows[name].to_pylist()) == {value}
    assert rows_of(str(path), lambda: schema | {"target": "y"})[0][name] == value


def test_text_of_another_script_is_not_taken_for_western_text(tmp_path: Path, job: FolderJob) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\n".join(["town,y", *(f"Тверь,{n % 2}" for n in range(ROWS))]).encode("cp1251"))

    with pytest.raises(InvalidData, match="not those of western languages") as refused:
        read(job, path)
    kept = taken(job, path, source={"path": str(path), "encoding": "cp1251"})

    assert "everloop init --encoding" in refused.value.hint
    assert set(data.load(job.artifacts, kept).rows["town"].to_pylist()) == {"Тверь"}


def test_a_file_of_rows_in_latin_1_is_read_as_training_reads_one(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_bytes("größe\tort\n1,5\tKöln\n".encode("cp1252"))
    schema = {"task": "binary", "fields": [{"name": "größe", "kind": "number"}], "target": "y"}

    assert rows_of(str(tmp_path / "rows.tsv"), lambda: schema) == [{"größe": 1.5, "ort": "Köln"}]


def sheet_of(rows: list[list[Any]]) -> bytes:
    """An Excel file of one sheet, as small as they come."""
    kinds = {str: 't="inlineStr"><is><t>{}</t></is>', bool: 't="b"><v>{:d}</v>'}
    cells = (
        "".join(f"<c {kinds.get(type(cell), '><v>{}</v>').format(cell)}</c>" for cell in row if cell is not None)
        for row in rows
    )
    body = "".join(f"<row>{row}</row>" for row in cells)
    main, office = "http://schemas.openxmlformats.org/spreadsheetml/2006/main", "officeDocument/2006/relationships"
    links = f'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type="http://schemas.openxmlformats.org/{office}/'
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
        "_rels/.rels": f'<Relationships {links}officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/_rels/workbook.xml.rels": f'<Relationships {links}worksheet" Target="worksheets/s.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="http://schemas.openxmlformats.org/{office}"><sheets>'
        '<sheet name="s" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/worksheets/s.xml": f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>',
    }
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as book:
        for name, text in parts.items():
            book.writestr(name, text)
    return made.getvalue()


def test_an_excel_sheet_with_a_title_is_read(tmp_path: Path, job: FolderJob) -> None:
    rows = [[n, n / 8, ("NA", "EU")[n % 2], n % 3 == 0, n % 2] for n in range(ROWS)]
    (tmp_path / "t.xlsx").write_bytes(sheet_of([["Report of May"], ["n", "x", "region", "b", "y"], *rows]))

    found = read(job, tmp_path / "t.xlsx")

    assert found.rows.column_names == ["n", "x", "region", "b", "y"]
    assert found.rows["n"].type == pa.int64()
    assert [list(row.values()) for row in found.rows.to_pylist()] == rows
