"""The target in strangers' files: its classes are what their owner called them."""

from pathlib import Path

import pandas as pd
import pytest

from activities.compute import data
from activities.compute.profile import profile
from everloop.errors import TargetUnusable
from everloop.rows import from_csv
from tests.job import FolderJob
from tests.reading import ROWS, drafted, read, taken, written
from tests.stages import Passed, spec_of


@pytest.mark.parametrize("name", ["NA", "None", "null", "nan"])
@pytest.mark.parametrize("parquet", [False, True])
def test_a_class_with_the_name_of_nothing_is_a_class(tmp_path: Path, job: FolderJob, name: str, parquet: bool) -> None:
    values = [("EU", "APAC", name)[n % 3] for n in range(ROWS)]
    path = written(tmp_path, "x,y", lambda n: f'{n},"{values[n]}"')
    if parquet:
        path = tmp_path / "t.parquet"
        pd.DataFrame({"x": range(ROWS), "y": values}).to_parquet(path)

    for said in ({}, {"y": {"type": "category"}}):  # as a draft says it, too
        found = read(job, path, task="multiclass", columns=said)
        target = data.target_of(found, spec_of(path, "multiclass", "y"))

        assert sorted(target.classes) == sorted({"EU", "APAC", name})
        assert len(target.labelled) == ROWS


def test_a_class_in_quotes_is_not_asked_about(tmp_path: Path) -> None:
    path = written(tmp_path, "x,y", lambda n: f"{n * 7919 % 97},{('EU', 'APAC', chr(34) + 'NA' + chr(34))[n % 3]}")
    mixed = written(
        tmp_path, "x,y", lambda n: f"{n * 7919 % 97},{('EU', 'NA', chr(34) + 'NA' + chr(34))[n % 3]}", "m.csv"
    )

    assert (profile(path, "y", None)["target_missing"], profile(path, "y", None)["target_asks"]) == (0, False)
    assert (profile(mixed, "y", None)["target_missing"], profile(mixed, "y", None)["target_asks"]) == (40, True)


def test_a_region_called_na_is_a_region_in_requests_too(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "region,x,y", lambda n: f'"{("EU", "NA")[n % 2]}",{n * 7919 % 97},{n % 2}', rows=300)

    passed = Passed(job, spec_of(path, "binary", "y", training={"rounds": 10}))
    asked = from_csv("region,x\nNA,1\nEU,1\n", "ask.csv", passed.signature.model_dump(mode="json"))
    answers = passed.model.predict(passed.model.check(asked)).rows()

    assert [row["region"] for row in asked] == ["NA", "EU"]
    assert [answer["label"] for answer in answers] == [1, 0]  # whole numbers, as in the table


def test_rows_that_lose_their_target_are_counted_and_asked_about(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "x,y", lambda n: f"{n * 7919 % 97},{('EU', 'APAC', 'NA')[n % 3]}")
    spec = spec_of(path, "binary", "y")
    kept = taken(job, path)

    text = drafted(path, "y")
    with pytest.raises(TargetUnusable, match=r"no value in 40 of 120 rows .*'NA'") as refused:
        data.target_of(data.load(job.artifacts, kept), spec)

    assert "target_missing: drop" in refused.value.hint
    assert "everloop submit SPEC --set target_missing=drop" in refused.value.hint
    assert "# 40 of 120 rows have no target (read as missing: 'NA')" in text
    assert kept.target_missing == 40
    dropped = spec_of(path, "binary", "y", target_missing="drop")
    assert len(data.target_of(data.load(job.artifacts, kept), dropped).labelled) == 80
    meant = read(job, path, columns={"y": {"missing": []}})
    assert len(data.target_of(meant, spec_of(path, "multiclass", "y")).classes) == 3


def test_booleans_are_answered_as_booleans(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "x,y", lambda n: f"{n * 7919 % 97 + 100 * (n % 2)},{('false', 'true')[n % 2]}")

    passed = Passed(job, spec_of(path, "binary", "y", training={"rounds": 5}))

    assert passed.model.predict(passed.model.check([{"x": 180}])).rows()[0]["label"] is True
