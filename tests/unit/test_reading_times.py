"""Days and times of strangers' files: read as the owner meant them, or the doubt is said."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from activities.compute import data
from activities.compute.profile import profile
from everloop.errors import EverloopError, InvalidData
from everloop.rows import from_csv
from tests.job import FolderJob
from tests.reading import ROWS, first_rows, read, taken, written
from tests.stages import Passed, spec_of


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


def test_days_are_read_as_east_asia_writes_them(tmp_path: Path, job: FolderJob) -> None:
    path = written(tmp_path, "a,b,y", lambda n: f"2024年{n % 12 + 1}月{n % 28 + 1}日,2024.{n % 12 + 1:02d}.01,{n % 2}")

    found = read(job, path)

    assert [f"{moment:%Y-%m-%d}" for moment in first_rows(found, "a", 2)] == ["2024-01-01", "2024-02-02"]
    assert [f"{moment:%Y-%m-%d}" for moment in first_rows(found, "b", 2)] == ["2024-01-01", "2024-02-01"]
