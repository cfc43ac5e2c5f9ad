"""An exception that nobody expected names the column or the file that was worked on, in every room of the jobs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from activities.compute import data
from everloop import contracts, engine
from everloop.errors import InvalidData, JobFailed, naming, unknown
from everloop.records import Snapshot
from tests.job import FolderJob
from tests.stages import SLOT, spec_of

ROWS = 120


def told(root: Path, function: str, request: Any) -> dict[str, str]:
    """The error that a real child leaves."""
    folder = root / "job"
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    order = {"root": "activities.compute", "function": function, "request": request.model_dump(mode="json")}
    order |= {"artifacts": str(root / "artifacts"), "predictions_dir": str(root / "predictions")}
    order |= {"digest": "", "log": "", "floor_bytes": 0}
    (folder / "request.json").write_text(json.dumps(order))
    command = [sys.executable, "-m", "activities.jobs.child", str(folder)]
    done = subprocess.run(command, env=engine.environment(), capture_output=True, text=True, check=True, timeout=120)
    assert "Traceback" in done.stderr
    found: dict[str, str] = json.loads((folder / "error.json").read_text())
    return found


def broken(job: FolderJob, folder: Path) -> Snapshot:
    """A snapshot in whose table a fault of ours left lists in the column `odd`."""
    path = folder / "t.csv"
    path.write_text("x,odd,y\n" + "".join(f"{n * 7919 % 97},{n},{n % 2}\n" for n in range(ROWS)))
    kept = data.snapshot(contracts.SnapshotRequest(spec=spec_of(path, "binary", "y"), slot=SLOT), job)
    manifest = json.loads(job.artifacts.get(kept.manifest))
    table = data.load(job.artifacts, kept).rows
    lists = pa.array([[n] for n in range(ROWS)], pa.list_(pa.int64()))
    pa.parquet.write_table(table.set_column(1, "odd", lists), folder / "odd.parquet")
    manifest["files"][0]["table"] = job.artifacts.put_file(folder / "odd.parquet").model_dump()
    return kept.model_copy(update={"manifest": job.artifacts.put(json.dumps(manifest).encode())})


@pytest.mark.parametrize("stage", ["data.validate", "features.prepare"])
def test_a_stage_that_stumbles_names_the_column(tmp_path: Path, stage: str) -> None:
    kept = broken(FolderJob(tmp_path), tmp_path)
    spec = spec_of(tmp_path / "t.csv", "binary", "y")
    request: Any = contracts.ValidateRequest(spec=spec, snapshot=kept, slot=SLOT)
    if stage == "features.prepare":
        request = contracts.PrepareRequest(spec=spec, snapshot=kept, champion=None, slot=SLOT)

    error = told(tmp_path, stage, request)

    assert error["error"] == "JobFailed"
    assert error["message"].startswith("column 'odd': ")
    assert error["field"] == "odd"
    assert "features.exclude" in error["hint"]


def test_a_snapshot_that_stumbles_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for name in ("1.csv", "2.csv"):
        (folder / name).write_text("x,y\n" + "".join(f"{n}{name[0]},{n % 2}\n" for n in range(ROWS)))
    spec = spec_of(folder, "binary", "y")
    (tmp_path / "job" / "scratch" / "table-1.parquet").mkdir(parents=True)  # in the way of the second file's table

    error = told(tmp_path, "data.snapshot", contracts.SnapshotRequest(spec=spec, slot=SLOT))

    assert error["error"] == "JobFailed"
    assert error["message"].startswith("2.csv: ")


def test_the_innermost_block_knows_best_and_an_error_of_ours_stays_as_it_is() -> None:
    with pytest.raises(KeyError) as caught, naming(file="a.csv", column="outer"), naming(column="inner"):
        {}[0]
    with pytest.raises(InvalidData) as ours, naming(column="x"):
        raise InvalidData("row 7 is odd", field="y")

    error = unknown(caught.value)
    assert isinstance(error, JobFailed)
    assert (str(error), error.field) == ("column 'inner' of a.csv: KeyError: 0", "inner")
    assert (str(ours.value), ours.value.field) == ("row 7 is odd", "y")
    assert str(unknown(ValueError("the shapes do not fit\nsecond line"))) == "ValueError: the shapes do not fit"
