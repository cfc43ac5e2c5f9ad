"""Who judges whom, what rows weigh, and what is done with probabilities: through the stages, on real folds."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from activities.compute import data, features, finish, folds, training
from activities.compute.features import TEST, Pipeline, prepared_rows
from activities.compute.trainers import Examples, raw_columns
from everloop import contracts
from everloop.errors import InvalidData, InvalidSpec
from everloop.records import Curve, Finish, Prepared, Trained
from everloop.specs import Decision, LifecycleSpec, checked
from tests.job import FolderJob
from tests.stages import SLOT, Passed, csv, spec_of

QUICK = {"trainer": "xgboost", "params": {"rounds": 30, "max_depth": 2, "learning_rate": 0.3}}


def table(rows: int = 600, seed: int = 1) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    x = random.normal(size=rows)
    return pd.DataFrame(
        {
            "x": x,
            "noise": random.normal(size=rows),
            "who": [f"u{each}" for each in random.integers(0, 90, rows)],
            "w": np.where(random.random(rows) < 0.5, 1.0, 3.0),
            "t": pd.date_range("2024", periods=rows, freq="h").strftime("%Y-%m-%d %H:%M:%S"),
            "y": np.where(x + random.normal(size=rows) > 1, "yes", "no"),
        }
    )


class Stages:
    """Snapshot and prepare of one spec, and what stands on them."""

    def __init__(self, folder: Path, frame: pd.DataFrame, **more: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.job = FolderJob(folder)
        self.spec: LifecycleSpec = spec_of(csv(folder, frame), "binary", "y", **QUICK | more)
        self.snapshot = data.snapshot(contracts.SnapshotRequest(spec=self.spec, slot=SLOT), self.job)
        self.prepared: Prepared = features.prepare(
            contracts.PrepareRequest(spec=self.spec, snapshot=self.snapshot, champion=None, slot=SLOT), self.job
        )

    def train(self, job: FolderJob | None = None, **more: Any) -> Trained:
        spec = self.spec.model_copy(update=more)
        request = contracts.TrainRequest(spec=spec, prepared=self.prepared, snapshot=self.snapshot, slot=SLOT)
        return training.train(request, job or self.job)

    def plan(self) -> tuple[list[folds.Fold], pd.DataFrame, np.ndarray]:
        """The folds, the rows of the prepared table as they were, and the places of the test part."""
        pipeline = Pipeline.read(self.job.artifacts, self.prepared.pipeline)
        with (
            prepared_rows(self.job.artifacts, self.prepared) as rows,
            raw_columns(self.job.artifacts, self.snapshot) as raw,
        ):
            train, held = (np.flatnonzero(rows.part == part) for part in (0, 1))
            examples = Examples(self.spec, pipeline, rows, train, held, rows.y, raw)
            names = [name for name in ("who", "x", "t") if name in raw.table().rows.column_names]
            frame = pd.DataFrame(raw.table().arrays(names, rows.rows)).assign(y=rows.y)
            return folds.plan(examples), frame, np.flatnonzero(rows.part == TEST)


FOLDS = {"validation": {"method": "folds", "folds": 4, "repeats": 1}}


def test_folds_are_stratified_and_every_row_but_the_test_part_is_judged_once_by_who_has_not_learned_it(
    tmp_path: Path,
) -> None:
    found, frame, test = Stages(tmp_path, table(), **FOLDS).plan()

    judged = np.sort(np.concatenate([fold.validation for fold in found]))
    assert np.array_equal(judged, np.setdiff1d(np.arange(len(frame)), test))
    for fold in found:
        assert not set(fold.train) & set(fold.validation) and not set(fold.train) & set(test)
        share, whole = frame.y[fold.validation].mean(), frame.y[judged].mean()
        assert abs(share - whole) < 0.02


def test_small_data_is_judged_with_several_folds_and_large_data_with_a_part_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(tmp_path, table(), validation={"method": "auto"})

    assert len(stages.plan()[0]) == 15
    monkeypatch.setattr(folds, "LARGE", 100)
    (only,), _, _ = stages.plan()
    assert only.validation.size == stages.prepared.validation_rows


def test_a_group_is_never_on_two_sides_neither_of_a_fold_nor_of_the_test_part(tmp_path: Path) -> None:
    stages = Stages(tmp_path, table(), group="who", **FOLDS)
    found, frame, test = stages.plan()

    rest = set(frame.who) - set(frame.who[test])
    assert 0.1 < len(test) / len(frame) < 0.35
    for fold in found:
        assert not set(frame.who[fold.train]) & set(frame.who[fold.validation])
        assert set(frame.who[fold.train]) <= rest
        assert 0.15 < len(fold.validation) / (len(frame) - len(test)) < 0.35
    assert "who" not in [column.name for column in stages.prepared.features]


def test_with_a_time_each_stretch_is_judged_by_what_was_before_it_and_nothing_is_shuffled(tmp_path: Path) -> None:
    found, frame, test = Stages(tmp_path, table(), time="t", **FOLDS).plan()

    assert len(found) == 4
    ends = []
    for fold in found:
        assert frame.t[fold.train].max() < frame.t[fold.validation].min()
        assert frame.t[fold.validation].max() < frame.t[test].min()
        ends.append(len(fold.train))
    assert ends == sorted(set(ends))


def test_rows_of_one_moment_stay_together_in_a_rolling_origin() -> None:
    seconds = np.repeat(np.arange(10.0), 7)
    seconds[3] = np.nan

    found = folds.rolling(np.arange(70), seconds, 3)

    for fold in found:
        assert 3 in fold.train
        assert not set(seconds[fold.train]) & set(seconds[fold.validation])
    assert folds.rolling(np.arange(5), np.full(5, 7.0), 3) == []


def test_a_training_in_folds_learns_all_their_rows_and_is_the_same_after_a_kill(tmp_path: Path) -> None:
    stages = Stages(tmp_path, table(), **FOLDS)
    watched, again = (FolderJob(tmp_path, due=due) for due in (True, False))

    once = stages.train(watched)
    again.kept = watched.kept[:3]
    resumed = stages.train(again)

    assert once.folds == 4 and once.metrics["auc"] > 0.7
    assert (resumed.model, resumed.metrics, resumed.iterations) == (once.model, once.metrics, once.iterations)
    assert [kept[1]["part"] for kept in again.kept] == [1, 2, 3]
    assert stages.train().folds == 4 and once.iterations < 30  # early stopping inside folds


def test_weights_count_in_what_is_learned_and_bad_ones_are_refused_with_the_row(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "plain", table())
    weighed = Stages(tmp_path / "weighed", table(), weight="w")
    zero = Stages(tmp_path / "zero", table().assign(w=lambda f: f.w.where(f.index != 5, -1.0)), weight="w")

    assert stages.train().model != weighed.train().model
    assert "w" not in [column.name for column in weighed.prepared.features]
    balanced = stages.train(class_weight="balanced")
    assert balanced.metrics["accuracy"] < stages.train().metrics["accuracy"]
    assert stages.train(class_weight={"yes": 1.0, "no": 1.0}).metrics == stages.train().metrics
    with pytest.raises(InvalidData, match="'w' is -1 in row"):
        zero.train()
    with pytest.raises(InvalidSpec, match="no class 'maybe'"):
        stages.train(class_weight={"maybe": 2.0})


@pytest.mark.parametrize("calibration", ["none", "sigmoid", "isotonic"])
def test_calibration_and_threshold_are_part_of_the_graph_and_of_its_answers(tmp_path: Path, calibration: str) -> None:
    frame = table(1500)
    costs = {"false_positive": 1, "false_negative": 6}
    spec = spec_of(csv(tmp_path, frame), "binary", "y", calibration=calibration, decision=costs, **FOLDS | QUICK)
    passed = Passed(FolderJob(tmp_path), spec)

    threshold = passed.signature.threshold
    assert threshold is not None and 0.02 < threshold < 0.35
    assert passed.refitted.finish == passed.trained.finish
    assert passed.exported.parity.mismatches == 0
    rows = frame.drop(columns="y").head(300).to_dict("records")
    columns = passed.model.check(rows)
    given = (columns[field.name].reshape(-1, 1) for field in passed.signature.fields)
    probabilities, decided = passed.model.session.run(None, dict(zip(passed.model.inputs, given, strict=True)))
    told = passed.model.predict(columns).rows()
    assert [row["label"] for row in told] == [("no", "yes")[each] for each in decided[:, 0]]
    assert any(row["label"] == "yes" and row["probability"] < 0.5 for row in told)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def answers(rows: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too sure by far, and the classes."""
    random = np.random.default_rng(4)
    odds = random.normal(size=rows) * 1.5 - 1
    classes = (random.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    told = 1 / (1 + np.exp(-3 * odds))
    return classes, np.stack([1 - told, told], axis=1)


def test_calibration_is_taken_where_it_lowers_the_loss_for_sure_and_not_otherwise() -> None:
    classes, told = answers()
    spec = checked({"model": "m", "task": "binary", "target": "y", "source": {"path": "/x"}, "calibration": "auto"})
    honest = finish._logit(told[:, 1]) / 3
    fair = np.stack([1 / (1 + np.exp(honest)), 1 / (1 + np.exp(-honest))], axis=1)
    wanted = spec.model_copy(update={"metric": "log_loss"})
    pipeline = Pipeline("binary", "y", None, None, "1", ("0", "1"), ())

    found = finish.finish_of(wanted, pipeline, classes.astype(float), told)

    assert found is not None and found.calibration == "sigmoid"
    assert found.curves[0].where[0] == pytest.approx(1 / 3, abs=0.03)
    assert finish.finish_of(wanted, pipeline, classes.astype(float), fair) is None
    assert finish.finish_of(spec, pipeline, classes.astype(float), told) is None  # ranks are what they were


def test_the_threshold_is_the_one_with_the_least_cost_of_all_that_there_are() -> None:
    classes, told = answers(500)
    costs = Decision(false_positive=2, false_negative=9)
    true, likely = classes == 1, np.round(told[:, 1], 2)

    found = finish.cheapest(costs, true, likely)

    best = min(finish.mean_cost(costs, true, likely, each) for each in np.linspace(-0.001, 1.001, 2000))
    assert finish.mean_cost(costs, true, likely, found) == pytest.approx(best)
    assert found not in likely


def test_an_isotonic_curve_never_falls_and_is_nowhere_so_steep_that_float32_would_show() -> None:
    classes, told = answers()

    curve = finish._isotonic(told[:, 1], classes == 1)

    slopes = np.diff(curve.value) / np.diff(curve.where)
    assert (slopes >= 0).all() and slopes.max() < 100 and len(curve.where) <= 32
    three = np.stack([told[:, 0] / 2, told[:, 1] / 2, np.full(len(told), 0.5)], axis=1)
    flat = Finish(calibration="isotonic", curves=(curve, curve, Curve(where=(0.0, 1.0), value=(0.0, 1.0))))
    assert np.allclose(finish.calibrated(flat, three).sum(axis=1), 1)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"task": "regression", "decision": {"false_negative": 2}}, "decision: only a binary task"),
        ({"task": "regression", "class_weight": "balanced"}, "class_weight"),
        ({"task": "regression", "calibration": "sigmoid"}, "calibration"),
        ({"group": "y"}, "target"),
        ({"validation": {"folds": 1}}, "validation.folds"),
        ({"decision": {"false_positive": 0}}, "decision.false_positive"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_door(more: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidSpec, match=says):
        checked({"model": "m", "task": "binary", "target": "y", "source": {"path": "/x"}} | more)


# --- groups in the order of time ------------------------------------------------------------------------


def visits(rows: int = 900, *, often: bool = False) -> pd.DataFrame:
    """People who come for a while; *often*: for ever."""
    frame, random = table(rows), np.random.default_rng(6)
    return frame.assign(who=[f"u{each}" for each in (random.integers(0, 9, rows) if often else np.arange(rows) // 7)])


def test_with_a_time_groups_are_kept_whole_and_rows_before_the_rest_of_their_group_are_left_out(tmp_path: Path) -> None:
    stages = Stages(tmp_path, visits(), time="t", group="who", **FOLDS)
    found, frame, _ = stages.plan()

    with prepared_rows(stages.job.artifacts, stages.prepared) as rows:
        part = rows.part
    people = [set(frame.who[part == each]) for each in range(3)]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    assert stages.prepared.left_out_rows == 900 - len(frame) > 0
    assert frame.t[part == 0].max() < frame.t[part == 1].min() <= frame.t[part == 1].max() < frame.t[part == 2].min()
    assert len(found) == 4
    for fold in found:
        assert not set(frame.who[fold.train]) & set(frame.who[fold.validation])
        assert frame.t[fold.train].max() < frame.t[fold.validation].min()
    assert stages.train().folds == 4


def test_groups_that_always_come_back_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="groups cannot be kept whole in the order of time: only") as raised:
        Stages(tmp_path, visits(often=True), time="t", group="who", **FOLDS)
    assert raised.value.field == "group" and "leave out group" in raised.value.hint


def test_the_group_of_a_class_that_is_moved_to_the_train_part_goes_with_it(tmp_path: Path) -> None:
    frame = visits()
    frame["y"] = np.where(np.arange(len(frame)) >= 895, "late", frame.y)
    spec = spec_of(csv(tmp_path, frame), "multiclass", "y", time="t", group="who")
    job = FolderJob(tmp_path)
    snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    prepared = features.prepare(contracts.PrepareRequest(spec=spec, snapshot=snapshot, champion=None, slot=SLOT), job)
    with prepared_rows(job.artifacts, prepared) as rows:
        people = {each: set(frame.who[rows.rows[rows.part == each]]) for each in range(3)}
    assert {f"u{each}" for each in (895 // 7, 899 // 7)} <= people[0] and not people[0] & people[2]


# --- what looks at the target is by the fold's own train rows -------------------------------------------


def test_columns_are_chosen_in_each_fold_by_its_own_train_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of columns that are noise the luckiest are chosen: by all rows they seem to say something of each fold."""
    random = np.random.default_rng(3)
    noise = pd.DataFrame({f"n{each}": random.normal(size=300) for each in range(150)})
    noise["y"] = np.where(random.random(300) < 0.5, "yes", "no")
    chosen = {"features": {"selection": {"method": "correlation", "keep": 5}}, "trainer": "linear", "params": {}}
    stages = Stages(tmp_path, noise, **FOLDS | chosen)

    honest = stages.train().metrics["log_loss"]
    with monkeypatch.context() as leaking:
        leaking.setattr(Pipeline, "looks_at_target", False)
        leaked = stages.train().metrics["log_loss"]

    assert leaked < np.log(2) < honest  # of noise nothing can be known
