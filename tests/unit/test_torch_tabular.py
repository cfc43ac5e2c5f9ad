"""The network for tables: good, exact in its export, the same bytes each time, and what it does when it goes wrong."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from activities.compute import data, export, features, training
from activities.compute.features import TRAIN, VALIDATION, Pipeline, PreparedRows, prepared_rows
from activities.compute.features.categories import OTHER
from activities.compute.trainers import Examples, torch_tabular
from activities.compute.trainers.torch_tabular import faults, learning
from activities.jobs.checkpoints import Checkpoints
from activities.jobs.context import NO_EVENTS, ThisJob
from everloop import contracts, engine
from everloop.errors import ComputeLost, Diverged, IntegrityError, InvalidSpec, OutOfMemory, TargetUnusable
from everloop.records import Blob, Lease, Member, Prepared, Snapshot, Trained
from everloop.specs import LifecycleSpec, checked
from tests.job import FolderJob
from tests.stages import SLOT, Passed, csv, hostile, real, spec_of, table

SMALL = {"layers": 1, "width": 16, "epochs": 4, "batch": 16}


@dataclass
class Ready:
    """A table that is prepared: trainings differ in their parameters only."""

    job: FolderJob
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared

    def train(self, job: FolderJob | None = None, seed: int = 0, **params: Any) -> tuple[Trained, bytes]:
        job = job or self.job
        training_ = self.spec.training.model_copy(update={"seed": seed})
        spec = self.spec.model_copy(update={"params": SMALL | params, "training": training_})
        trained = training.train(contracts.TrainRequest(spec=spec, prepared=self.prepared, slot=SLOT), job)
        return trained, job.artifacts.get(trained.model)

    @property
    def features(self) -> int:
        return len(Pipeline.read(self.job.artifacts, self.prepared.pipeline).names)

    def other_job(self, **kinds: Any) -> FolderJob:
        return FolderJob(self.job.scratch.parent, **kinds)

    def examples(self, rows: PreparedRows) -> Examples:
        pipeline = Pipeline.read(self.job.artifacts, self.prepared.pipeline)
        train, held = (np.flatnonzero(rows.part == part) for part in (TRAIN, VALIDATION))
        goal = (rows.y - pipeline.center) / pipeline.scale
        return Examples(self.spec, pipeline, rows, train, held, goal, raw=lambda names, rows: {})


def ready(folder: Path, frame: pd.DataFrame, task: str) -> Ready:
    folder.mkdir(exist_ok=True)
    job, spec = FolderJob(folder), spec_of(csv(folder, frame), task, "y", trainer="torch")
    snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    request = contracts.PrepareRequest(spec=spec, snapshot=snapshot, champion=None, slot=SLOT)
    return Ready(job, spec, snapshot, features.prepare(request, job))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    frame = table(600).assign(gap=lambda f: f.x.where(f.index % 5 > 0), noise=lambda f: np.sin(f.index * 7.0))
    return ready(tmp_path_factory.mktemp("classes"), frame, "binary")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    return ready(tmp_path_factory.mktemp("numbers"), table(400).assign(y=lambda f: f.x), "regression")


# --- good and exact ---


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
    assert any({"train_loss", "validation_loss", "epochs", "most"} <= set(values) for values in job.values.values())  # noqa: PD011
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


# --- the same bytes ---


def test_the_same_request_gives_the_same_bytes_and_another_seed_others(classes: Ready) -> None:
    first, second, other = (classes.train(seed=seed)[1] for seed in (1, 1, 2))

    assert first == second
    assert first != other


@pytest.mark.parametrize("params", [{}, {"accumulation": 2}, {"architecture": "mlp", "patience": 1}])
def test_a_training_ended_after_any_checkpoint_goes_on_to_the_same_bytes(
    classes: Ready, params: dict[str, Any]
) -> None:
    params = {"batch": 8} | params
    job = classes.other_job(due=True)
    _, whole = classes.train(job, **params)
    steps = [step for step, _ in job.kept]
    assert steps == sorted(set(steps))
    assert sum(state["step"] > 0 for _, state in job.kept) >= 3  # moments within an epoch

    for kept in range(1, len(job.kept), 1 + len(job.kept) // 5):
        again = classes.other_job()
        again.kept = job.kept[:kept]
        assert classes.train(again, **params)[1] == whole


class StoppedJob(FolderJob):
    """Told to stop at a moment: it keeps a checkpoint and returns."""

    after = 0

    def report(self, step: int, /, **values: float) -> None:
        super().report(step, **values)
        self.stop = step >= self.after


def test_a_checkpoint_of_another_version_is_not_gone_on_from(
    classes: Ready, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = classes.train()[1]
    full = classes.other_job(due=True)
    classes.train(full)
    for strange in ({"format": 99}, {"weights": np.zeros(3, np.float32)}, {"weights": None}):
        job = classes.other_job()
        job.kept = [(full.kept[0][0], full.kept[0][1] | strange)]
        assert classes.train(job)[1] == whole
        assert "another version" in capsys.readouterr().out


def test_a_training_that_is_told_to_stop_keeps_where_it_was_and_returns(classes: Ready) -> None:
    _, whole = classes.train()
    job = StoppedJob(classes.job.scratch.parent)
    job.after = 2

    classes.train(job)
    again = classes.other_job()
    again.kept = job.kept

    assert [state["epoch"] for _, state in job.kept] == [2]
    assert job.told == [1, 2]
    assert classes.train(again)[1] == whole
    assert again.told == [3, 4]


def test_a_refit_learns_exactly_so_many_epochs_and_goes_on_to_the_same_bytes(classes: Ready) -> None:
    trained, _ = classes.train()
    spec = classes.spec.model_copy(update={"params": SMALL})
    trained = trained.model_copy(update={"iterations": 3})
    request = contracts.RefitRequest(
        spec=spec, snapshot=classes.snapshot, prepared=classes.prepared, trained=trained, slot=SLOT
    )
    job, again = classes.other_job(due=True), classes.other_job()

    whole = training.refit(request, job)
    again.kept = job.kept[: len(job.kept) // 2]

    assert job.told[-1] == 3
    assert training.refit(request, again).model == whole.model
    assert all("validation_loss" not in values for values in job.values.values())  # noqa: PD011


def test_rows_are_read_a_window_at_a_time_and_its_size_does_not_show(
    classes: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = classes.train(epochs=2)
    matrix, read = PreparedRows.matrix, []
    monkeypatch.setattr(PreparedRows, "matrix", lambda rows, places: read.append(len(places)) or matrix(rows, places))
    monkeypatch.setattr(learning, "CHUNK_CELLS", 40 * classes.features)

    assert classes.train(epochs=2)[1] == whole
    assert read.count(40) == 2 * 11  # of two batches each, and of what is left of 384 rows


def test_gradients_of_four_batches_are_those_of_one_four_times_as_large(classes: Ready) -> None:
    _, once = classes.train(batch=64, epochs=2)
    _, summed = classes.train(batch=16, accumulation=4, epochs=2)
    pipeline = Pipeline.read(classes.job.artifacts, classes.prepared.pipeline)
    one, other = (torch_tabular.load(each, pipeline).network.flat for each in (once, summed))

    assert not torch.equal(one, other)  # sums of float32 in another order
    assert torch.allclose(one, other, atol=1e-4)


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"depth": 3}, r"params\.depth: .*known are architecture, layers"),
        ({"width": 0}, r"params\.width: .*greater than or equal to 4"),
        ({"learning_rate": "fast"}, r"params\.learning_rate: .*valid number"),
        ({"precision": "float64"}, r"params\.precision: .*'auto', 'float32' or 'bfloat16'"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_runs(params: dict[str, Any], says: str) -> None:
    spec = {"model": "m", "task": "binary", "target": "y", "source": {"path": "/t.csv"}, "trainer": "torch"}

    with pytest.raises(InvalidSpec, match=says) as caught:
        checked(spec | {"params": params})

    assert caught.value.field == f"params.{next(iter(params))}"
    assert checked(spec | {"trainer": "lightgbm", "params": {"max_depth": 3}}).params == {"max_depth": 3}


STEEP = {"architecture": "mlp", "layers": 16, "width": 256, "batch": 32, "epochs": 2, "dropout": 0}


def test_a_loss_that_is_no_number_is_learned_again_at_half_the_rate(
    numbers: Ready, capsys: pytest.CaptureFixture[str]
) -> None:
    job = numbers.other_job(due=True)

    _, whole = numbers.train(job, learning_rate=3.3, **STEEP)

    said = capsys.readouterr().out
    assert said.count("the loss became NaN or Inf in epoch 1, ") == 1
    assert "back to the start of the epoch, with half the rate" in said
    assert job.kept[-1][1]["rate"] == 0.5
    assert np.isfinite(job.kept[-1][1]["weights"]).all()
    again = numbers.other_job()
    again.kept = job.kept[:1]
    assert numbers.train(again, learning_rate=3.3, **STEEP)[1] == whole


def test_a_loss_that_is_no_number_also_at_a_quarter_of_the_rate_is_for_a_person(numbers: Ready) -> None:
    with pytest.raises(Diverged, match=r"NaN or Inf in epoch 1, .* also at a learning rate of 2\.5") as caught:
        numbers.train(learning_rate=10, **STEEP | {"width": 384})

    assert caught.value.field == "params.learning_rate"
    assert caught.value.hint


LIMITED = """
import json, resource, sys
from pathlib import Path
from activities.compute import training
from everloop import contracts
from everloop.errors import EverloopError
from tests.job import FolderJob
import torch
from activities.compute.trainers import torch_tabular
torch_tabular._start(1)
torch.ones(2, requires_grad=True).sum().backward()  # what torch makes once, before the limit
request = contracts.TrainRequest.model_validate_json(Path(sys.argv[2]).read_text())
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), resource.RLIM_INFINITY))
job = FolderJob(Path(sys.argv[1]))
try:
    told = training.train(request, job).model.model_dump_json()
except EverloopError as error:
    told = f"{type(error).__name__}: {error} ({error.hint})"
print(json.dumps([told, job.values]))
"""


def limited(ready: Ready, more_bytes: int, **params: Any) -> tuple[list[str], str, dict[str, Any]]:
    """A training in a process that may take *more_bytes* beyond what it has at its start."""
    spec = ready.spec.model_copy(update={"params": SMALL | params})
    request = contracts.TrainRequest(spec=spec, prepared=ready.prepared, slot=SLOT)
    order = ready.job.scratch / "request.json"
    order.write_text(request.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, ready.job.scratch.parent, order, str(more_bytes)],
        env=engine.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *log, last = done.stdout.splitlines()
    told, values = json.loads(last)
    return log, told, values


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    return ready(tmp_path_factory.mktemp("many"), table(10_000), "binary")


WIDE = {"architecture": "mlp", "width": 2048, "layers": 1, "epochs": 1, "batch": 8_000}
"""Each layer of a batch takes 52 MB, the weights a hundredth of it."""


def test_a_batch_that_does_not_fit_is_halved_and_the_training_stays_the_same(many: Ready) -> None:
    log, told, values = limited(many, 120 << 20, **WIDE)

    halved = sum(line.startswith("out of memory") for line in log)
    assert "batch 3,200 instead of 6,400, 2 of them in each step" in "".join(log)
    assert (values["1"]["batch"], values["1"]["accumulation"]) == (6_400 / 2**halved, 2**halved)
    asked = {"batch": 6_400 // 2**halved, "accumulation": 2**halved}
    assert Blob.model_validate_json(told) == many.train(**WIDE | asked)[0].model


def test_a_training_that_fits_in_no_batch_is_for_a_person_with_the_bytes_it_takes(many: Ready) -> None:
    _, told, _ = limited(many, 200 << 20, **WIDE | {"layers": 6, "batch": 16})

    assert re.match(
        r"OutOfMemory: .* whose weights alone take 7\d\d,\d{3},\d{3} bytes; [\d,]+ bytes more were refused", told
    )
    assert "a smaller `batch`" in told


def test_a_training_whose_weights_are_more_than_the_lease_is_for_a_person_at_once(classes: Ready) -> None:
    job = classes.other_job()
    job.lease = Lease(token=1, holder="", members=(Member(device="cpu0", memory_mib=16),))

    with pytest.raises(OutOfMemory, match=r"weights of this .* take [\d,]{10,} bytes, .* allows 16,777,216"):
        classes.train(job, width=512)
    assert job.shrinks == 0  # no batch is small enough


def test_a_job_that_was_ended_for_its_memory_learns_the_same_in_smaller_batches(classes: Ready) -> None:
    job, plain = classes.other_job(), classes.other_job()
    job.shrunk = 1

    _, less = classes.train(job, batch=64, epochs=1)
    _, asked = classes.train(plain, batch=32, accumulation=2, epochs=1)

    assert less == asked
    assert job.values[1]["accumulation"] == 2  # noqa: PD011
    assert job.shrinks == 7  # and may be ended for it again, down to one row


def test_a_killed_job_goes_on_from_its_checkpoints_on_the_disk_to_the_same_bytes(
    classes: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = classes.train()
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ThisJob, "shrink", lambda job, most=3: 0)  # its folder has no order of a supervisor

    def job(token: int) -> ThisJob:
        kept = Checkpoints(tmp_path / "checkpoints", token)
        return ThisJob(classes.job.artifacts, tmp_path, tmp_path, NO_EVENTS, kept, checkpoint_seconds=0)

    killed = job(1)
    report = killed.report
    monkeypatch.setattr(killed, "report", lambda step, /, **values: _die(step, 2) or report(step, **values))
    try:
        with pytest.raises(SystemExit):
            classes.train(killed)
        again = job(2)
        assert classes.train(again)[1] == whole
    finally:
        signal.signal(signal.SIGTERM, before)
    assert again.resumed is not None
    assert again.resumed.step == 24 + 20  # within the second epoch


def _die(step: int, at: int) -> None:
    if step == at:
        raise SystemExit


def test_a_target_that_is_no_number_is_for_a_person(classes: Ready) -> None:
    with prepared_rows(classes.job.artifacts, classes.prepared) as rows:
        examples = classes.examples(rows)
        goal = examples.goal.copy()
        goal[examples.train[:7]], goal[examples.validation[0]] = np.nan, np.inf

        with pytest.raises(TargetUnusable, match="'y' is NaN or infinite in 8 rows"):
            torch_tabular.fit(replace(examples, goal=goal), SMALL, classes.job)


LOST = "CUDA error: uncorrectable ECC error encountered"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (LOST, ComputeLost),
        ("CUDA error: unspecified launch failure", ComputeLost),
        ("CUDA error: device-side assert triggered", RuntimeError),
        ("CUDA error: out of memory", OutOfMemory),
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has", OutOfMemory),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
def test_what_a_device_says_decides_whether_another_one_may_do_it(said: str, kind: type[Exception]) -> None:
    # No device can be lost here: torch's own error classes, with CUDA's own sentences.
    with pytest.raises(kind) as caught, faults.named("this training"):
        raise torch.AcceleratorError(said) if "CUDA error" in said else torch.OutOfMemoryError(said)

    assert type(caught.value) is kind or kind is RuntimeError
    assert "2,684,354,560 bytes" in str(caught.value) or "2.50 GiB" not in said
