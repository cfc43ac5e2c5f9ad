"""What the evidence claims of a comparison: only rows that neither model has learned from may be counted."""

from pathlib import Path

import numpy as np
import pandas as pd

from tests.job import FolderJob
from tests.stages import Passed, csv, spec_of


def rows(count: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    code = random.integers(1, 31, count)
    x = random.normal(size=count)
    return pd.DataFrame({"code": code, "x": x, "y": (code % 7 + x + random.normal(size=count) > 3).astype(int)})


def test_where_a_new_file_changes_how_an_old_column_is_read_nothing_is_compared(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", rows(1500, 1), "a.csv")
    spec = spec_of(tmp_path / "s", "binary", "y", training={"rounds": 5})
    champion = Passed(job, spec).champion()
    late = rows(300, 2)
    csv(
        tmp_path / "s",
        late.assign(code=["B12" if n % 60 == 0 else str(code) for n, code in enumerate(late.code)]),
        "b.csv",
    )

    passed = Passed(job, spec, champion)

    assert passed.prepared.unmatched == ("code",)
    assert passed.prepared.fresh_rows == 0
    assert passed.evaluation.comparison.verdict == "no_fresh_rows"
    assert "'code'" in passed.evaluation.comparison.reason


def test_a_column_that_was_empty_and_a_new_file_of_the_same_kind_are_compared(tmp_path: Path, job: FolderJob) -> None:
    csv(tmp_path / "s", rows(1500, 1).assign(note=""), "a.csv")
    spec = spec_of(tmp_path / "s", "binary", "y", training={"rounds": 5})
    champion = Passed(job, spec).champion()
    csv(tmp_path / "s", rows(600, 2).assign(note="said"), "b.csv")

    passed = Passed(job, spec, champion)

    assert passed.prepared.unmatched == ()
    assert 0 < passed.evaluation.comparison.rows <= 600


def test_a_column_that_is_there_no_more_leaves_nothing_to_compare(tmp_path: Path, job: FolderJob) -> None:
    path = csv(tmp_path, rows(1500, 1))
    spec = spec_of(path, "binary", "y", training={"rounds": 5})
    champion = Passed(job, spec).champion()
    csv(tmp_path, pd.concat([rows(1500, 1), rows(300, 2)]).drop(columns="x"))

    passed = Passed(job, spec, champion)

    assert passed.prepared.unmatched == ("x",)
    assert passed.evaluation.comparison.verdict == "no_fresh_rows"
