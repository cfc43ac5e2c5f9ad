"""What was converted once is not converted again: the snapshot's Parquet is known by the bytes and by their reading."""

import bz2
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from activities.compute import data
from everloop import contracts
from everloop.records import Blob, Snapshot
from everloop.specs import LifecycleSpec
from tests.job import FolderJob
from tests.stages import SLOT, spec_of

ROWS = 100


class Counting(FolderJob):
    """A job that knows how many files its snapshots converted."""

    def report(self, step: int, /, **values: float) -> None:
        super().report(step, **values)
        self.last = values


@pytest.fixture
def job(tmp_path: Path) -> Counting:
    (tmp_path / "s").mkdir()
    return Counting(tmp_path)


def month(folder: Path, name: str, first: int, value: Any = lambda n: n / 8) -> None:
    rows = "".join(f"{n},{value(n)},{n % 2}\n" for n in range(first, first + ROWS))
    (folder / name).write_text("n,x,y\n" + rows)


def taken(job: Counting, spec: LifecycleSpec) -> tuple[Snapshot, int]:
    """The snapshot, and how many files were converted for it."""
    kept = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    return kept, int(job.last["converted"])


def tables_of(job: Counting, kept: Snapshot) -> list[str]:
    return [file["table"]["sha256"] for file in json.loads(job.artifacts.get(kept.manifest))["files"]]


def test_a_folder_that_grew_converts_its_new_files_alone(tmp_path: Path, job: Counting) -> None:
    spec = spec_of(tmp_path / "s", "binary", "y")
    month(tmp_path / "s", "1.csv", 0)
    month(tmp_path / "s", "2.csv", 100)

    first, made = taken(job, spec)
    month(tmp_path / "s", "3.csv", 200)
    grown, more = taken(job, spec)
    same, none = taken(job, spec)

    assert (made, more, none) == (2, 1, 0)
    assert tables_of(job, grown)[:2] == tables_of(job, first)
    assert same == grown
    assert data.load(job.artifacts, grown).rows.to_pydict() == {
        "n": list(range(300)),
        "x": [n / 8 for n in range(300)],
        "y": [n % 2 for n in range(300)],
    }


def test_another_reading_of_the_same_bytes_is_converted_anew(tmp_path: Path, job: Counting) -> None:
    month(tmp_path / "s", "1.csv", 0, lambda n: -1 if n == 3 else n)
    spec = spec_of(tmp_path / "s", "binary", "y")
    declared = spec_of(tmp_path / "s", "binary", "y", columns={"x": {"type": "number", "missing": ["-1"]}})

    guessed, made = taken(job, spec)
    other, again = taken(job, declared)
    back, none = taken(job, spec)

    assert (made, again, none) == (1, 1, 0)
    assert data.load(job.artifacts, guessed).rows["x"].to_pylist()[2:5] == [2, -1, 4]
    assert data.load(job.artifacts, other).rows["x"].to_pylist()[2:5] == [2, None, 4]
    assert back.manifest == guessed.manifest


def test_old_files_are_converted_anew_where_a_new_one_changes_how_a_column_is_read(
    tmp_path: Path, job: Counting
) -> None:
    spec = spec_of(tmp_path / "s", "binary", "y")
    month(tmp_path / "s", "1.csv", 0, lambda n: n)
    taken(job, spec)
    month(tmp_path / "s", "2.csv", 100, lambda n: f"B{n}")

    kept, made = taken(job, spec)

    assert made == 2
    assert data.load(job.artifacts, kept).rows["x"].to_pylist()[99:101] == ["99", "B100"]


def test_a_conversion_that_is_lost_or_not_of_these_rows_is_made_again(tmp_path: Path, job: Counting) -> None:
    spec = spec_of(tmp_path / "s", "binary", "y")
    month(tmp_path / "s", "1.csv", 0)
    kept, _ = taken(job, spec)
    notes = [path for path in (tmp_path / "artifacts" / "made").rglob("*") if path.is_file()]
    other = job.artifacts.put(b"not a table")

    def after(write: Any) -> int:
        (note,) = notes
        write(note)
        again, made = taken(job, spec)
        assert again == kept
        return made

    assert after(lambda note: note.unlink()) == 1
    assert after(lambda note: note.write_bytes(b"{")) == 1
    assert after(lambda note: note.write_text(other.model_dump_json())) == 1
    (table,) = tables_of(job, kept)
    path = tmp_path / "artifacts" / "sha256" / table[:2] / table
    assert after(lambda _: path.unlink()) == 1
    assert job.artifacts.get(Blob(sha256=table, size_bytes=0))


def test_files_of_other_formats_are_read_in_pieces(tmp_path: Path, job: Counting) -> None:
    """150 MB of texts: neither a format of batches nor an unpacked file is ever whole in memory."""
    rows, batches, text = 3000, 50, "x" * 1000
    schema = pa.schema({"n": pa.int64(), "N": pa.string(), "y": pa.int64()})
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as out, pa.ipc.new_file(out, schema) as written:
        for place in range(batches):
            numbers = range(place * rows, (place + 1) * rows)
            texts = [f"{n}{text}" for n in numbers]
            written.write_batch(pa.record_batch([list(numbers), texts, [n % 2 for n in numbers]], schema=schema))
    lines = "".join(f'{{"n": {n}, "t": "{n % 9}{text}", "y": {n % 2}}}\n' for n in range(rows * 10)).encode()
    (tmp_path / "t.jsonl.bz2").write_bytes(bz2.compress(lines, 1))
    del lines
    before = pa.default_memory_pool().max_memory()

    tracemalloc.start()
    try:
        kept, _ = taken(job, spec_of(tmp_path / "t.arrow", "binary", "y"))
        other, _ = taken(job, spec_of(tmp_path / "t.jsonl.bz2", "binary", "y"))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (kept.rows, other.rows) == (rows * batches, rows * 10)
    assert most < 60 << 20
    assert pa.default_memory_pool().max_memory() - before < 100 << 20


def test_the_span_of_a_time_of_whole_years_days_or_seconds_is_found_in_pieces(tmp_path: Path, job: Counting) -> None:
    spans = {"year": [1990, 2020], "day": [20200131, 20240229], "at": [1.6e9, 1.7e9 + 0.25]}
    frame = pd.DataFrame({name: [ends[n % 2] for n in range(ROWS)] for name, ends in spans.items()})
    frame.assign(y=[n % 4 // 2 for n in range(ROWS)]).to_parquet(tmp_path / "t.parquet", row_group_size=7)

    found = {name: taken(job, spec_of(tmp_path / "t.parquet", "binary", "y", time=name))[0] for name in spans}

    assert [str(found["year"].time_from)[:10], str(found["year"].time_to)[:10]] == ["1990-01-01", "2020-01-01"]
    assert [str(found["day"].time_from)[:10], str(found["day"].time_to)[:10]] == ["2020-01-31", "2024-02-29"]
    assert found["at"].time_to is not None
    assert found["at"].time_to.timestamp() == 1.7e9 + 0.25
