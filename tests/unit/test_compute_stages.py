"""The compute stages, one after the other, on real and on hostile tables."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from activities.compute import data
from activities.compute.features import Pipeline
from activities.compute.trainers.lightgbm import conversion as trees
from everloop import engine
from everloop.errors import ParityFailed
from tests.job import FolderJob
from tests.stages import Passed, csv, hostile, real, spec_of, table


@pytest.mark.parametrize(
    ("name", "task", "target", "metric", "least"),
    [
        ("credit_data", "binary", "Status", "auc", 0.78),
        ("hpc_data", "multiclass", "class", "auc", 0.9),
        ("ames", "regression", "Sale_Price", "r2", 0.8),
    ],
)
def test_a_real_table_becomes_a_model_that_is_good_and_proven_equal(  # noqa: PLR0917
    tmp_path: Path, job: FolderJob, name: str, task: str, target: str, metric: str, least: float
) -> None:
    path = csv(tmp_path, real(name))

    passed = Passed(job, spec_of(path, task, target, training={"rounds": 80, "learning_rate": 0.1}))

    assert passed.evaluation.metrics[metric] > least
    assert passed.exported.parity.mismatches == 0
    assert passed.exported.parity.rows >= 4000
    assert passed.evaluation.comparison.verdict == "no_champion"
    assert job.told  # training said how far it was


def test_rows_as_json_are_answered_as_the_trained_model_answers_them(tmp_path: Path, job: FolderJob) -> None:
    frame = real("credit_data")
    passed = Passed(job, spec_of(csv(tmp_path, frame), "binary", "Status", training={"rounds": 30}))
    rows = json.loads(frame.head(200).to_json(orient="records"))

    answers = passed.model.predict(passed.model.check(rows))

    import lightgbm

    pipeline = Pipeline.read(job.artifacts, passed.refitted.pipeline)
    booster = lightgbm.Booster(model_str=job.artifacts.get(passed.refitted.model).decode())
    whole = data.load(job.artifacts, passed.snapshot)
    raw = whole.arrays([entry.name for entry in pipeline.inputs], np.arange(200))
    probabilities = answers.values[:, 1]  # noqa: PD011  # not a frame
    assert np.abs(probabilities - booster.predict(pipeline.transform(raw))).max() < 1e-5
    assert answers.rows()[0].keys() == {"label", "probability", "probabilities"}


def test_the_same_request_gives_the_same_bytes(tmp_path: Path, job: FolderJob) -> None:
    spec = spec_of(csv(tmp_path, table()), "binary", "y")

    first, second = Passed(job, spec), Passed(job, spec)

    assert first.exported.model == second.exported.model
    assert first.prepared.table == second.prepared.table
    assert first.snapshot == second.snapshot


def test_without_the_exact_thresholds_the_parity_gate_closes(
    tmp_path: Path, job: FolderJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_make_exact", lambda root: None)

    with pytest.raises(ParityFailed, match=r"rows differ by up to .* for instance"):
        Passed(job, spec_of(csv(tmp_path, real("hpc_data")), "multiclass", "class", training={"rounds": 40}))


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_table_becomes_a_proven_model(tmp_path: Path, job: FolderJob, name: str) -> None:
    frame, task, more = hostile()[name]

    passed = Passed(job, spec_of(csv(tmp_path, frame), task, "y", training={"rounds": 20}, **more))

    assert passed.exported.parity.mismatches == 0
    row = json.loads(frame.head(1).to_json(orient="records", date_format="iso"))
    assert len(passed.model.predict(passed.model.check(row)).rows()) == 1  # a row of the table is a request
    assert len(passed.snapshot.model_dump_json()) < 32_000  # travels through Temporal


def test_parquet_types_become_numbers_text_and_times(tmp_path: Path, job: FolderJob) -> None:
    rows = 400
    frame = table(rows).assign(
        word=pd.Categorical(np.where(np.arange(rows) % 2, "p", "q")),
        day=pd.date_range("2020", periods=rows).date,
        wait=pd.to_timedelta(np.arange(rows) * 7 % 91, unit="s"),
        small=(np.arange(rows) % 250).astype("u1"),
        digits=pd.array(np.where(np.arange(rows) % 3, "1", "2"), dtype="string"),
        inside=[[1, 2]] * rows,
    )
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)

    passed = Passed(job, spec_of(path, "binary", "y", training={"rounds": 10}))

    kinds = {entry.name: entry.kind for entry in passed.signature.fields}
    assert kinds == {
        "x": "number",
        "wait": "number",
        "small": "number",
        "day": "datetime",
        "c": "category",
        "word": "category",
        "digits": "category",
    }
    assert "inside" in passed.signature.ignored


def test_a_snapshot_loads_no_learning_library() -> None:
    heavy = "lightgbm", "sklearn", "pandas", "onnx"
    code = f"import activities.compute.data, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=engine.environment(), capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_a_number_that_is_there_or_not_is_exported_with_its_infinite_threshold(tmp_path: Path, job: FolderJob) -> None:
    # LightGBM splits "missing or not" at infinity, and its JSON says 1e300.
    frame = table(400).assign(x=lambda f: f.x.where(f.y == 1))

    passed = Passed(job, spec_of(csv(tmp_path, frame), "binary", "y", training={"rounds": 5}))

    assert "threshold=inf" in job.artifacts.get(passed.refitted.model).decode()
    rows = [{"x": value, "c": "a"} for value in (1e308, -1e308, 0.0, None)]
    answers = [row["label"] for row in passed.model.predict(passed.model.check(rows)).rows()]
    assert answers == [1, 1, 1, 0]  # in the target's own type
