"""What the spec says of a column may change between two versions: no row that the champion knows counts as fresh."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activities.compute import data
from activities.compute.data import seen
from everloop import contracts
from everloop.records import Champion
from everloop.specs import LifecycleSpec
from tests.job import FolderJob
from tests.stages import SLOT, Passed, spec_of

ROWS = 300
CHANGES = {
    "missing": ({}, {"x": {"type": "number", "missing": ["-1"]}}),
    "trim": ({}, {"word": {"trim": False}}),
    "decimal": ({"x": {"type": "number", "decimal": "."}}, {"x": {"type": "number", "decimal": ","}}),
    "back": ({"x": {"type": "number", "missing": ["-1"]}}, {}),
}


def rows(first: int) -> str:
    """Rows of which every third has a value that the changes concern."""
    values = [["-1", "1.234", f"{n}"][n % 3] for n in range(first, first + ROWS)]
    return "".join(
        f"{['a', ' b'][n % 2]};{value};{n};2024-{1 + n // ROWS:02d}-{n % 28 + 1:02d};{n % 2}\n"
        for n, value in zip(range(first, first + ROWS), values, strict=True)
    )


def asked(job: FolderJob, spec: LifecycleSpec, champion: Champion) -> tuple[list[bool], tuple[str, ...]]:
    kept = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    request = contracts.PrepareRequest(spec=spec, snapshot=kept, champion=champion, slot=SLOT)
    found, unmatched = seen.unseen(
        data.load(job.artifacts, kept), np.arange(kept.rows), request, job.artifacts, job.scratch
    )
    return found.tolist(), unmatched


def spec_with(path: Path, columns: Any, *, timed: bool) -> LifecycleSpec:
    more = {"columns": columns, "training": {"rounds": 2}, "time": "t" if timed else None}
    return spec_of(path, "binary", "y", **more)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_rows_that_the_champion_knows_are_not_fresh_under_another_declaration(
    tmp_path: Path, job: FolderJob, change: str, timed: bool
) -> None:
    before, after = CHANGES[change]
    path = tmp_path / "t.csv"  # one file that grows: its bytes are others
    header = "word;x;n;t;y\n"
    path.write_text(header + rows(0))
    champion = Passed(job, spec_with(path, before, timed=timed)).champion()
    path.write_text(header + rows(0) + rows(ROWS))

    fresh, unmatched = asked(job, spec_with(path, after, timed=timed), champion)

    assert unmatched == ()
    assert fresh == [False] * ROWS + [True] * ROWS


def test_files_that_were_there_are_not_converted_for_it_again(
    tmp_path: Path, job: FolderJob, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.csv").write_text("word;x;n;t;y\n" + rows(0))
    champion = Passed(job, spec_with(tmp_path / "s", {}, timed=False)).champion()
    (tmp_path / "s" / "2.csv").write_text("word;x;n;t;y\n" + rows(ROWS))
    spec = spec_with(tmp_path / "s", {"word": {"missing": ["a"]}}, timed=False)
    made = tmp_path / "artifacts" / "made"
    asked(job, spec, champion)
    before = len([path for path in made.rglob("*") if path.is_file()])

    fresh, _ = asked(job, spec, champion)

    assert fresh == [False] * ROWS + [True] * ROWS
    # The first file under both readings, the second under both.
    assert before == len([path for path in made.rglob("*") if path.is_file()]) == 4
    assert "rows are compared as they were read for it" in capsys.readouterr().out


def test_another_encoding_is_another_reading(tmp_path: Path, job: FolderJob) -> None:
    path = tmp_path / "t.csv"
    lines = "".join(f"{'мир' if n % 2 else 'дом'};{n};{n * 7919 % 97};{n % 2}\n" for n in range(ROWS))
    path.write_bytes(("word;n;x;y\n" + lines).encode("cp1251"))
    wrong, right = (
        spec_of(path, "binary", "y", training={"rounds": 2}, source={"path": str(path), "encoding": encoding})
        for encoding in ("cp1252", "cp1251")
    )
    champion = Passed(job, wrong).champion()

    fresh, unmatched = asked(job, right, champion)

    assert unmatched == ()
    assert not any(fresh)
