"""Champion and challenger are compared on rows that neither has seen."""

from pathlib import Path

import numpy as np
import pandas as pd

from activities.compute import evaluation
from tests.job import FolderJob
from tests.stages import Passed, csv, spec_of, table


def drifting(rows: int, sign: int, year: int, seed: int) -> pd.DataFrame:
    frame = table(rows, seed=seed).assign(t=pd.date_range(f"{year}-01-01", f"{year}-12-30", rows))
    return frame.assign(x=lambda f: f.x * sign)


def test_a_challenger_that_learned_the_change_is_better_on_rows_that_neither_has_seen(
    tmp_path: Path, job: FolderJob
) -> None:
    csv(tmp_path / "s", drifting(600, 1, 2020, 1), "2020.csv")
    spec = spec_of(tmp_path / "s", "binary", "y", time="t", training={"rounds": 40})
    champion = Passed(job, spec).champion()
    csv(tmp_path / "s", drifting(1500, -1, 2021, 2), "2021.csv")

    found = Passed(job, spec, champion).evaluation.comparison

    assert found.verdict == "better"
    assert found.rows == 750  # the latest half of the rows that are new
    assert f"{found.champion:.4g}" in found.reason
    assert f"{found.challenger:.4g}" in found.reason


def test_a_challenger_that_is_not_better_is_told_so_with_both_figures(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", drifting(2000, 1, 2020, 1), "2020.csv")
    spec = spec_of(tmp_path / "s", "binary", "y", time="t", training={"rounds": 40})
    champion = Passed(job, spec).champion()
    csv(tmp_path / "s", drifting(100, 1, 2021, 2), "2021.csv")
    weak = spec.model_copy(update={"training": spec.training.model_copy(update={"rounds": 1, "leaves": 2})})

    found = Passed(job, weak, champion).evaluation.comparison

    assert found.verdict == "not_better"
    assert found.challenger < found.champion
    assert "worse by" in found.reason


def test_without_new_rows_nothing_is_compared(tmp_path: Path, job: FolderJob) -> None:
    spec = spec_of(csv(tmp_path, table(300)), "binary", "y", training={"rounds": 5})
    champion = Passed(job, spec).champion()

    passed = Passed(job, spec, champion)

    assert passed.prepared.fresh_rows == 0
    assert passed.evaluation.comparison.verdict == "no_fresh_rows"


def test_a_class_that_the_champion_does_not_know_counts_as_probability_0(tmp_path: Path, job: FolderJob) -> None:
    first = drifting(600, 1, 2020, 1).assign(y=lambda f: f.y.map({0: "p", 1: "q"}))
    csv(tmp_path / "s", first, "1.csv")
    spec = spec_of(tmp_path / "s", "multiclass", "y", time="t", training={"rounds": 20})
    champion = Passed(job, spec).champion()
    second = drifting(600, 1, 2021, 2).assign(y=lambda f: np.where(f.index % 3 == 0, "new", f.y.map({0: "p", 1: "q"})))
    csv(tmp_path / "s", second, "2.csv")

    found = Passed(job, spec, champion).evaluation.comparison

    assert found.verdict == "better"
    assert found.champion > 5  # a third of the rows at -log(1e-15)


def test_ranks_with_ties_give_the_area_under_the_curve() -> None:
    truth = np.array([False, False, True, True])

    assert evaluation.auc(truth, np.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    assert evaluation.auc(truth, np.array([0.5, 0.5, 0.5, 0.5])) == 0.5
    assert evaluation.auc(np.array([True, True]), np.array([0.1, 0.2])) is None
