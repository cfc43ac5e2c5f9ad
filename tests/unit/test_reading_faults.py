"""Faults that strangers' files hit, each with its right value: read as the owner meant it, or the doubt is said."""

import bz2
import gzip
import io
import json
import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from activities.compute import data, features
from activities.compute.data import first, first_folder, seen
from activities.compute.features import Pipeline
from activities.compute.profile import profile
from everloop import contracts
from everloop.cli.rows import rows_of
from everloop.errors import EverloopError, InvalidData, InvalidSpec, TargetUnusable
from everloop.init import draft, name_from
from everloop.reading import Reading
from everloop.records import Champion, Snapshot
from everloop.rows import from_csv
from everloop.specs import LifecycleSpec
from tests.job import FolderJob
from tests.stages import SLOT, Passed, spec_of, table

ROWS = 120


def written(folder: Path, header: str, line: Any, name: str = "t.csv", rows: int = ROWS) -> Path:
    path = folder / name
    path.write_text(header + "\n" + "".join(f"{line(row)}\n" for row in range(rows)), encoding="utf-8")
    return path


def taken(job: FolderJob, path: Path, target: str = "y", task: str = "binary", **more: Any) -> Any:
    return data.snapshot(contracts.SnapshotRequest(spec=spec_of(path, task, target, **more), slot=SLOT), job)


def read(job: FolderJob, path: Path, target: str = "y", task: str = "binary", **more: Any) -> data.Table:
    return data.load(job.artifacts, taken(job, path, target, task, **more))


def first_rows(found: data.Table, name: str, rows: int = 4) -> list[Any]:
    return found.rows[name].to_pylist()[:rows]


# --- blanks -----------------------------------------------------------------------------------------------


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


# --- numbers ----------------------------------------------------------------------------------------------


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

    text = draft(path, "y")
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

    spec = LifecycleSpec.model_validate(__import__("yaml").safe_load(text := draft(path, "y")))
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


# --- times ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["30.02.2024", "31.04.2024", "29.02.2023", "2024-02-30"])
def test_a_day_that_does_not_exist_is_named_at_every_door(tmp_path: Path, job: FolderJob, odd: str) -> None:
    layout = "%Y-%m-%d" if "-" in odd else "%d.%m.%Y"
    days = pd.date_range("2023-01-01", periods=ROWS, freq="3D").strftime(layout)
    path = written(tmp_path, "due,x,y", lambda n: f"{odd if n == 17 else days[n]},{n * 7919 % 97},{n % 2}")
    good = written(tmp_path, "due,x,y", lambda n: f"{days[n]},{n * 7919 % 97},{n % 2}", "good.csv")

    with pytest.raises(InvalidData, match=odd):
        taken(job, path, time="due")
    with pytest.raises(InvalidData, match=odd):
        profile(path, "y", "due")
    assert odd in profile(path, "y", None)["unused"]["due"]
    passed = Passed(job, spec_of(good, "binary", "y", training={"rounds": 2}))
    with pytest.raises(EverloopError, match=odd):
        passed.model.check([{"due": odd, "x": 1}])
    asked = from_csv(f"due,x\n{odd},1\n", "ask.csv", passed.signature.model_dump(mode="json"))
    with pytest.raises(EverloopError, match=odd):
        passed.model.check(asked)


def test_a_year_of_two_digits_among_others_is_of_this_century(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "due,y", lambda n: f"{'31.05.23' if n == 9 else f'{n % 28 + 1:02d}.01.2023'},{n % 2}")

    found = read(job, path)

    assert found.rows["due"][9].as_py() == datetime(2023, 5, 31, tzinfo=UTC)


@pytest.mark.parametrize("never", ["9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+01:00"])
@pytest.mark.parametrize("parquet", [False, True])
def test_never_and_unset_are_clipped_and_said(tmp_path: Path, job: FolderJob, never: str, parquet: bool) -> None:
    path = written(tmp_path, "at,y", lambda n: f"{never if n == 3 else f'2024-01-{n % 28 + 1:02d}T00:00:00Z'},{n % 2}")
    if parquet:
        texts = [line.partition(",")[0] for line in path.read_text().splitlines()[1:]]
        moments = pa.array(np.array([text[:19] for text in texts], "datetime64[us]"))
        zoned = pa.compute.assume_timezone(moments, "UTC")
        shifted = pa.array([18000 if never[0] == "9" else -3600 if place == 3 else 0 for place in range(ROWS)])
        seconds = pa.compute.add(zoned.cast(pa.int64()), pa.compute.multiply(shifted, 1_000_000))
        path = tmp_path / "t.parquet"
        at = seconds.cast(pa.timestamp("us", "America/New_York"))
        pa.parquet.write_table(pa.table({"at": at, "y": [n % 2 for n in range(ROWS)]}), path)

    kept = taken(job, path, time="at")

    assert kept.time_to is not None
    assert len(data.load(job.artifacts, kept)) == ROWS
    assert any("clipped to the years 1 to 9999" in said for said in kept.changed)


@pytest.mark.parametrize("layout", ["%Y-%m-%d", "%d.%m.%Y"])
def test_what_is_missing_stays_missing_of_every_type(tmp_path: Path, job: FolderJob, layout: str) -> None:
    moments = pd.Series(pd.date_range("2024", periods=ROWS))
    frame = pd.DataFrame({"t": moments, "n": range(ROWS), "x": np.arange(ROWS) / 8, "c": "a", "b": True})
    frame = frame.astype({"n": "Int64", "b": "boolean"}).assign(z=moments.dt.tz_localize("Asia/Tokyo"))
    frame.loc[::3, :] = None
    frame["y"] = [0, 1] * (ROWS // 2)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.drop(columns="z").assign(t=frame.t.dt.strftime(layout)).to_csv(tmp_path / "t.csv", index=False)

    for name in ("t.csv", "t.parquet"):
        found = read(job, tmp_path / name)
        for column in set(found.rows.column_names) - {"y"}:
            missing = [place for place, value in enumerate(found.rows[column].to_pylist()) if value is None]
            assert missing == list(range(0, ROWS, 3)), column
            assert found.column(column).nulls == ROWS // 3


# --- the target -------------------------------------------------------------------------------------------


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

    text = draft(path, "y")
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


# --- identifiers ------------------------------------------------------------------------------------------


def test_keys_of_19_digits_keep_all_of_them(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "user_id,x,y", lambda n: f"{1234567890123456001 + 3 * n},{n * 7919 % 97},{n % 2}")

    passed = Passed(job, spec_of(path, "binary", "y", key="user_id", training={"rounds": 2}))
    whole = data.load(job.artifacts, passed.snapshot)
    asked = from_csv("user_id,x\n1234567890123456002,0.5\n", "ask.csv", passed.signature.model_dump(mode="json"))

    assert first_rows(whole, "user_id", 2) == ["1234567890123456001", "1234567890123456004"]
    assert asked[0]["user_id"] == 1234567890123456002
    assert 'user_id": {type: identifier}' in draft(path, "y")
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


# --- dialects ---------------------------------------------------------------------------------------------


def test_quotes_that_spark_escapes_are_quotes_also_far_below(tmp_path: Path, job: FolderJob) -> None:
    items = ['"12\\" pipe"', '"nail"', '"\\"L\\" box"']
    path = written(tmp_path, "item,n,y", lambda n: f"{items[n % 3] if n > 3000 else 'nail'},{n},{n % 2}", rows=3300)

    found = read(job, path)
    schema = {"task": "binary", "fields": [], "target": "y"}
    asked = from_csv('item,n\n"12\\" pipe",1\n', "ask.csv", schema)

    assert set(found.rows["item"].to_pylist()) == {'12" pipe', "nail", '"L" box'}
    assert asked[0]["item"] == '12" pipe'


@pytest.mark.parametrize("before", ["sep=;\n", "\ufeffsep=;\n", "Report of May\n\n", "# made by us\n# v2\n"])
def test_lines_before_the_header_are_passed_over(tmp_path: Path, job: FolderJob, before: str) -> None:
    path = written(tmp_path, before + "x;n;y", lambda n: f"0.{n};{n};{n % 2}")

    found = read(job, path)
    asked = from_csv(path.read_text("utf-8"), "t.csv", {"task": "binary", "fields": [], "target": "y"})

    assert found.rows.column_names == list(asked[0]) == ["x", "n", "y"]
    assert len(found) == len(asked) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_an_encoding_is_found_and_named(tmp_path: Path, job: FolderJob, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(("größe,y\n" + "".join(f"né{n % 3},{n % 2}\n" for n in range(ROWS))).encode(encoding))

    kept = taken(job, path)

    assert set(data.load(job.artifacts, kept).rows["größe"].to_pylist()) == {"né0", "né1", "né2"}
    reading = Reading.model_validate_json(job.artifacts.get(kept.reading))
    assert reading.dialect.encoding == encoding.removesuffix("-sig")


@pytest.mark.parametrize("ends", ["\r\n", "\r", "mixed"])
def test_lines_may_end_in_any_way_also_within_quotes(tmp_path: Path, job: FolderJob, ends: str) -> None:
    path = tmp_path / "t.csv"
    lines = ['x,"a\nname",y', *(f'{n},"line\nbreak",{n % 2}' for n in range(ROWS))]
    text = "".join(line + (("\r\n", "\n")[place % 2] if ends == "mixed" else ends) for place, line in enumerate(lines))
    path.write_bytes(text.encode())

    found = read(job, path)

    assert found.rows.column_names == ["x", "a\nname", "y"]
    assert found.rows["x"].to_pylist() == list(range(ROWS))
    assert set(found.rows["a\nname"].to_pylist()) == {"line\nbreak"}


@pytest.mark.parametrize("last", ["\r\n", ""], ids=["ended", "open"])
def test_a_file_from_windows_is_read_to_its_last_row(tmp_path: Path, job: FolderJob, last: str) -> None:
    """Every line ends in CR LF, also those within quotes: nothing in the file ends otherwise."""
    path = tmp_path / "t.csv"
    lines = ["x,a,y", *(f'{n},"line\r\nbreak, ""{n % 3}""",{n % 2}' for n in range(ROWS))]
    path.write_bytes(("\r\n".join(lines) + last).encode())

    found = read(job, path)

    assert found.rows["x"].to_pylist() == list(range(ROWS))
    assert found.rows["y"].to_pylist() == [n % 2 for n in range(ROWS)]
    assert set(found.rows["a"].to_pylist()) == {f'line\r\nbreak, "{n}"' for n in range(3)}


def test_names_that_differ_in_case_or_a_blank_alone_are_two_names(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "Country,country, lead,lead,y", lambda n: f"{n},{n + 1},{n + 2},{n + 3},{n % 2}")
    frame = pd.DataFrame({"Country": range(ROWS), "country": range(1, ROWS + 1), "y": [0, 1] * (ROWS // 2)})
    frame.to_parquet(tmp_path / "t.parquet")

    names = {path: ["Country", "country", " lead", "lead"], tmp_path / "t.parquet": ["Country", "country"]}
    for source, expected in names.items():
        kept = taken(job, source)
        found = data.load(job.artifacts, kept)
        drawn = json.loads(job.artifacts.get(kept.profile))["columns"]
        assert [sum(rows for _, rows in column["bars"]) for column in drawn] == [ROWS] * len(found.rows.column_names)
        assert [first_rows(found, name, 1) for name in expected] == [[place] for place in range(len(expected))]


# --- other sources ----------------------------------------------------------------------------------------


def test_the_same_rows_are_the_same_in_every_format(tmp_path: Path, job: FolderJob) -> None:
    frame = pd.DataFrame(
        {"n": range(ROWS), "x": np.arange(ROWS) / 8, "c": ["a", "b"] * (ROWS // 2), "b": [True, False] * (ROWS // 2)}
    ).assign(t=pd.date_range("2024", periods=ROWS, freq="h"), y=lambda f: f.n % 2)
    text = frame.to_csv(index=False)
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "t.csv.bz2").write_bytes(bz2.compress(text.encode()))
    with pa.output_stream(str(tmp_path / "z.csv.zst"), compression="zstd") as out:
        out.write(text.encode())
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True, date_format="iso")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_feather(tmp_path / "t.feather")

    rows = {
        path.name: read(job, path).rows.to_pydict()
        for path in tmp_path.iterdir()
        if path.suffix != "" and path.is_file()
    }

    assert len(rows) == 8
    assert all(found == rows["t.csv"] for found in rows.values()), {
        name: str(found)[:300] for name, found in rows.items()
    }
    assert rows["t.csv"]["n"] == list(range(ROWS))


def test_a_name_that_is_not_utf_8_is_read_in_a_folder_and_by_a_glob(tmp_path: Path, job: FolderJob) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for name in (b"a.csv", b"\xff\xfe.csv"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(
            "x,y\n" + "".join(f"{n},{n % 2}\n" for n in range(ROWS))
        )
    (folder / "notes.md").write_text("no rows")

    assert len(read(job, folder)) == len(read(job, folder / "*.csv")) == 2 * ROWS
    assert profile(folder, "y", None)["rows"] == 2 * ROWS
    assert json.loads(taken(job, folder).model_dump_json())["files"] == 2


def test_pandas_unnamed_index_is_a_column_that_can_be_the_time_and_no_feature(tmp_path: Path, job: FolderJob) -> None:
    frame = table(200).set_index(pd.date_range("2024", periods=200, freq="h"))
    frame.to_parquet(tmp_path / "t.parquet")

    kept = taken(job, tmp_path / "t.parquet", time="__index_level_0__")
    prepared = features.prepare(
        contracts.PrepareRequest(
            spec=spec_of(tmp_path / "t.parquet", "binary", "y"), snapshot=kept, champion=None, slot=SLOT
        ),
        job,
    )

    assert str(kept.time_to) == "2024-01-09 07:00:00+00:00"
    names = {entry.name for entry in Pipeline.read(job.artifacts, prepared.pipeline).inputs}
    assert names == {"x", "c"}


def test_two_files_of_other_scripts_are_two_models(tmp_path: Path) -> None:
    names = [name_from(Path(name)) for name in ("房价.csv", "客户.csv", "Churn_2024.csv.gz", "Ünal.csv")]

    assert len(set(names)) == 4
    assert names[2:] == ["churn_2024", "unal"]
    for name in (*names, "My_Model"):
        LifecycleSpec.model_validate({"model": name, "task": "binary", "target": "y", "source": {"path": "/t.csv"}})


# --- a champion of the first reader -------------------------------------------------------------------------


def old_champion(job: FolderJob, passed: Passed, path: Path) -> Champion:
    """The same model as the first reader would have left it."""
    old = first_folder.table_of(job.artifacts, passed.snapshot)
    target = data.target_of(old, spec_of(path, "binary", "y"))
    seen.keep_seen(old, target.labelled, job.scratch / "seen.npz")
    with np.load(job.scratch / "seen.npz", allow_pickle=False) as stored:
        kept = {name: stored[name] for name in ("hashes", "reading")}  # it knew no version
    np.savez(job.scratch / "seen.npz", **kept)
    return passed.champion().model_copy(update={"seen": job.artifacts.put_file(job.scratch / "seen.npz")})


@pytest.mark.parametrize("timed", [False, True])
def test_a_champion_of_the_first_reader_can_be_replaced(tmp_path: Path, job: FolderJob, timed: bool) -> None:
    jobs = [" Nurse", "Clerk"]  # the first reader kept the blank: another hash
    months = {"1.csv": 1, "2.csv": 2}
    (tmp_path / "s").mkdir()

    def month(name: str, seed: int) -> None:
        random = np.random.default_rng(seed)
        rows = [
            f"2024-{months[name]:02d}-{n % 28 + 1:02d},{jobs[n % 2]},{random.normal():.6f},{random.integers(2)}"
            for n in range(300)
        ]
        (tmp_path / "s" / name).write_text("t,job,x,y\n" + "\n".join(rows) + "\n")

    month("1.csv", 1)
    spec = spec_of(tmp_path / "s", "binary", "y", time="t" if timed else None, training={"rounds": 3})
    champion = old_champion(job, Passed(job, spec), tmp_path / "s")
    month("2.csv", 2)
    kept = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    request = contracts.PrepareRequest(spec=spec, snapshot=kept, champion=champion, slot=SLOT)

    whole = data.load(job.artifacts, kept)
    unseen, unmatched = seen.unseen(whole, np.arange(len(whole)), request, job.artifacts)

    assert unmatched == ()
    assert unseen.tolist() == [False] * 300 + [True] * 300


def test_an_unknown_column_under_columns_is_refused(tmp_path: Path, job: FolderJob) -> None:
    with pytest.raises(InvalidSpec, match="columns: the data has no column 'age'"):
        taken(job, written(tmp_path, "x,y", lambda n: f"{n},{n % 2}"), columns={"age": {"type": "number"}})


SCRIPTS = {
    "cp1251": ("возраст", "Тверь"),
    "gb18030": ("年龄", "北京市"),
    "cp932": ("年齢", "東京都"),
    "cp949": ("나이", "서울시"),
    "cp1256": ("العمر", "الرياض"),
}


@pytest.mark.parametrize("encoding", SCRIPTS)
def test_names_that_the_spec_says_tell_the_encoding_of_a_file(tmp_path: Path, job: FolderJob, encoding: str) -> None:
    """In training and where a file of rows is asked about."""
    name, value = SCRIPTS[encoding]
    path = tmp_path / "t.csv"
    lines = [f"{name},x,y", *(f"{value},{n * 7919 % 97},{n % 2}" for n in range(ROWS))]
    path.write_bytes("\n".join(lines).encode(encoding))

    kept = taken(job, path, columns={name: {"type": "category"}})
    schema = {"task": "binary", "fields": [{"name": name, "kind": "category"}, {"name": "x", "kind": "number"}]}

    assert Reading.model_validate_json(job.artifacts.get(kept.reading)).dialect.encoding == encoding
    assert set(data.load(job.artifacts, kept).rows[name].to_pylist()) == {value}
    assert rows_of(str(path), lambda: schema | {"target": "y"})[0][name] == value


def test_text_of_another_script_is_not_taken_for_western_text(tmp_path: Path, job: FolderJob) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\n".join(["town,y", *(f"Тверь,{n % 2}" for n in range(ROWS))]).encode("cp1251"))

    with pytest.raises(InvalidData, match="not those of western languages") as refused:
        read(job, path)
    kept = taken(job, path, source={"path": str(path), "encoding": "cp1251"})

    assert "everloop init --encoding" in refused.value.hint
    assert set(data.load(job.artifacts, kept).rows["town"].to_pylist()) == {"Тверь"}


def test_days_are_read_as_east_asia_writes_them(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "a,b,y", lambda n: f"2024年{n % 12 + 1}月{n % 28 + 1}日,2024.{n % 12 + 1:02d}.01,{n % 2}")

    found = read(job, path)

    assert [f"{moment:%Y-%m-%d}" for moment in first_rows(found, "a", 2)] == ["2024-01-01", "2024-02-02"]
    assert [f"{moment:%Y-%m-%d}" for moment in first_rows(found, "b", 2)] == ["2024-01-01", "2024-02-01"]


def test_a_file_of_rows_in_latin_1_is_read_as_training_reads_one(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_bytes("größe\tort\n1,5\tKöln\n".encode("cp1252"))
    schema = {"task": "binary", "fields": [{"name": "größe", "kind": "number"}], "target": "y"}

    assert rows_of(str(tmp_path / "rows.tsv"), lambda: schema) == [{"größe": 1.5, "ort": "Köln"}]


def test_a_snapshot_of_the_first_reader_still_loads_and_goes_on(tmp_path: Path, job: FolderJob) -> None:
    source = written(tmp_path, "t,x,y", lambda n: f"{n % 28 + 1:02d}.01.2024,{n * 7919 % 97},{n % 2}")
    part = first.read(source, ".csv", "t.csv")
    columns = data.describe(part)
    pa.parquet.write_table(part, tmp_path / "part.parquet")
    file = {"name": "t.csv", "rows": ROWS, "source": job.artifacts.put_file(source).model_dump()}
    file["table"] = job.artifacts.put_file(tmp_path / "part.parquet").model_dump()
    manifest = {"files": [file], "columns": [column.model_dump() for column in columns]}
    kept = Snapshot.model_validate(
        {
            "manifest": job.artifacts.put(json.dumps(manifest).encode()).model_dump(),
            "rows": ROWS,
            "files": 1,
            "size_bytes": 1,
            "columns": columns,
            "schema_digest": data.schema_digest(columns),
        }
    )
    spec = spec_of(source, "binary", "y", time="t")

    whole = data.load(job.artifacts, kept)
    prepared = features.prepare(contracts.PrepareRequest(spec=spec, snapshot=kept, champion=None, slot=SLOT), job)

    assert whole.column("t").layouts == ("%d.%m.%Y",)
    assert data.time_layouts(whole, "t") == ("%d.%m.%Y",)
    assert prepared.train_rows + prepared.validation_rows + prepared.test_rows == ROWS
    assert data.target_of(whole, spec).type == ""  # answered as text, as its model always did


def sheet_of(rows: list[list[Any]]) -> bytes:
    """An Excel file of one sheet, as small as they come."""
    kinds = {str: 't="inlineStr"><is><t>{}</t></is>', bool: 't="b"><v>{:d}</v>'}
    cells = (
        "".join(f"<c {kinds.get(type(cell), '><v>{}</v>').format(cell)}</c>" for cell in row if cell is not None)
        for row in rows
    )
    body = "".join(f"<row>{row}</row>" for row in cells)
    main, office = "http://schemas.openxmlformats.org/spreadsheetml/2006/main", "officeDocument/2006/relationships"
    links = f'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type="http://schemas.openxmlformats.org/{office}/'
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
        "_rels/.rels": f'<Relationships {links}officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/_rels/workbook.xml.rels": f'<Relationships {links}worksheet" Target="worksheets/s.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="http://schemas.openxmlformats.org/{office}"><sheets>'
        '<sheet name="s" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/worksheets/s.xml": f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>',
    }
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as book:
        for name, text in parts.items():
            book.writestr(name, text)
    return made.getvalue()


def test_an_excel_sheet_with_a_title_is_read(tmp_path: Path, job: FolderJob) -> None:
    rows = [[n, n / 8, ("NA", "EU")[n % 2], n % 3 == 0, n % 2] for n in range(ROWS)]
    (tmp_path / "t.xlsx").write_bytes(sheet_of([["Report of May"], ["n", "x", "region", "b", "y"], *rows]))

    found = read(job, tmp_path / "t.xlsx")

    assert found.rows.column_names == ["n", "x", "region", "b", "y"]
    assert found.rows["n"].type == pa.int64()
    assert [list(row.values()) for row in found.rows.to_pylist()] == rows
