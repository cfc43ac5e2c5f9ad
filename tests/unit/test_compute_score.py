"""Scoring a file: every row that can be answered is, with its own columns; the others are kept apart, and said why."""

import csv
import io
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from activities.compute import score
from activities.compute.inference import Model
from everloop.contracts import ChunkRequest, CutRequest, JoinRequest
from everloop.errors import DatasetMissing, InvalidData
from everloop.records import Champion
from everloop.scores import Joined
from tests import api_parts as parts
from tests.job import FolderJob

AT = datetime(2026, 1, 1, tzinfo=UTC)
LINES = [f"a-{place};{place % 60},5;{'car' if place % 2 else 'house'};note {place}" for place in range(250)]


def champion(job: FolderJob) -> Champion:
    data, signature = parts.tiny_model()
    blob = job.artifacts.put(data)
    said = job.artifacts.put(signature.model_dump_json().encode())
    return Champion(version=3, model_digest=blob.sha256, model=blob, signature=said, seen=said, release_seq=1)


def scored(job: FolderJob, path: Path, form: str = "csv", rows: int = 100) -> Joined:
    asked = champion(job)
    cut = score.cut(CutRequest(path=str(path), champion=asked, chunk_rows=rows), job)
    chunks = [score.chunk(ChunkRequest(champion=asked, chunk=each, asked_at=AT), job) for each in cut.chunks]
    request = JoinRequest.model_validate(
        {
            "form": form,
            "scored": tuple(each.scored for each in chunks),
            "rejects": tuple(each.rejects for each in chunks if each.rejects),
            "rows": sum(each.rows for each in chunks),
            "rejected": sum(each.rejected for each in chunks),
        }
    )
    return score.join(request, job)


def table(job: FolderJob, digest: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(job.artifacts.get(digest).decode())))


def test_a_csv_is_answered_piece_by_piece_and_bad_rows_are_rows_of_a_file_of_their_own(
    job: FolderJob, tmp_path: Path
) -> None:
    lines = list(LINES)
    lines[7] = "a-7;old;car;note 7"
    lines[120] = "a-120;1"
    lines[130] = "a-130;;car;note 130"  # this graph knows no answer to it
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["account;age;purpose;note", *lines]) + "\n")

    joined = scored(job, path)

    assert (joined.rows, joined.rejected) == (247, 3)
    rows = table(job, joined.out.sha256)
    assert [row["account"] for row in rows[:8]] == [f"a-{place}" for place in (0, 1, 2, 3, 4, 5, 6, 8)]
    assert rows[3]["age"] == "3,5" and rows[3]["note"] == "note 3"  # as it was written
    data, signature = parts.tiny_model()
    (expected,) = Model(data, signature).answer([{"age": 3.5, "purpose": "car"}], [AT]).rows()
    assert (rows[3]["prediction"], float(rows[3]["probability"])) == (expected["label"], expected["probability"])
    assert float(rows[3]["probability:bad"]) == pytest.approx(1 - float(rows[3]["probability:good"]))
    assert {row["model_version"] for row in rows} == {"3"}
    assert joined.rejects is not None
    first, second, third = table(job, joined.rejects.sha256)
    assert (first["everloop:row"], first["everloop:field"], first["account"]) == ("8", "age", "a-7")
    assert "'age' is str 'old'; expected a number or null" in first["everloop:reason"]
    assert (second["everloop:row"], second["everloop:reason"]) == (
        "121",
        "it has 2 fields where the header has 4",
    )
    assert (third["everloop:row"], third["everloop:reason"]) == ("131", "the graph answered NaN or Infinity")

    mended = tmp_path / "mended.csv"
    mended.write_bytes(job.artifacts.get(joined.rejects.sha256).replace(b'"old"', b'"7"'))
    again = scored(job, mended)
    assert (again.rows, again.rejected) == (2, 1)
    assert list(table(job, again.out.sha256)[0])[:4] == ["account", "age", "purpose", "note"]
    assert again.rejects is not None and table(job, again.rejects.sha256)[0]["everloop:row"] == "3"


def test_parquet_in_and_out_keeps_the_types_and_the_same_file_gives_the_same_bytes(
    job: FolderJob, tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    ages = [float(place % 60) for place in range(250)]
    rows = pa.table({"age": ages, "purpose": ["car", "house"] * 125, "prediction": list(range(250))})
    pa.parquet.write_table(rows, path)

    first, second = scored(job, path, "parquet"), scored(job, path, "parquet")

    assert first == second
    with job.artifacts.open_local(first.out) as made:
        found = pa.parquet.read_table(made)
    assert found.num_rows == 250
    assert found["prediction"].to_pylist() == list(range(250))  # the file's own
    assert set(found["prediction_"].to_pylist()) <= {"good", "bad"}
    assert found.schema.field("age").type == "double" and found.schema.field("model_version").type == "int32"
    assert first.rejects is None


def test_lists_and_objects_of_a_parquet_file_are_json_in_a_csv(job: FolderJob, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    beside = {"tags": [["new", "old"], None], "seen": [{"at": AT.date()}, {"at": None}]}
    pa.parquet.write_table(pa.table({"age": [3.0, 4.0], "purpose": ["car", "house"], **beside}), path)

    first, second = table(job, scored(job, path).out.sha256)

    assert (first["tags"], first["seen"], second["tags"]) == ('["new", "old"]', '{"at": "2026-01-01"}', "")


def test_a_file_that_lacks_a_column_is_refused_with_the_first_one_and_so_is_none(
    job: FolderJob, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("account,note\n1,a\n")
    with pytest.raises(InvalidData, match="lacks 'age', 'purpose'") as told:
        scored(job, path)
    assert told.value.field == "age"
    with pytest.raises(DatasetMissing, match="no file"):
        scored(job, tmp_path / "nowhere.csv")
    path.write_text("age,purpose\n")
    with pytest.raises(InvalidData, match="no rows"):
        scored(job, path)
