"""What the network for tables does when it goes wrong: parameters, losses, memory, devices."""

import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from activities.compute.trainers.torch_tabular import faults
from everloop import contracts, engine
from everloop.errors import ComputeLost, Diverged, InvalidSpec, OutOfMemory
from everloop.records import Blob, Lease, Member
from everloop.specs import checked
from tests.stages import SLOT, table
from tests.unit.torch_tabular.ready import SMALL, Ready, ready


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
    assert job.values[1]["accumulation"] == 2
    assert job.shrinks == 7  # and may be ended for it again, down to one row


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
