"""The same of our torch trainer's own loop: each job loads torch anew, so a kill costs its import as well."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from job_functions.words import Trial, Tried

from activities.compute.features import Matrix
from activities.compute.trainers.torch_tabular.learning import CHECK_STEPS, Learning, Task
from activities.compute.trainers.torch_tabular.network import Scaling, Shape
from activities.jobs.context import ThisJob
from everloop.families.torch import Params as TorchParams
from learning_functions.diary import Diary

ROWS, HELD_OUT, NUMBERS, BATCH = 3000, 500, 8, 250


class Rows:
    """As `PreparedRows` gives them."""

    features = NUMBERS

    def __init__(self, numbers: Matrix) -> None:
        self._numbers = numbers

    def matrix(self, places: np.ndarray) -> Matrix:
        return self._numbers[places]


class EpochDiary(Diary):
    """A round is an epoch: of `CHECK_STEPS` steps, so that the loop asks once as each begins."""

    def restore(self) -> tuple[int, dict] | None:
        found = self._job.restore()
        self.round = found[0] // CHECK_STEPS if found else 0
        self.note("resume")
        return found


def learn(request: Trial, job: ThisJob) -> Tried:
    """Epochs of our network at some pace, with a helper process beside it."""
    values = request.values
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    diary = EpochDiary(job, Path(values["diary"]), values["pace"])
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with Path(values["diary"] + ".helpers").open("a") as target:
        target.write(f"{helper.pid}\n")
    random = np.random.default_rng(0)
    numbers = random.normal(size=(ROWS, NUMBERS)).astype(np.float32)
    goal = (numbers[:, 0] * numbers[:, 1] + random.normal(size=ROWS) > 0).astype(np.float32)
    params = TorchParams(epochs=values["rounds"], patience=values["rounds"], batch=BATCH, layers=2, width=32)
    task = Task(
        shape=Shape(params.architecture, params.layers, params.width, params.embedding, NUMBERS, (), (), 2),
        scaling=Scaling(np.zeros(NUMBERS, np.float32), np.ones(NUMBERS, np.float32)),
        params=params,
        seed=3,
        device="cpu",
        rows=Rows(numbers),
        goal=goal,
        train=np.arange(ROWS - HELD_OUT),
        validation=np.arange(ROWS - HELD_OUT, ROWS),
        counts=[],
        iterations=None,
    )
    learning = Learning(task, diary)
    assert learning.steps == CHECK_STEPS
    learning.run()
    diary.note("end")
    helper.kill()
    digest = hashlib.sha256(learning.network.flat.numpy().tobytes()).hexdigest()
    return Tried(values={"digest": digest, "best": learning.best_epoch})
