"""A training that is ended goes on to the same bytes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from activities.jobs.checkpoints import Stopped
from everloop.errors import TrainerFailed
from tests.unit.user_trainers.functions import Stages, Write, small


def test_a_fork_that_returns_from_the_function_ends_there(module: Write, small_stages: Stages) -> None:
    text = """
import os, sys
def fit(t):
    forked = os.fork()
    if forked:
        status = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
        raise ValueError(f"the fork ended with {status}")
    return None
"""
    stages = small_stages.learned_by(f"{module(text)}:fit")

    with pytest.raises(TrainerFailed, match="the fork ended with 0"):
        stages.train()


def test_the_same_training_gives_the_same_bytes_and_says_what_it_ran_with(tmp_path: Path, module: Write) -> None:
    random = "def fit(t):\n    from sklearn.ensemble import ExtraTreesClassifier\n"
    random += "    return ExtraTreesClassifier(10).fit(t.train.numpy(), t.train.y)  # no seed of its own\n"
    stages = Stages(tmp_path, small(), target="y", task="binary", trainer=f"{module(random)}:fit", inputs="features")

    stages.train()
    first = stages.trained
    np.random.random(7)  # noqa: NPY002  # what the training draws from
    stages.train()

    assert stages.trained.model == first.model
    assert first.code is not None and first.environment is not None
    said = stages.job.artifacts.get(first.environment).decode()
    assert f'"numpy=={np.__version__}"' in said and '"seed": 0' in said and sys.version.split()[0] in said


class Killed(Stopped):
    """As if the process were gone: no trainer's own exception."""


def test_a_training_that_was_killed_goes_on_at_its_checkpoint_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(__file__).parents[3] / "examples" / "trainers" / "torch_net"
    monkeypatch.syspath_prepend(str(place))
    stages = Stages(
        tmp_path, small(), target="y", task="binary", trainer="net:fit", inputs="features", params={"epochs": 6}
    )
    stages.job.told.clear()
    stages.train()
    whole, told = stages.trained, list(stages.job.told)
    report = stages.job.report

    def until_the_fourth(step: int, /, **values: float) -> None:
        report(step, **values)
        if step == 4:
            raise Killed

    stages.job.told.clear()
    stages.job.due, stages.job.report = True, until_the_fourth  # type: ignore[method-assign]
    with pytest.raises(Killed):
        stages.train()
    stages.job.report = report  # type: ignore[method-assign]
    stages.train()

    assert told == [1, 2, 3, 4, 5, 6]
    assert stages.job.told == [1, 2, 3, 4, 4, 5, 6]  # three epochs were kept
    assert stages.trained.model == whole.model and stages.trained.iterations == whole.iterations
