"""Numbers of strangers' files, each with its right value: read as the owner meant it, or the doubt is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from activities.compute import data, features
from activities.compute.features import Pipeline
from activities.compute.profile import profile
from everloop import contracts
from everloop.errors import InvalidData
from everloop.rows import from_csv
from everloop.specs import LifecycleSpec
from tests.job import FolderJob
from tests.reading import ROWS, drafted, first_rows, read, taken, written
from tests.stages import SLOT, Passed, spec_of


def test_blanks_around_names_and_values_and_before_quotes_are_no_part_of_them(tmp_path: Path, job: FolderJob) -> None:
    jobs, hours = ["Nurse", " Nurse", "Clerk"], [" NA", " 20", "40"]
    path = written(
        tmp_path, "age, job, hours, town, y", lambda n: f'{n}, {jobs[n % 3]}, {hours[n % 3]}, "Rome, IT", {n % 2}'
    )

    kept = taken(job, path)
    found = data.load(job.artifacts, kept)

    assert found.rows.column_names == ["age", "job", "hours", "town", "y"]
    assert set(found.rows["job"].to_pylist()) == {"Nurse", "Clerk"}
    assert first_rows(found, "hours", 3) == [None, 20, 40]
    assert set(found.rows["town"].to_pylist()) == {"Rome, IT"}
    assert kept.changed == ("40 values of `hours` are read as missing: 'NA'",)


def test_blanks_stay_where_the_spec_says_so(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "c,y", lambda n: f"{' a' if n % 2 else 'a'},{n % 2}")

    found = read(job, path, columns={"c": {"trim": False}})

    assert set(found.rows["c"].to_pylist()) == {" a", "a"}


@pytest.mark.parametrize(
    ("values", "delimiter", "right"),
    [
        (["1,5", "2,25"], ",", [1.5, 2.25]),
        (["1 234,5", "12"], ";", [1234.5, 12]),
        (["1\u00a0234", "12"], ",", [1234, 12]),
        (["1\u202f234,5", "-0,5"], ";", [1234.5, -0.5]),
        (["1'234.5", "7"], ",", [1234.5, 7]),
        (["9223372036854775807", "-1"], ",", [2**63 - 1, -1]),
        (["007", "12"], ",", ["007", "12"]),
    ],
)
def test_numbers_are_read_as_the_world_writes_them(
    tmp_path: Path, job: FolderJob, values: list[str], delimiter: str, right: list[Any]
) -> None:
    path = written(tmp_path, f"v{delimiter}y", lambda n: f'"{values[n % 2]}"{delimiter}{n % 2}')

    assert first_rows(read(job, path), "v", 2) == right


def test_a_number_that_only_row_5000_contradicts_is_no_number(tmp_path: Path, job: FolderJob) -> None:
    path = written(
        tmp_path, "v,w,y", lambda n: f"{n if n != 5000 else 'B12'},{n if n != 5000 else 1.5},{n % 2}", rows=6000
    )

    found = read(job, path)

    assert first_rows(found, "v", 2) == ["0", "1"]
    assert found.rows["w"].to_pylist()[5000] == 1.5


def test_decimals_beyond_float64_are_kept_digit_by_digit_and_others_are_plain(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "price,x,y", lambda n: f"12345678901234567.{n:03d},{n / 7!r},{n % 2}")

    found = read(job, path)

    assert str(found.rows["price"][7].as_py()) == "12345678901234567.007"
    assert found.rows["x"].type == pa.float64()


def test_numbers_in_a_dress_are_offered_and_read_where_the_spec_says_so(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "share;pay;y", lambda n: f"{n},5 %;${n + 1},200;{n % 2}")

    text = drafted(path, "y")
    spec = LifecycleSpec.model_validate(__import__("yaml").safe_load(text))
    found = read(job, path, columns=spec.model_dump()["columns"])

    assert "The texts are numbers" in text
    assert (spec.columns["share"].unit, spec.columns["pay"].unit) == ("%", "$")
    assert first_rows(found, "share", 2) == [0.5, 1.5]
    assert first_rows(found, "pay", 2) == [1200, 2200]


def test_texts_of_numbers_in_parquet_are_offered_as_a_target(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"price": random.normal(size=200).round(3).astype(str), "k": random.integers(0, 9, 200)})
    frame.to_parquet(tmp_path / "t.parquet")

    found = profile(tmp_path / "t.parquet", "price", None)

    assert found["task"] == "regression"
    assert set(found["offers"]) == {"price"}


def test_numbers_are_offered_beside_texts_that_say_there_is_none(tmp_path: Path, job: FolderJob) -> None:
    """Every language has its own n/a; what else is no number, or holds a digit, leaves the column text."""
    cells = {
        "miete": lambda n: "k. A." if n % 10 == 3 else f"1.{n:03d},50 €",
        "доход": lambda n: ("н/д", "NA")[n % 2] if n % 10 > 7 else f"{n + 1}\xa0234,5",
        "flat": lambda n: f"{n}b" if n % 10 == 3 else f"{n},5",
    }
    path = written(
        tmp_path, ";".join([*cells, "y"]), lambda n: ";".join([*(one(n) for one in cells.values()), f"{n % 2}"])
    )

    spec = LifecycleSpec.model_validate(__import__("yaml").safe_load(text := drafted(path, "y")))
    kept = taken(job, path, columns=spec.model_dump()["columns"])
    found = data.load(job.artifacts, kept)

    assert "such as 1000.5 €, but for 'k. A.'" in text
    assert (spec.columns["miete"].unit, spec.columns["miete"].missing) == ("€", ("k. A.",))
    assert found.rows["miete"].to_pylist()[:5] == [1000.5, 1001.5, 1002.5, None, 1004.5]
    assert found.rows["доход"].to_pylist()[6:10] == [7234.5, 8234.5, None, None]
    assert (spec.columns["flat"].type, found.rows["flat"][0].as_py()) == ("text", "0,5")
    assert "12 values of `miete` are read as missing: 'k. A.'" in kept.changed


def test_a_value_that_is_not_as_declared_is_missing_and_can_be_downloaded(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "v,y", lambda n: f"{'abc' if n == 7 else n},{n % 2}")

    kept = taken(job, path, columns={"v": {"type": "number"}})

    assert data.load(job.artifacts, kept).rows["v"].to_pylist()[6:9] == [6, None, 8]
    assert kept.changed == ("1 value of `v` is not as declared: 'abc'",)
    assert job.artifacts.get(kept.rejected).decode().splitlines() == ["file,row,column,value", "t.csv,8,v,abc"]


def test_a_declaration_that_fits_hardly_anything_is_refused(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "v,y", lambda n: f"word{n},{n % 2}")

    with pytest.raises(InvalidData, match=r"columns\.v: 120 of 120 values are not as declared \(number\): 'word0'"):
        taken(job, path, columns={"v": {"type": "number"}})


def test_keys_of_19_digits_keep_all_of_them(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "user_id,x,y", lambda n: f"{1234567890123456001 + 3 * n},{n * 7919 % 97},{n % 2}")

    passed = Passed(job, spec_of(path, "binary", "y", key="user_id", training={"rounds": 2}))
    whole = data.load(job.artifacts, passed.snapshot)
    asked = from_csv("user_id,x\n1234567890123456002,0.5\n", "ask.csv", passed.signature.model_dump(mode="json"))

    assert first_rows(whole, "user_id", 2) == ["1234567890123456001", "1234567890123456004"]
    assert asked[0]["user_id"] == 1234567890123456002
    assert 'user_id": {type: identifier}' in drafted(path, "y")
    number = read(job, path)
    assert first_rows(number, "user_id", 2) == [1234567890123456001, 1234567890123456004]
    alike = number.rows.set_column(0, "user_id", pa.array([1234567890123456001 + n % 2 for n in range(ROWS)]))
    same = data.Table(alike.set_column(1, "x", pa.array([1] * ROWS)).set_column(2, "y", pa.array([1] * ROWS)), ())
    assert len(np.unique(data.content_hashes(same))) == 2


def test_whole_numbers_that_float32_takes_for_one_are_told_apart(tmp_path: Path, job: FolderJob) -> None:
    random = np.random.default_rng(0)
    serial = np.r_[500_000_000 + random.integers(0, 31, 900), [1] * 50, [1_000_000_000] * 50]
    frame = pd.DataFrame({"serial": serial, "y": (serial > 500_000_015).astype(int)}).sample(frac=1, random_state=0)
    frame.to_csv(tmp_path / "t.csv", index=False)

    passed = Passed(job, spec_of(tmp_path / "t.csv", "binary", "y", training={"rounds": 60}))
    answers = passed.model.predict(passed.model.check([{"serial": 500_000_015}, {"serial": 500_000_016}])).rows()

    assert [answer["label"] for answer in answers] == [0, 1]
    assert answers[1]["probability"] - answers[0]["probability"] > 0.5


@pytest.mark.parametrize("missing", [False, True])
def test_the_last_digit_counts_in_both_of_two_clusters_that_lie_far_apart(
    tmp_path: Path, job: FolderJob, missing: bool
) -> None:
    random = np.random.default_rng(0)
    near, far = random.integers(0, 10, 1500), 500_000_010 + random.integers(0, 10, 1500)
    serial = np.r_[near, far, 9_000_000_000_000_010 + random.integers(0, 10, 1500)]
    frame = pd.DataFrame({"serial": serial, "x": random.normal(size=len(serial)), "y": (serial % 10 > 5).astype(int)})
    if missing:
        frame["serial"] = frame.serial.astype("Int64").mask(random.random(len(frame)) < 0.05)
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "t.csv", index=False)

    passed = Passed(job, spec_of(tmp_path / "t.csv", "binary", "y", training={"rounds": 60}))
    asked = [start + digit for start in (0, 500_000_010, 9_000_000_000_000_010) for digit in range(10)]
    answers = passed.model.predict(passed.model.check([{"serial": one, "x": 0.1} for one in asked])).rows()

    assert [answer["label"] for answer in answers] == [int(one % 10 > 5) for one in asked]
    assert passed.exported.parity.mismatches == 0
    pipeline = Pipeline.read(job.artifacts, passed.refitted.pipeline)
    assert pipeline.names == ("serial", "x", "serial (fine)", "serial (finest)")
    told = Pipeline.read(job.artifacts, passed.prepared.pipeline).added
    assert [added.name for added in told if added.rule == "fine"] == ["serial"]


def test_wide_numbers_that_float32_tells_apart_have_no_second_feature(tmp_path: Path, job: FolderJob) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"wide": random.integers(0, 10**12, 2000), "y": [0, 1] * 1000})
    frame.to_csv(tmp_path / "t.csv", index=False)
    spec = spec_of(tmp_path / "t.csv", "binary", "y")
    kept = taken(job, tmp_path / "t.csv")

    prepared = features.prepare(contracts.PrepareRequest(spec=spec, snapshot=kept, champion=None, slot=SLOT), job)

    assert Pipeline.read(job.artifacts, prepared.pipeline).names == ("wide",)
