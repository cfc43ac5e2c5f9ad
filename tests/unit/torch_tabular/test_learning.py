"""The network for tables is good, and exact in its export."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from activities.compute import export
from activities.compute.features import TRAIN, Pipeline, prepared_rows
from activities.compute.features.categories import OTHER
from activities.compute.trainers import torch_tabular
from everloop.errors import IntegrityError, TargetUnusable
from tests.job import FolderJob
from tests.stages import Passed, csv, hostile, real, spec_of
from tests.unit.torch_tabular.ready import SMALL, Ready


@pytest.mark.parametrize(
    ("name", "task", "target", "metric", "least"),
    [
        ("credit_data", "binary", "Status", "auc", 0.81),
        ("ames", "regression", "Sale_Price", "r2", 0.85),
    ],
)
def test_a_real_table_becomes_a_network_that_is_good_and_proven_equal(  # noqa: PLR0917
    tmp_path: Path, name: str, task: str, target: str, metric: str, least: float
) -> None:
    job = FolderJob(tmp_path)

    passed = Passed(job, spec_of(csv(tmp_path, real(name)), task, target, trainer="torch", params={"epochs": 10}))

    assert passed.evaluation.metrics[metric] > least
    assert passed.exported.parity.mismatches == 0
    assert passed.exported.parity.rows >= 4000
    assert passed.exported.parity.max_difference < 1e-5
    assert any({"train_loss", "validation_loss", "epochs", "most"} <= set(values) for values in job.values.values())
    assert json.loads(job.artifacts.get(passed.evaluation.report))["importance"]
    assert _seconds_of_one_row(passed) < 0.001


def _seconds_of_one_row(passed: Passed) -> float:
    """The fastest of many: what it takes when nobody else uses the processor."""
    row = passed.model.check([dict.fromkeys(field.name for field in passed.signature.fields)])

    def seconds() -> float:
        started = time.perf_counter()
        passed.model.predict(row)
        return time.perf_counter() - started

    return min(seconds() for _ in range(200))


HOSTILE = (
    "names that the graph uses itself",
    "nothing, constants and infinities",
    "dates with gaps",
    "huge and tiny numbers",
    "few different rows",
    "a number far from 0",
    "a class that comes late",
    "true and false with gaps",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_table_becomes_a_proven_network(tmp_path: Path, name: str) -> None:
    frame, task, more = hostile()[name]
    spec = spec_of(csv(tmp_path, frame), task, "y", trainer="torch", params={"epochs": 3}, **more)

    passed = Passed(FolderJob(tmp_path), spec)

    assert passed.exported.parity.mismatches == 0
    assert passed.exported.parity.max_difference < 1e-5


@pytest.mark.parametrize("wrong", ["embedding", "numbers.mean"])
def test_a_network_that_differs_in_one_number_does_not_pass_the_parity_gate(classes: Ready, wrong: str) -> None:
    _, dumped = classes.train()
    pipeline = Pipeline.read(classes.job.artifacts, classes.prepared.pipeline)
    fitted, other = torch_tabular.load(dumped, pipeline), torch_tabular.load(dumped, pipeline)
    if wrong == "embedding":
        other.network.parts()["embedding"][OTHER + 1] += 0.5
    else:
        other.scaling.mean[0] += np.float32(0.05)
    from activities.compute.inference import Model
    from activities.compute.rows import opened
    from everloop.errors import ParityFailed

    with opened(classes.job.artifacts, classes.snapshot) as whole:
        signature = export.signature_of(classes.spec, pipeline, whole)
        right, bent = (Model(export.build(pipeline, each).SerializeToString(), signature) for each in (fitted, other))

        assert export.prove(pipeline, fitted, right, whole, seed=0).mismatches == 0
        with pytest.raises(ParityFailed):
            export.prove(pipeline, fitted, bent, whole, seed=0)


@pytest.mark.parametrize("params", [{"architecture": "mlp", "layers": 3}, {"precision": "bfloat16"}, {"dropout": 0}])
def test_each_kind_of_network_learns(classes: Ready, params: dict[str, Any]) -> None:
    trained, _ = classes.train(epochs=8, **params)

    assert trained.metrics["auc"] > 0.7


def test_a_value_that_training_has_not_seen_counts_as_the_average_of_those_it_has(classes: Ready) -> None:
    _, dumped = classes.train()
    pipeline = Pipeline.read(classes.job.artifacts, classes.prepared.pipeline)
    embeddings = torch_tabular.load(dumped, pipeline).network.parts()["embedding"]
    with prepared_rows(classes.job.artifacts, classes.prepared) as rows:
        codes = rows.matrix(np.flatnonzero(rows.part == TRAIN))[:, pipeline.categorical[0]].astype(int)

    average = embeddings[torch.from_numpy(codes)].mean(dim=0)

    assert OTHER not in codes
    assert torch.allclose(embeddings[OTHER], average, atol=1e-5)


def test_importance_tells_what_decides_from_what_does_not(classes: Ready) -> None:
    _, dumped = classes.train(epochs=10)
    pipeline = Pipeline.read(classes.job.artifacts, classes.prepared.pipeline)

    worth = torch_tabular.load(dumped, pipeline).importance(pipeline)

    assert worth["x"] > 10 * worth["noise"]


def test_a_damaged_model_is_named_as_such(classes: Ready) -> None:
    _, dumped = classes.train(epochs=1)
    pipeline = Pipeline.read(classes.job.artifacts, classes.prepared.pipeline)

    with pytest.raises(IntegrityError, match="the model cannot be read"):
        torch_tabular.load(dumped[: len(dumped) // 2], pipeline)


def test_gradients_of_four_batches_are_those_of_one_four_times_as_large(classes: Ready) -> None:
    _, once = classes.train(batch=64, epochs=2)
    _, summed = classes.train(batch=16, accumulation=4, epochs=2)
    pipeline = Pipeline.read(classes.job.artifacts, classes.prepared.pipeline)
    one, other = (torch_tabular.load(each, pipeline).network.flat for each in (once, summed))

    assert not torch.equal(one, other)  # sums of float32 in another order
    assert torch.allclose(one, other, atol=1e-4)


def test_a_target_that_is_no_number_is_for_a_person(classes: Ready) -> None:
    with prepared_rows(classes.job.artifacts, classes.prepared) as rows:
        examples = classes.examples(rows)
        goal = examples.goal.copy()
        goal[examples.train[:7]], goal[examples.validation[0]] = np.nan, np.inf

        with pytest.raises(TargetUnusable, match="'y' is NaN or infinite in 8 rows"):
            torch_tabular.fit(replace(examples, goal=goal), SMALL, classes.job)
