"""The network for tables gives the same bytes from the same request, whatever ends its training."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activities.compute import training
from activities.compute.features import PreparedRows
from activities.compute.trainers.torch_tabular import learning
from activities.jobs.checkpoints import Checkpoints
from activities.jobs.context import NO_EVENTS, ThisJob
from everloop import contracts
from tests.job import FolderJob
from tests.stages import SLOT
from tests.unit.torch_tabular.ready import SMALL, Ready


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
    assert all("validation_loss" not in values for values in job.values.values())


def test_rows_are_read_a_window_at_a_time_and_its_size_does_not_show(
    classes: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = classes.train(epochs=2)
    matrix, read = PreparedRows.matrix, []
    monkeypatch.setattr(PreparedRows, "matrix", lambda rows, places: read.append(len(places)) or matrix(rows, places))
    monkeypatch.setattr(learning, "CHUNK_CELLS", 40 * classes.features)

    assert classes.train(epochs=2)[1] == whole
    assert read.count(40) == 2 * 11  # of two batches each, and of what is left of 384 rows


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
