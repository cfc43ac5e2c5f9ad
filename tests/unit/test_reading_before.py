"""What the first reader kept goes on, and its champions can be replaced."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from activities.compute import data, features
from activities.compute.data import first, first_folder, seen
from everloop import contracts
from everloop.records import Champion, Snapshot
from tests.job import FolderJob
from tests.reading import ROWS, written
from tests.stages import SLOT, Passed, spec_of


def old_champion(job: FolderJob, passed: Passed, path: Path) -> Champion:
    """The same model as the first reader would have left it."""
    old = first_folder.table_of(job.artifacts, passed.snapshot)
    target = data.target_of(old, spec_of(path, "binary", "y"))
    seen.keep_seen(old, target.labelled, job.scratch / "seen.npz")
    with np.load(job.scratch / "seen.npz", allow_pickle=False) as stored:
        kept = {name: stored[name] for name in ("hashes", "reading")}  # it knew no version
    np.savez(job.scratch / "seen.npz", **kept)
    return passed.champion().model_copy(update={"seen": job.artifacts.put_file(job.scratch / "seen.npz")})


@pytest.mark.parametrize("timed", [False, True])
def test_a_champion_of_the_first_reader_can_be_replaced(tmp_path: Path, job: FolderJob, timed: bool) -> None:
    jobs = [" Nurse", "Clerk"]  # the first reader kept the blank: another hash
    months = {"1.csv": 1, "2.csv": 2}
    (tmp_path / "s").mkdir()

    def month(name: str, seed: int) -> None:
        random = np.random.default_rng(seed)
        rows = [
            f"2024-{months[name]:02d}-{n % 28 + 1:02d},{jobs[n % 2]},{random.normal():.6f},{random.integers(2)}"
            for n in range(300)
        ]
        (tmp_path / "s" / name).write_text("t,job,x,y\n" + "\n".join(rows) + "\n")

    month("1.csv", 1)
    spec = spec_of(tmp_path / "s", "binary", "y", time="t" if timed else None, training={"rounds": 3})
    champion = old_champion(job, Passed(job, spec), tmp_path / "s")
    month("2.csv", 2)
    kept = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    request = contracts.PrepareRequest(spec=spec, snapshot=kept, champion=champion, slot=SLOT)

    whole = data.load(job.artifacts, kept)
    unseen, unmatched = seen.unseen(whole, np.arange(len(whole)), request, job.artifacts)

    assert unmatched == ()
    assert unseen.tolist() == [False] * 300 + [True] * 300


def test_a_snapshot_of_the_first_reader_still_loads_and_goes_on(tmp_path: Path, job: FolderJob) -> None:
    source = written(tmp_path, "t,x,y", lambda n: f"{n % 28 + 1:02d}.01.2024,{n * 7919 % 97},{n % 2}")
    part = first.read(source, ".csv", "t.csv")
    columns = data.describe(part)
    pa.parquet.write_table(part, tmp_path / "part.parquet")
    file = {"name": "t.csv", "rows": ROWS, "source": job.artifacts.put_file(source).model_dump()}
    file["table"] = job.artifacts.put_file(tmp_path / "part.parquet").model_dump()
    manifest = {"files": [file], "columns": [column.model_dump() for column in columns]}
    kept = Snapshot.model_validate(
        {
            "manifest": job.artifacts.put(json.dumps(manifest).encode()).model_dump(),
            "rows": ROWS,
            "files": 1,
            "size_bytes": 1,
            "columns": columns,
            "schema_digest": data.schema_digest(columns),
        }
    )
    spec = spec_of(source, "binary", "y", time="t")

    whole = data.load(job.artifacts, kept)
    prepared = features.prepare(contracts.PrepareRequest(spec=spec, snapshot=kept, champion=None, slot=SLOT), job)

    assert whole.column("t").layouts == ("%d.%m.%Y",)
    assert data.time_layouts(whole, "t") == ("%d.%m.%Y",)
    assert prepared.train_rows + prepared.validation_rows + prepared.test_rows == ROWS
    assert data.target_of(whole, spec).type == ""  # answered as text, as its model always did
