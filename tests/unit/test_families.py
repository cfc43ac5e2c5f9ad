"""Each family of ours, by the protocol alone: whoever adds one is tested here without a change."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from activities.compute import data, evaluation, export, features, latency, training
from activities.compute.features import TRAIN, VALIDATION, Pipeline, prepared_rows
from activities.compute.features.graph import Graph
from activities.compute.trainers import (
    Examples,
    Pruned,
    Question,
    forest,
    loss_of,
    raw_columns,
    splits,
    trainer,
    xgboost,
)
from activities.compute.trainers.ensemble.selection import Candidate, select
from everloop import contracts, families
from everloop.errors import GraphTooLarge, GraphTooSlow, IntegrityError, InvalidSpec
from everloop.records import Member, Prepared, Snapshot
from everloop.specs import LifecycleSpec, checked
from tests.job import FolderJob
from tests.stages import SLOT, csv, spec_of

QUICK: dict[str, dict[str, Any]] = {
    "xgboost": {"rounds": 60, "max_depth": 3},
    "forest": {"trees": 20, "leaves": 30},
    "torch": {"layers": 1, "width": 16, "epochs": 25, "batch": 32, "learning_rate": 0.01},
    "lightgbm": {"num_iterations": 60, "num_leaves": 7},
}
QUICK["ensemble"] = {
    "members": [
        {"family": "xgboost", "params": QUICK["xgboost"], "weight": 2},
        {"family": "lightgbm", "params": QUICK["lightgbm"], "weight": 3},
        {"family": "lightgbm", "params": QUICK["lightgbm"] | {"extra_trees": True}, "weight": 1},
        {"family": "forest", "params": QUICK["forest"], "weight": 1},
        {"family": "linear"},
    ]
}
"""Smaller than by default, so that this is quick; a family that is not named is tested as it is."""


def frame(rows: int = 700, seed: int = 3) -> pd.DataFrame:
    """Numbers with gaps, a date, a few and many categories, and three targets that depend on them."""
    random = np.random.default_rng(seed)
    few, many = random.choice(list("abcd"), rows), random.integers(0, 60, rows)
    x, z = random.normal(size=rows), random.normal(size=rows)
    says = x + (few == "b") * 1.5 - (many % 7) * 0.4 + 0.3 * random.normal(size=rows)
    return pd.DataFrame(
        {
            "x": x,
            "z": np.where(random.random(rows) < 0.2, np.nan, z),
            "few": few,
            "many": [f"v{each}" for each in many],
            "day": pd.date_range("2022", periods=rows, freq="h").strftime("%Y-%m-%d"),
            "binary": np.where(says > 0, "yes", "no"),
            "multiclass": pd.cut(says, [-99, -1, 0.5, 99], labels=["low", "mid", "high"]).astype(str),
            "regression": 1e6 + 1e4 * says,
        }
    )


@dataclass
class Ready:
    """A table that is prepared for one task: trainings differ in family and parameters only."""

    job: FolderJob
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared

    def of(self, family: str, **params: Any) -> LifecycleSpec:
        return self.spec.model_copy(update={"trainer": family, "params": QUICK.get(family, {}) | params})

    def fit(self, family: str, job: FolderJob | None = None, **more: Any) -> Any:
        """Fitted on the train rows. *more*: fields of `Examples`."""
        spec, job = self.of(family), job or self.job
        pipeline = Pipeline.read(job.artifacts, self.prepared.pipeline)
        with prepared_rows(job.artifacts, self.prepared) as rows:
            train, held = (np.flatnonzero(rows.part == part) for part in (TRAIN, VALIDATION))
            goal = (rows.y - pipeline.center) / pipeline.scale
            examples = Examples(spec, pipeline, rows, train, held, goal, raw=lambda names, rows: {})  # type: ignore[arg-type]
            return trainer(family).fit(replace(examples, **more), spec.params, job)

    def matrix(self) -> Any:
        with prepared_rows(self.job.artifacts, self.prepared) as rows:
            return rows.matrix(np.arange(len(rows)))

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline.read(self.job.artifacts, self.prepared.pipeline)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ready]:
    made: dict[str, Ready] = {}
    table = frame()

    def of(task: str) -> Ready:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            others = [name for name in ("binary", "multiclass", "regression") if name != task]
            job, spec = FolderJob(folder), spec_of(csv(folder, table.drop(columns=others)), task, task)
            snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
            request = contracts.PrepareRequest(spec=spec, snapshot=snapshot, champion=None, slot=SLOT)
            made[task] = Ready(job, spec, snapshot, features.prepare(request, job))
        return made[task]

    return of


TASKS = ("binary", "multiclass", "regression")
LEAST = {"binary": ("auc", 0.8), "multiclass": ("accuracy", 0.55), "regression": ("r2", 0.5)}


@pytest.mark.parametrize(
    ("family", "task"),
    [(family, task) for family in families.FAMILIES for task in TASKS if (family, task) != ("ensemble", "binary")],
)
def test_a_family_goes_from_prepared_rows_to_a_graph_that_is_proven_equal(
    ready: Callable[[str], Ready], family: str, task: str
) -> None:
    held = ready(task)
    spec, job, given = held.of(family), held.job, {"snapshot": held.snapshot, "prepared": held.prepared, "slot": SLOT}

    trained = training.train(contracts.TrainRequest(spec=spec, prepared=held.prepared, slot=SLOT), job)
    found = evaluation.evaluate(contracts.EvaluateRequest(spec=spec, trained=trained, champion=None, **given), job)
    refitted = training.refit(contracts.RefitRequest(spec=spec, trained=trained, **given), job)
    exported = export.export(
        contracts.ExportRequest(spec=spec, snapshot=held.snapshot, refitted=refitted, slot=SLOT), job
    )

    metric, least = LEAST[task]
    assert found.metrics[metric] > least
    assert (exported.parity.mismatches, exported.parity.rows) == (0, 10_000)
    assert exported.parity.max_difference < 1e-5
    assert exported.latency_ms is not None and 0.001 < exported.latency_ms < 60
    assert trained.family == refitted.family == family
    best = max(found.importance, key=lambda name: found.importance[name])
    assert best in ("x", "few", "many") and 0.1 < found.importance[best] <= 1
    assert found.importance_is == ("permutation" if family in ("linear", "ensemble") else "native")


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_same_bytes_each_time_also_from_the_middle_and_through_load(
    ready: Callable[[str], Ready], family: str, tmp_path: Path
) -> None:
    held = ready("multiclass")
    watched = FolderJob(held.job.scratch.parent, due=True)

    once = held.fit(family, watched)
    again = FolderJob(held.job.scratch.parent)
    again.kept = watched.kept[: max(1, len(watched.kept) // 2)]

    assert held.fit(family, again).dump() == once.dump()
    assert family == "linear" or again.kept  # all others go on from the middle
    loaded = trainer(family).load(once.dump(), held.pipeline)
    matrix = held.matrix()
    told = loaded.predict(Question(lambda: matrix, dict))
    assert np.array_equal(told, once.predict(Question(lambda: matrix, dict)))
    assert np.allclose(told.sum(axis=1), 1, atol=1e-6)
    assert loaded.dump() == once.dump() and loaded.iterations == once.iterations


class Pruner:
    def __init__(self, most: int) -> None:
        self.seen: list[tuple[int, float]] = []
        self.most = most

    def reached(self, step: int, loss: float) -> None:
        self.seen.append((step, loss))
        if len(self.seen) == self.most:
            raise Pruned


@pytest.mark.parametrize("family", families.LEARNERS)
def test_a_pruner_sees_the_validation_loss_of_each_rung_in_one_unit_and_may_end_the_training(
    ready: Callable[[str], Ready], family: str
) -> None:
    held = ready("binary")
    free, strict = Pruner(10**6), Pruner(2 if families.family(family).STEP else 1)

    fitted = held.fit(family, rungs=free)
    with pytest.raises(Pruned):
        held.fit(family, rungs=strict)

    assert strict.seen == free.seen[: strict.most]
    steps = [step for step, _ in free.seen]
    assert steps == sorted(set(steps))
    with prepared_rows(held.job.artifacts, held.prepared) as rows:
        judged = np.flatnonzero(rows.part == VALIDATION)
        matrix, goal = rows.matrix(judged), rows.y[judged].astype(int)
    own = -np.log(fitted.predict(Question(lambda: matrix, dict))[np.arange(len(goal)), goal]).mean()
    assert min(abs(loss - own) for _, loss in free.seen) < 1e-5  # that of the rung which was kept


@pytest.mark.parametrize("family", families.LEARNERS)
def test_rows_of_weight_0_teach_nothing(ready: Callable[[str], Ready], family: str) -> None:
    held = ready("binary")
    with prepared_rows(held.job.artifacts, held.prepared) as rows:
        told, matrix = rows.y.copy(), rows.matrix(np.arange(len(rows)))
    wrong = np.random.default_rng(1).random(len(told)) < 0.45
    goal, weights = np.where(wrong, 1 - told, told), np.where(wrong, 0.0, 1.0)

    def right(**more: Any) -> float:
        answers = held.fit(family, goal=goal, **more).predict(Question(lambda: matrix, dict))
        return float((answers.argmax(axis=1) == told).mean())

    assert right(weights=weights) > right() + 0.05


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rows", [50, 10_000, 5_000_000])
def test_every_point_of_a_space_is_one_that_the_spec_takes(family: str, task: str, rows: int) -> None:
    words = families.family(family)
    space = words.space(task, rows)
    random = np.random.default_rng(rows)

    assert family == "ensemble" or space.portfolio[0] == {}
    named = {each.name for each in space.parameters}
    for point in space.portfolio:
        assert set(point) <= named
        families.check(family, point)
    for _ in range(20):
        point = {}
        for each in space.parameters:
            if each not in space.asked(point):
                continue
            if each.kind == "choice":
                point[each.name] = each.choices[random.integers(len(each.choices))]
            else:
                value = random.choice([each.low, each.high, (each.low + each.high) / 2])
                point[each.name] = int(value) if each.kind == "integer" else float(value)
        families.check(family, point) if space.parameters else None
    assert type(space).model_validate_json(space.model_dump_json()) == space  # it travels as data


def test_a_family_that_is_not_there_and_parameters_out_of_range_are_refused_by_name() -> None:
    base = {"model": "m", "task": "binary", "target": "y", "source": {"path": "/x"}}

    for family, params, says in (
        ("xgboost", {"max_depth": 40}, "params.max_depth"),
        ("forest", {"depth": 3}, "known are kind, trees"),
        ("linear", {"l1": 2}, "params.l1"),
        ("ensemble", {"members": [{"family": "forest", "params": {"kind": "wild"}}]}, "params.members.0"),
        ("ensemble", {"members": [{"family": "ensemble"}]}, "is none of forest"),
        ("catboost", {}, "linear"),
    ):
        with pytest.raises(InvalidSpec, match=says):
            checked(base | {"trainer": family, "params": params})


def test_a_graph_over_the_limit_is_refused_and_names_the_family(ready: Callable[[str], Ready]) -> None:
    held = ready("regression")
    spec = held.of("forest", trees=400, leaves=1000, min_leaf=1).model_copy(update={"model_mib": 1})
    given = {"snapshot": held.snapshot, "slot": SLOT}
    trained = training.train(contracts.TrainRequest(spec=spec, prepared=held.prepared, slot=SLOT), held.job)
    refitted = training.refit(
        contracts.RefitRequest(spec=spec, prepared=held.prepared, trained=trained, **given), held.job
    )

    with pytest.raises(GraphTooLarge, match=r"the graph of forest takes .* MiB") as raised:
        export.export(contracts.ExportRequest(spec=spec, refitted=refitted, **given), held.job)

    assert raised.value.field == "model_mib" and "params.leaves" in raised.value.hint
    slow = spec.model_copy(update={"model_mib": 100, "latency_ms": 1e-4})
    with pytest.raises(GraphTooSlow, match=r"one row takes .* ms in the graph of forest") as late:
        export.export(contracts.ExportRequest(spec=slow, refitted=refitted, **given), held.job)
    assert late.value.field == "latency_ms" and "params.leaves" in late.value.hint


def test_an_ensemble_is_chosen_under_both_limits_by_what_its_members_cost(ready: Callable[[str], Ready]) -> None:
    held = ready("binary")
    with (
        prepared_rows(held.job.artifacts, held.prepared) as rows,
        raw_columns(held.job.artifacts, held.snapshot) as raw,
    ):
        columns = raw([entry.name for entry in held.pipeline.inputs], rows.rows[:50])
        places = np.flatnonzero(rows.part == VALIDATION)
        asked, y = rows.matrix(places), rows.y[places]
    fitted = {name: held.fit(name) for name in ("lightgbm", "linear", "forest")}
    costs = {name: latency.cost(held.pipeline, each, columns) for name, each in fitted.items()}
    candidates = [
        Candidate(each.predict(Question(lambda: asked, dict)), costs[name].bytes, costs[name].milliseconds)
        for name, each in fitted.items()
    ]

    def loss(told: Any) -> float:
        return loss_of(held.pipeline, y, told)

    assert costs["linear"].bytes < costs["lightgbm"].bytes and costs["lightgbm"].milliseconds > 0
    unlimited = latency.limits(held.spec, held.pipeline, columns)
    assert unlimited["most_milliseconds"] is None and 19 << 20 < unlimited["most_bytes"] < 20 << 20
    assert len(select(candidates, loss, **unlimited)) > 1
    small = {"most_bytes": costs["linear"].bytes, "most_milliseconds": None}
    assert select(candidates, loss, **small) == {1: 1.0}
    spec = held.spec.model_copy(update={"latency_ms": 1e-4})
    with pytest.raises(ValueError, match="keeps the limits"):
        select(candidates, loss, **latency.limits(spec, held.pipeline, columns))


@pytest.mark.parametrize("trees", [20, 100, 2000])
def test_the_leaves_of_a_forest_are_bounded_so_that_its_graph_stays_below_20_mb(
    ready: Callable[[str], Ready], trees: int
) -> None:
    pipeline = replace(ready("multiclass").pipeline, classes=tuple("abc"))
    leaves = forest.most_leaves(pipeline, trees)
    nodes = 2 * leaves - 1
    one = splits.Trees(
        starts=np.zeros(1, np.int64),
        feature=np.where(np.arange(nodes) < leaves - 1, 60, splits.LEAF).astype(np.int32),
        threshold=np.full(nodes, 0.123456, np.float32),
        left=np.full(nodes, nodes - 1, np.int32),
        right=np.full(nodes, nodes - 1, np.int32),
        missing_left=np.ones(nodes, bool),
        value=np.full((nodes, 3), 0.123, np.float32),
    )
    graph = Graph(frozenset())
    splits.in_graph(graph, "features", one, mode="BRANCH_LEQ", targets=3)

    assert graph.nodes[0].ByteSize() * trees < 20_000_000


def test_xgboost_learns_on_the_gpu_of_its_lease_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = FolderJob(tmp_path)
    monkeypatch.setattr(xgboost.xgboost, "build_info", lambda: {"USE_CUDA": True})

    assert not xgboost._on_gpu(job)
    job.lease = job.lease.model_copy(update={"members": (Member(device="gpu-1", milli_gpu=1000),)})
    assert xgboost._on_gpu(job)
    monkeypatch.setattr(xgboost.xgboost, "build_info", lambda: {"USE_CUDA": False})
    assert not xgboost._on_gpu(job)


@pytest.mark.parametrize("family", [name for name in families.LEARNERS if name != "lightgbm"])
def test_bytes_that_are_no_model_are_refused(ready: Callable[[str], Ready], family: str) -> None:
    with pytest.raises(IntegrityError):
        trainer(family).load(b"\x10" + b"\x00" * 7 + b"{}", ready("binary").pipeline)


def test_an_ensemble_is_one_graph_with_one_preprocessing_and_repeats_in_a_refit_what_its_members_found(
    ready: Callable[[str], Ready],
) -> None:
    held = ready("binary")
    spec = held.of("ensemble")
    trained = training.train(contracts.TrainRequest(spec=spec, prepared=held.prepared, slot=SLOT), held.job)
    fitted = trainer("ensemble").load(held.job.artifacts.get(trained.model), held.pipeline)
    matrix = held.matrix()

    graph = Graph(frozenset(entry.name for entry in held.pipeline.inputs))
    fitted.onnx(graph, held.pipeline)

    kinds = [node.op_type for node in graph.nodes]
    assert kinds.count("LabelEncoder") == len(held.pipeline.of("category"))
    assert sum(kind.startswith("TreeEnsemble") for kind in kinds) == 4
    members = trained.parameters["members"]
    assert [each["iterations"] for each in members] == [each.iterations for each in fitted.fitted]
    assert members[0]["iterations"] > 1 and members[4]["iterations"] == 1
    parts = [each.predict(Question(lambda: matrix, dict)) for each in fitted.fitted]
    mean = np.average(parts, axis=0, weights=[2, 3, 1, 1, 1])
    assert np.allclose(fitted.predict(Question(lambda: matrix, dict)), mean, atol=1e-12)


def answers_of(seed: int, noise: float, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    truth = np.random.default_rng(0).normal(size=rows)
    return truth, truth + np.random.default_rng(seed).normal(size=rows) * noise


def test_the_greedy_selection_averages_what_errs_apart_and_leaves_out_what_does_not_help() -> None:
    truth, first = answers_of(1, 1.0)
    candidates = [Candidate(first), Candidate(answers_of(2, 1.1)[1]), Candidate(answers_of(3, 30.0)[1])]
    candidates.append(Candidate(np.full(len(truth), np.nan)))

    def loss(told: np.ndarray) -> float:
        return float(np.sqrt(np.mean((told - truth) ** 2)))

    weights = select(candidates, loss)

    assert set(weights) == {0, 1} and sum(weights.values()) == pytest.approx(1)
    assert 0.4 < weights[0] < 0.7  # the best mean of two independent errors weighs them by their variance: 0.55
    mixed = sum(weight * candidates[place].answers for place, weight in weights.items())
    assert loss(mixed) < 0.8 * min(loss(candidates[0].answers), loss(candidates[1].answers))
    assert select(candidates, loss) == weights


def test_the_selection_keeps_the_limits_of_size_time_and_number() -> None:
    truth, first = answers_of(1, 1.0)
    others = [Candidate(answers_of(seed, 1.1)[1], bytes=9, milliseconds=0.6) for seed in range(2, 6)]
    candidates = [Candidate(first, bytes=12, milliseconds=0.3), *others]

    def loss(told: np.ndarray) -> float:
        return float(np.mean((told - truth) ** 2))

    assert len(select(candidates, loss)) == 5
    assert len(select(candidates, loss, members=2)) == 2
    assert set(select(candidates, loss, most_bytes=25)) != set(select(candidates, loss))
    assert sum(candidates[place].bytes for place in select(candidates, loss, most_bytes=25)) <= 25
    assert set(select(candidates, loss, most_milliseconds=0.5)) == {0}
    with pytest.raises(ValueError, match="no candidate"):
        select(candidates, loss, most_bytes=3)
