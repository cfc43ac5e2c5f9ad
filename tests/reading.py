"""Tables for tests of how columns are read."""

import contextlib
import io
from functools import partial
from pathlib import Path
from typing import Any

from activities.compute import data, profile
from everloop import contracts, init
from tests.job import FolderJob
from tests.stages import SLOT, spec_of

ROWS = 120


def written(folder: Path, header: str, line: Any, name: str = "t.csv", rows: int = ROWS) -> Path:
    path = folder / name
    path.write_text(header + "\n" + "".join(f"{line(row)}\n" for row in range(rows)), encoding="utf-8")
    return path


def taken(job: FolderJob, path: Path, target: str = "y", task: str = "binary", **more: Any) -> Any:
    return data.snapshot(contracts.SnapshotRequest(spec=spec_of(path, task, target, **more), slot=SLOT), job)


def read(job: FolderJob, path: Path, target: str = "y", task: str = "binary", **more: Any) -> data.Table:
    return data.load(job.artifacts, taken(job, path, target, task, **more))


def first_rows(found: data.Table, name: str, rows: int = 4) -> list[Any]:
    return found.rows[name].to_pylist()[:rows]


def _here(path: Path, arguments: list[str]) -> init.Profile:
    """What `init`'s process does and says, in this one: it has loaded in a second what each would load again."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        profile.main(arguments)
    return init.answer(path, said.getvalue(), "")


drafted = partial(init.draft, look=_here)
"""A draft of a table. That the process of its own does the same is claimed in test_init.py."""
