"""A training that writes down each of its rounds: the tests look for what was done again, and by whom."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from job_functions.words import Trial, Tried

from activities.compute import UNUSED_BY_LIGHTGBM, without
from activities.compute.trainers.lightgbm import learning
from activities.jobs.context import ThisJob
from learning_functions.diary import Diary

with without(*UNUSED_BY_LIGHTGBM):
    import lightgbm

SEGMENT = 5
PARAMS = {
    "objective": "binary",
    "seed": 3,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "num_leaves": 15,
    "verbosity": -1,
    "bagging_fraction": 0.6,
    "bagging_freq": 2,
    "feature_fraction": 0.7,
    "data_random_seed": 1,
}


def learn(request: Trial, job: ThisJob) -> Tried:
    """Rounds of LightGBM at some pace, with a helper process beside it."""
    values = request.values
    learning.MOST_ROUNDS = SEGMENT
    diary = Diary(job, Path(values["diary"]), values["pace"])
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with Path(values["diary"] + ".helpers").open("a") as target:
        target.write(f"{helper.pid}\n")
    random = np.random.default_rng(0)
    rows = random.normal(size=(3000, 8))
    goal = (rows[:, 0] * rows[:, 1] + random.normal(size=3000) > 0).astype(float)
    data = lightgbm.Dataset(rows[:2500], goal[:2500], params=dict(PARAMS))
    held_out = lightgbm.Dataset(rows[2500:], goal[2500:], reference=data)
    course = learning.Course.of(diary.restore())
    learning.Learner(data, held_out, dict(PARAMS), diary, 1000).take(course, values["rounds"])
    text = course.booster().model_to_string(num_iteration=course.best)
    diary.note("end")
    helper.kill()
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Tried(values={"digest": digest, "best": course.best})


def load(request: Trial, job: ThisJob) -> Tried:
    """Where nothing can be kept yet: in a library that loads."""
    Diary(job, Path(request.values["diary"]), 0)
    end = time.monotonic() + 60
    while time.monotonic() < end:  # C code that looks at no signal of Python's would be as deaf
        hashlib.sha256(b"x" * 50_000_000)
    return Tried(values={})
