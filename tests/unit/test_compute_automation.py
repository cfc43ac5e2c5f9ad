"""Features that nobody asked for: each with its reason, in the one graph, and no fold learns from its own target."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from activities.compute import data, features
from activities.compute.drift import samples
from activities.compute.features import Pipeline
from tests.job import FolderJob
from tests.stages import Passed, csv, spec_of

ROWS = 6000


def frame(task: str = "binary") -> pd.DataFrame:
    """A table in which the wait, a missing value, the customer and a word each say something of the target."""
    random = np.random.default_rng(5)
    wait = random.integers(0, 60, ROWS)
    customer = random.integers(0, 150, ROWS)
    effect = random.normal(size=150)[customer]
    angry = random.random(ROWS) < 0.2
    gone = random.random(ROWS) < 0.15
    goal = wait / 20 + effect + 2 * angry + 2 * gone + random.normal(size=ROWS)
    filler = [" ".join(random.choice(FILLERS, 5)) for _ in range(ROWS)]
    spelled = random.choice(["angry", "Angry!", "ANGRY,"], ROWS)
    opened = pd.Timestamp("2020-01-01") + pd.to_timedelta(random.integers(0, 700, ROWS), "D")
    near = np.zeros(ROWS)
    near[:5] = 1
    return pd.DataFrame(
        {
            "opened": opened,
            "closed": opened + pd.to_timedelta(wait, "D"),
            "amount": np.where(gone, np.nan, random.normal(size=ROWS)),
            "quiet": np.where(random.random(ROWS) < 0.1, np.nan, random.normal(size=ROWS)),
            "customer": [f"k{number}" for number in customer],
            "note": [
                f"{a} {b} no {n}" if is_angry else f"{a} no {n}"
                for n, (a, b, is_angry) in enumerate(zip(filler, spelled, angry, strict=True))
            ],
            "near": near,
            "y": {
                "regression": goal,
                "binary": (goal > np.median(goal)).astype(int),
                "multiclass": np.array(["low", "mid", "high"])[np.searchsorted(np.quantile(goal, [0.3, 0.7]), goal)],
            }[task],
        }
    )


MEANS = {"features": {"target_mean": True}}
FILLERS = ["the", "parcel", "came", "late", "again", "today", "and", "was", "wet", "größe"]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_made_features_are_inside_the_graph_and_their_reasons_are_kept(
    tmp_path: Path, job: FolderJob, task: str
) -> None:
    table = frame(task)

    passed = Passed(job, spec_of(csv(tmp_path, table), task, "y", training={"rounds": 40}, **MEANS))

    pipeline = Pipeline.read(job.artifacts, passed.refitted.pipeline)
    rules = {(entry.name, entry.rule) for entry in pipeline.added}
    assert rules == {
        ("closed - opened", "difference"),
        ("amount", "missing"),  # and not 'quiet', whose gaps say nothing
        ("customer", "target mean"),
        ("customer", "rare"),
        ("note", "terms"),
    }
    assert all(entry.reason for entry in pipeline.added)
    assert [terms.terms[0] for terms in pipeline.terms] == ["angry"]
    assert {word for word, place in pipeline.terms[0].spellings if place == 0} == {"angry", "Angry!", "ANGRY,"}
    assert "nearly always the same: " in {entry.name: entry.reason for entry in pipeline.dropped}["near"]
    assert passed.exported.parity.mismatches == 0
    report = json.loads(job.artifacts.get(passed.evaluation.report))
    assert report["added"]["note"]
    best = {entry["feature"] for entry in report["importance"][:5]}
    assert {"closed - opened (days)", "note: angry"} <= best
    shares = {f"customer (share of {label})" for label in ("low", "mid", "high")}
    assert best & (shares if task == "multiclass" else {"customer (mean of the target)"})
    assert task != "multiclass" or shares <= set(pipeline.names)
    row = json.loads(table.head(1).to_json(orient="records", date_format="iso"))
    assert passed.model.predict(passed.model.check(row)).rows()


def test_a_row_that_is_fitted_on_is_encoded_by_the_other_folds(tmp_path: Path, job: FolderJob) -> None:
    """Without that, the mean of a value's own target would say the target of noise."""
    random = np.random.default_rng(1)
    noise = pd.DataFrame(
        {"code": [f"c{n}" for n in random.integers(0, 150, ROWS)], "y": random.integers(0, 2, ROWS), "x": 1.0}
    )
    noise["x"] = random.normal(size=ROWS)
    passed = Passed(job, spec_of(csv(tmp_path, noise), "binary", "y", training={"rounds": 5}, **MEANS))
    pipeline = Pipeline.read(job.artifacts, passed.prepared.pipeline)
    place = pipeline.names.index("code (mean of the target)")

    with features.prepared_rows(job.artifacts, passed.prepared) as stored:
        train = np.flatnonzero(stored.part == features.TRAIN)
        test = np.flatnonzero(stored.part == features.TEST)
        found, fold, y, rows = stored.matrix(train)[:, place], stored.fold[train], stored.y[train], stored.rows[train]
        others = stored.matrix(test)[:, place]
        test_rows = stored.rows[test]
    codes = noise.code.to_numpy()
    for at in range(0, 200, 40):
        same = (codes[rows] == codes[rows[at]]) & (fold != fold[at])
        mean = y[fold != fold[at]].mean()
        assert found[at] == np.float32((y[same].sum() + 20 * mean) / (same.sum() + 20))
        same = codes[rows] == codes[test_rows[at]]
        assert others[at] == np.float32((y[same].sum() + 20 * y.mean()) / (same.sum() + 20))
    assert abs(np.corrcoef(found, y)[0, 1]) < 0.08


def test_free_text_is_no_reason_for_drift(tmp_path: Path, job: FolderJob) -> None:
    """Every row has its own: as a category it would differ from any reference."""
    passed = Passed(job, spec_of(csv(tmp_path, frame()), "binary", "y", training={"rounds": 3}))
    raw = {entry.name: np.array(["a", "b"], object) for entry in passed.signature.fields if entry.kind == "category"}

    pairs = samples.pairs_of(passed.signature, raw, raw, np.zeros(2))

    assert [pair.name for pair in pairs] == ["customer"]


def test_texts_without_a_telling_word_stay_unused(tmp_path: Path, job: FolderJob) -> None:
    table = frame().drop(columns="note").assign(note=[f"row {n} of the table {n % 7}" for n in range(ROWS)])

    passed = Passed(job, spec_of(csv(tmp_path, table), "binary", "y", training={"rounds": 3}))

    dropped = {entry.name: entry.reason for entry in Pipeline.read(job.artifacts, passed.prepared.pipeline).dropped}
    assert dropped["note"].startswith("nearly every row has its own text")
    assert "note" in passed.signature.ignored


def test_texts_are_split_as_the_graph_splits_them(tmp_path: Path, job: FolderJob) -> None:
    passed = Passed(job, spec_of(csv(tmp_path, frame()), "binary", "y", training={"rounds": 40}))
    pipeline = Pipeline.read(job.artifacts, passed.refitted.pipeline)
    texts = ["angry", " angry  angry ", "angry\tAngry!", "Angry! ANGRY, x", "\u00a0angry", "", "   ", "angry\nwet"]
    first = frame().head(1).drop(columns="y")
    rows = json.loads(first.to_json(orient="records", date_format="iso")) * len(texts)
    asked = [row | {"note": text} for row, text in zip(rows, texts, strict=True)]

    columns = passed.model.check(asked)
    told = passed.model.predict(columns).values  # noqa: PD011  # not a frame

    import lightgbm

    booster = lightgbm.Booster(model_str=job.artifacts.get(passed.refitted.model).decode())
    flat = {name: values[:, 0] for name, values in columns.items()}
    own = booster.predict(pipeline.transform(flat))
    assert np.abs(told[:, 1] - own).max() < 1e-6
    assert len({round(float(value), 6) for value in own}) > 1


def old(pipeline: dict[str, Any]) -> dict[str, Any]:
    """As the release before this one wrote it."""
    return {
        name: value
        for name, value in pipeline.items()
        if name not in ("differences", "indicators", "encodings", "terms", "added")
    }


def test_a_pipeline_of_an_older_version_is_still_read(tmp_path: Path, job: FolderJob) -> None:
    plain = frame()[["amount", "opened", "y"]].assign(c=lambda f: f.index.map(lambda n: "abc"[n % 3]))
    passed = Passed(job, spec_of(csv(tmp_path, plain), "binary", "y", training={"rounds": 3}))
    stored = json.loads(job.artifacts.get(passed.prepared.pipeline))
    before = old(stored)

    again = Pipeline.read(job.artifacts, job.artifacts.put(json.dumps(before).encode()))

    whole = data.load(job.artifacts, passed.snapshot)
    raw = whole.arrays([entry.name for entry in again.inputs])
    assert again.transform(raw).shape == (ROWS, len(again.names))
    assert again.added == ()
