"""How a text file is laid out is found, and a quote, a comment or a delimiter of another kind loses no value."""

from pathlib import Path
from typing import Any

import pytest

from activities.compute import data
from everloop import contracts
from everloop.reading import Reading
from everloop.rows import from_csv
from tests.job import FolderJob
from tests.stages import SLOT, spec_of

ROWS = 120
SCHEMA = {"task": "binary", "fields": [], "target": "y"}


def read(job: FolderJob, path: Path, text: str) -> tuple[data.Table, Reading]:
    path.write_text(text, encoding="utf-8", newline="")
    kept = data.snapshot(contracts.SnapshotRequest(spec=spec_of(path, "binary", "y"), slot=SLOT), job)
    assert kept.reading is not None
    return data.load(job.artifacts, kept), Reading.model_validate_json(job.artifacts.get(kept.reading))


def lines(header: str, line: Any, rows: int = ROWS) -> str:
    return header + "\n" + "".join(f"{line(row)}\n" for row in range(rows))


@pytest.mark.parametrize("between", list(",;|\t:~^ "))
def test_values_are_separated_by_what_stands_between_them(tmp_path: Path, job: FolderJob, between: str) -> None:
    text = lines(between.join(["n", "word", "y"]), lambda n: between.join([str(n), f"w{n % 7}", str(n % 2)]))

    found, reading = read(job, tmp_path / "t.csv", text)

    assert reading.dialect.delimiter == between
    assert found.rows.to_pydict() == {
        "n": list(range(ROWS)),
        "word": [f"w{n % 7}" for n in range(ROWS)],
        "y": [n % 2 for n in range(ROWS)],
    }
    assert list(from_csv(text, "t.csv", SCHEMA)[1]) == ["n", "word", "y"]


QUOTING = {
    "single quotes": (lambda n: f"{n},'Rome, {n % 5}',{n % 2}", lambda n: f"Rome, {n % 5}"),
    "single quotes, doubled": (lambda n: f"{n},'it''s, {n % 5}',{n % 2}", lambda n: f"it's, {n % 5}"),
    "single quotes, escaped": (lambda n: f"{n},'it\\'s, {n % 5}',{n % 2}", lambda n: f"it's, {n % 5}"),
    "apostrophes in words": (lambda n: f"{n},o'neill {n % 5}'s,{n % 2}", lambda n: f"o'neill {n % 5}'s"),
    "an apostrophe before a word": (lambda n: f"{n},'t is {n % 5},{n % 2}", lambda n: f"'t is {n % 5}"),
    "both": (lambda n: f"{n},\"it's {n % 5}, 'now'\",{n % 2}", lambda n: f"it's {n % 5}, 'now'"),
    "after a blank": (lambda n: f'{n}, "Rome, {n % 5}", {n % 2}', lambda n: f"Rome, {n % 5}"),
    "inches": (lambda n: f'{n},"{n % 5}"" pipe",{n % 2}', lambda n: f'{n % 5}" pipe'),
    "JSON": (lambda n: f'{n},"{{""k"": [{n % 5}, 1]}}",{n % 2}', lambda n: f'{{"k": [{n % 5}, 1]}}'),
}


@pytest.mark.parametrize("name", QUOTING)
def test_what_is_quoted_is_one_value(tmp_path: Path, job: FolderJob, name: str) -> None:
    line, right = QUOTING[name]

    found, _ = read(job, tmp_path / "t.csv", lines("n, word, y", line))

    assert found.rows["word"].to_pylist() == [right(n) for n in range(ROWS)]
    assert found.rows["n"].to_pylist() == list(range(ROWS))


def test_na_in_single_quotes_is_a_word(tmp_path: Path, job: FolderJob) -> None:
    words = "'NA'", "'E, U'"

    found, _ = read(job, tmp_path / "t.csv", lines("n,word,y", lambda n: f"{n},{words[n % 2]},{n % 2}"))

    assert set(found.rows["word"].to_pylist()) == {"NA", "E, U"}


def test_comments_are_no_rows_and_rows_that_begin_like_one_are(tmp_path: Path, job: FolderJob) -> None:
    def line(n: int) -> str:
        note = "# checked, until here\n" if n == 60 else ""
        return f'{note}#{n},"two\n# lines, {n}",{n % 2}'

    found, reading = read(job, tmp_path / "t.csv", lines("# made by us\n# v2\nid,text,y", line))

    assert reading.dialect.comment == "#"
    assert found.rows["id"].to_pylist() == [f"#{n}" for n in range(ROWS)]
    assert found.rows["text"].to_pylist() == [f"two\n# lines, {n}" for n in range(ROWS)]


def test_a_comment_among_the_rows_alone_is_no_row(tmp_path: Path, job: FolderJob) -> None:
    found, _ = read(
        job, tmp_path / "t.csv", lines("n,x,y", lambda n: f"{'# half' + chr(10) if n == 60 else ''}{n},1.5,{n % 2}")
    )

    assert found.rows["n"].to_pylist() == list(range(ROWS))


@pytest.mark.parametrize("title", ["y", "Report, of May\n", "y;x\nall amounts, in EUR"])
def test_the_header_is_the_line_that_names_most_columns(tmp_path: Path, job: FolderJob, title: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(lines(f"{title}\nx; cost, EUR ;y", lambda n: f"{n};{n},5;{n % 2}"), encoding="utf-8")
    spec = spec_of(path, "binary", "y", features={"include": ["cost, EUR", "x"]})

    found = data.load(job.artifacts, data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job))

    assert found.rows.column_names == ["x", "cost, EUR", "y"]
    assert found.rows["cost, EUR"].to_pylist()[:2] == [0.5, 1.5]
    assert len(found) == ROWS
