"""What the peers of `bench/automl.py` share. Each is a script that runs in its own environment: FOLDER.

FOLDER holds `question.json` (task, target, time, budget_s, cores, seed, train, test); the script leaves `answers.npy`
there (test rows by class, classes in text order; of a regression the values) and `facts.json` (seconds of search and
refit, and what it chose).
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd


@dataclass
class Question:
    folder: Path
    task: str
    target: str
    time: str | None
    budget_s: float
    cores: int
    seed: int
    X: pd.DataFrame
    y: pd.Series
    test: pd.DataFrame

    @property
    def regression(self) -> bool:
        return self.task == "regression"

    def answered(self, answers: np.ndarray, search_s: float, refit_s: float, **facts: object) -> None:
        np.save(self.folder / "answers.npy", np.asarray(answers, dtype=np.float64))
        facts |= {"search_s": search_s, "refit_s": refit_s}
        (self.folder / "facts.json").write_text(json.dumps(facts, default=str))


def question() -> Question:
    """What is asked, read: texts as they are, no column of times."""
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "question.json").read_text())
    train, test = pd.read_csv(asked.pop("train"), low_memory=False), pd.read_csv(asked.pop("test"), low_memory=False)
    left_out = [asked["target"], *([asked["time"]] if asked["time"] else [])]
    y = train[asked["target"]]
    y = y if asked["task"] == "regression" else y.astype(str)
    return Question(folder, X=train.drop(columns=left_out), y=y, test=test.drop(columns=left_out), **asked)


def with_categories(asked: Question) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Texts as pandas' categories, those of the train rows: what LightGBM takes as its own."""
    train, test = asked.X.copy(), asked.test.copy()
    for name in train.select_dtypes(object).columns:
        train[name] = train[name].astype("category")
        test[name] = pd.Categorical(test[name], categories=train[name].cat.categories)
    return train, test


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._began
