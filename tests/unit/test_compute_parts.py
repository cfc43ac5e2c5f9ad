"""Which rows are learned from, and which are held out."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from activities.compute import data, features
from activities.compute.features import TEST, TRAIN, VALIDATION, Pipeline
from everloop import contracts
from everloop.errors import DatasetTooSmall, EverloopError, InvalidSpec, TargetUnusable
from everloop.records import Prepared
from tests.job import FolderJob
from tests.stages import SLOT, Passed, csv, snapshot, spec_of, table

BAD_TARGETS: dict[str, tuple[str, Any, type[EverloopError], str]] = {
    "no value": ("binary", None, TargetUnusable, "no value in any row"),
    "constant": ("binary", 1, TargetUnusable, "always '1'"),
    "constant number": ("regression", 2.5, TargetUnusable, "always 2.5"),
    "three classes": ("binary", list("abc") * 20, TargetUnusable, "3 different values, a binary target has 2"),
    "a class with one row": (
        "multiclass",
        [*"ab" * 29, "b", "rare"],
        TargetUnusable,
        "only one row of the class 'rare'",
    ),
    "too many classes": ("multiclass", [str(n) for n in range(120)], TargetUnusable, "120 different values"),
    "text": ("regression", ["low", "high"] * 30, TargetUnusable, "not numeric"),
    "huge numbers": ("regression", list(np.linspace(-1, 1, 60) * 1e200), TargetUnusable, "spread must lie between"),
    "tiny numbers": ("regression", list(np.linspace(-1, 1, 60) * 1e-200), TargetUnusable, "spread must lie between"),
    "numbers without bounds": ("regression", [1.7e308, -1.7e308] * 30, TargetUnusable, "spread must lie between"),
    "few labels": ("binary", ["a", "b", *[None] * 58], DatasetTooSmall, "only 2 of 60 rows"),
}


@pytest.mark.parametrize("stage", ["validate", "prepare"])
@pytest.mark.parametrize("name", BAD_TARGETS)
def test_a_target_that_cannot_be_learned_is_refused_also_when_validation_is_skipped(
    tmp_path: Path, job: FolderJob, name: str, stage: str
) -> None:
    task, values, kind, message = BAD_TARGETS[name]
    rows = len(values) if isinstance(values, list) else 60
    path = csv(tmp_path, table(rows).assign(y=values))
    taken = snapshot(job, path, task=task)
    spec = spec_of(path, task, "y")

    validation = contracts.ValidateRequest(spec=spec, snapshot=taken, slot=SLOT)
    preparation = contracts.PrepareRequest(spec=spec, snapshot=taken, champion=None, slot=SLOT)
    work = {
        "validate": lambda: data.validate(validation, job),
        "prepare": lambda: features.prepare(preparation, job),
    }

    with pytest.raises(kind, match=message) as refused:
        work[stage]()

    assert refused.value.field == "y"
    assert refused.value.hint


def test_the_positive_class_is_the_one_that_the_spec_names(tmp_path: Path, job: FolderJob) -> None:
    path = csv(tmp_path, table(200).assign(y=lambda frame: np.where(frame.y, "no", "yes")))
    whole = data.load(job.artifacts, snapshot(job, path))

    assert data.target_of(whole, spec_of(path, "binary", "y", positive="no")).classes == ("yes", "no")
    assert data.target_of(whole, spec_of(path, "binary", "y")).classes == ("no", "yes")
    with pytest.raises(InvalidSpec, match="no value 'maybe'"):
        data.target_of(whole, spec_of(path, "binary", "y", positive="maybe"))


def parts(job: FolderJob, prepared: Prepared) -> dict[str, np.ndarray]:
    with features.prepared_rows(job.artifacts, prepared) as stored:
        return {"part": stored.part, "rows": stored.rows}


def test_by_time_the_test_part_is_the_latest_and_one_moment_stays_together(tmp_path: Path, job: FolderJob) -> None:
    days = pd.Series(np.arange(400) // 8)
    path = csv(tmp_path, table(400).assign(t=pd.Timestamp("2024-01-01") + pd.to_timedelta(days, unit="D")))

    found = parts(job, Passed(job, spec_of(path, "binary", "y", time="t", training={"rounds": 5})).prepared)

    part = found["part"]
    when = days.to_numpy()[found["rows"]]
    assert when[part == TRAIN].max() < when[part == VALIDATION].min()
    assert when[part == VALIDATION].max() < when[part == TEST].min()
    assert 0.15 < (part == TEST).mean() < 0.25


def test_without_time_equal_rows_stay_together_and_a_row_keeps_its_identity(tmp_path: Path, job: FolderJob) -> None:
    frame = pd.concat([table(200), table(200).head(20)])
    path = csv(tmp_path, frame)
    whole = data.load(job.artifacts, snapshot(job, path))
    spec = spec_of(path, "binary", "y")
    target = data.target_of(whole, spec)

    part = features.split(spec, whole, target, np.ones(len(frame), bool))
    shuffled = data.load(job.artifacts, snapshot(job, csv(tmp_path, frame.iloc[::-1], "other.csv")))

    assert (part[:20] == part[200:]).all()
    assert set(data.row_hashes(whole)) == set(data.row_hashes(shuffled))
    assert len(set(data.row_hashes(whole))) == len(frame)


def test_the_preprocessing_is_fitted_on_the_train_part_only(tmp_path: Path, job: FolderJob) -> None:
    frame = table(400).assign(t=pd.date_range("2020", "2023", 400))
    frame.loc[390:, "c"] = "only at the end"
    frame.loc[390:, "x"] = 1000.0
    path = csv(tmp_path, frame)

    passed = Passed(job, spec_of(path, "binary", "y", time="t", training={"rounds": 5}))

    fitted = {entry.name: entry for entry in Pipeline.read(job.artifacts, passed.prepared.pipeline).inputs}
    assert fitted["x"].high is not None
    assert fitted["x"].high < 1000
    assert "only at the end" not in fitted["c"].known
