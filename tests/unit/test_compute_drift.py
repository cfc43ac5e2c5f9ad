"""Drift: Evidently's word per column, on what the prediction log holds."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from evidently import DataDefinition, Dataset, Report
from evidently.metrics import ValueDrift

from activities.compute import drift
from activities.compute.drift import Pair, judging, samples
from everloop import engine
from everloop.contracts import DriftRequest
from everloop.errors import DatasetMissing
from everloop.predictions import PredictionLog
from everloop.predictions.refusals import Refusals
from everloop.records import Champion, Field, Signature, Slot, Window
from everloop.specs import Monitor
from tests.job import FolderJob

START = datetime(2024, 3, 1, tzinfo=UTC)
WINDOW = Window(start=START, end=START + timedelta(days=1))
ROWS = 1500
RANDOM = np.random.default_rng(0)

FIELDS = (
    Field(name="steady", kind="number"),
    Field(name="moved", kind="number"),
    Field(name="word", kind="category", known=("a", "b", "c")),
    Field(name="</script><script>alert(1)</script>", kind="category", known=("a", "b")),
    Field(name="constant", kind="number"),
    Field(name="gone", kind="number"),
    Field(name="never", kind="number"),
    Field(name="flag", kind="boolean"),
    Field(name="ordered", kind="datetime"),
    Field(name="at", kind="datetime"),
)
SIGNATURE = Signature(task="binary", fields=FIELDS, target="y", classes=("0", "1"), positive="1", time="at")


def reference() -> pa.Table:
    at = np.array([datetime(2023, 1, 1, tzinfo=UTC) + timedelta(hours=int(hour)) for hour in range(ROWS)])
    moment = pa.timestamp("us", "UTC")
    return pa.table(
        {
            "steady": RANDOM.normal(size=ROWS),
            "moved": RANDOM.normal(size=ROWS),
            "word": RANDOM.choice(list("abc"), ROWS),
            "</script><script>alert(1)</script>": RANDOM.choice(["a", "b"], ROWS),
            "constant": np.full(ROWS, 3.0),
            "gone": RANDOM.normal(size=ROWS),
            "never": pa.nulls(ROWS, pa.float64()),
            "flag": RANDOM.random(ROWS) < 0.5,
            "ordered": pa.array([each - timedelta(days=int(RANDOM.integers(1, 9))) for each in at], moment),
            "at": pa.array(at, moment),
        }
    )


def logged(place: int) -> dict[str, object]:
    at = START + timedelta(seconds=place * 80 % 86400)
    features = {
        "steady": float(RANDOM.normal()),
        "moved": float(RANDOM.normal() + 1),
        "word": str(RANDOM.choice(list("abc"))),
        "</script><script>alert(1)</script>": "</script><script>alert(2)</script>",
        "constant": 3.0,
        "gone": None,
        "never": None,
        "flag": bool(RANDOM.random() < 0.5),
        "ordered": (at - timedelta(days=int(RANDOM.integers(1, 9)))).isoformat(),
        "at": at.isoformat(),
    }
    return {
        "request_id": f"r{place}",
        "row": 0,
        "key": None,
        "event_time": at.isoformat(),
        "version": 1,
        "features": features,
        "prediction": {},
    }


@pytest.fixture
def job(tmp_path: Path) -> FolderJob:
    return FolderJob(tmp_path)


def asked(job: FolderJob, rows: int = ROWS) -> DriftRequest:
    buffer = io.BytesIO()
    pa.parquet.write_table(reference(), buffer)
    kept = job.artifacts.put(buffer.getvalue())
    signature = job.artifacts.put(SIGNATURE.model_dump_json().encode())
    if rows:
        PredictionLog(job.predictions_dir / "p" / "m").append([logged(place) for place in range(rows)])
    champion = Champion(
        version=1, model_digest="0" * 64, model=signature, signature=signature, seen=signature, release_seq=1
    )
    return DriftRequest(
        project="p",
        model="m",
        champion=champion,
        reference_sha256=kept.sha256,
        window=WINDOW,
        minimum_rows=100,
        seed=0,
        slot=Slot(device="cpu0", token=1, holder="w/r"),
    )


def test_what_moved_is_found_and_what_is_steady_is_not(job: FolderJob) -> None:
    report = drift.measure(asked(job), job)

    found = {column.column: column for column in report.columns}
    drifted = {name for name, column in found.items() if column.drifted}
    assert drifted == {"moved", "</script><script>alert(1)</script>", "gone"}
    assert found.keys() == {field.name for field in FIELDS} - {"at"}  # time goes on: that is no drift
    assert report.share == pytest.approx(3 / 9)
    assert (report.rows, report.reference_rows) == (ROWS, ROWS)
    assert found["moved"].method == "Wasserstein distance (normed)"
    assert found["moved"].score > found["moved"].threshold
    assert report.report is not None
    assert json.loads(job.artifacts.get(report.report))["evidently"]


def test_a_column_that_the_server_refuses_rows_for_is_broken(job: FolderJob) -> None:
    refusals = Refusals(job.predictions_dir / "p" / "m")
    refusals.note("rows[0].steady", [START + timedelta(hours=3)] * 2 * ROWS)
    refusals.note("rows[0].steady", [START - timedelta(hours=3)] * 9 * ROWS)  # not of this window
    refusals.flush()

    report = drift.measure(asked(job).model_copy(update={"monitor": Monitor()}), job)

    assert [each.why for each in report.broken if each.kind == "schema"] == ["3,000 of 4,500 rows were refused for it"]
    assert [measure.column for measure in report.measures if measure.name == "schema"] == ["steady"]


def test_a_window_with_few_rows_says_so(job: FolderJob) -> None:
    report = drift.measure(asked(job, rows=99), job)

    assert report.insufficient == "99 rows in the window, 100 are needed"
    assert report.report is None
    assert (report.measures, report.broken) == ((), ())


def test_a_window_with_few_rows_and_many_refused_ones_says_what_is_broken(job: FolderJob) -> None:
    refusals = Refusals(job.predictions_dir / "p" / "m")
    refusals.note("rows[0].steady", [START] * 901)
    refusals.flush()

    report = drift.measure(asked(job, rows=99).model_copy(update={"monitor": Monitor()}), job)

    assert report.insufficient == "99 rows were answered in the window and 901 refused; 100 answered ones are needed"
    assert [(each.column, each.kind) for each in report.broken] == [("steady", "schema")]
    assert [(measure.value, measure.over) for measure in report.measures] == [(0.901, True)]


def test_the_picture_holds_no_text_that_could_run(job: FolderJob) -> None:
    blob = drift.render(asked(job), job)

    text = job.artifacts.get(blob).decode()
    assert "alert(1)" in text  # the column is there
    assert "<script>alert" not in text
    assert "</script><script>alert" not in text


def test_a_window_without_rows_has_no_picture(job: FolderJob) -> None:
    with pytest.raises(DatasetMissing, match="no predictions"):
        drift.render(asked(job, rows=0), job)


def test_small_samples_are_judged_by_p_values_the_other_way_round() -> None:
    same = Pair("same", True, RANDOM.normal(size=500), RANDOM.normal(size=500))
    other = Pair("other", True, RANDOM.normal(size=500), RANDOM.normal(size=500) + 1)

    (steady, moved), _ = drift.judge([same, other])

    assert steady.method == moved.method == "K-S p_value"
    assert (steady.drifted, moved.drifted) == (False, True)
    assert moved.score < moved.threshold < steady.score


@pytest.mark.parametrize("reference", [900, 2000, 50_000])
@pytest.mark.parametrize("rows", [100, 300, 1001])
def test_a_window_of_the_same_rows_is_steady_however_small(reference: int, rows: int) -> None:
    draw = np.random.default_rng(reference + rows)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"), object)
    skewed = np.arange(26, 0, -1) ** 2 / np.sum(np.arange(26, 0, -1) ** 2)
    numbers = [Pair(f"n{n}", True, draw.normal(size=reference), draw.normal(size=rows)) for n in range(30)]
    words = [
        Pair(f"c{n}", False, draw.choice(letters, reference, p=skewed), draw.choice(letters, rows, p=skewed))
        for n in range(30)
    ]

    found, _ = drift.judge([*numbers, *words])

    assert sum(column.drifted for column in found) <= 4  # of 60; at 1 % each, more than 4 in one of 250 runs


@pytest.mark.parametrize("rows", [100, 1001])
def test_a_small_window_that_did_move_is_found(rows: int) -> None:
    draw = np.random.default_rng(rows)
    ages = Pair("age", True, draw.normal(40, 10, 5000), draw.normal(48, 10, rows))
    plans = [draw.choice(["a", "b"], size, p=[share, 1 - share]) for size, share in ((5000, 0.5), (rows, 0.8))]

    found, _ = drift.judge([ages, Pair("plan", False, *plans)])

    assert [column.drifted for column in found] == [True, True]


@pytest.mark.parametrize("values", [3, 5, 6, 40, 0])
def test_numbers_are_compared_as_evidently_would_by_itself(values: int) -> None:
    draw = np.random.default_rng(values)
    sides = [
        draw.integers(0, values, rows).astype(float) if values else draw.normal(size=rows) for rows in (4000, 3000)
    ]
    frames = [pd.DataFrame({"c0": side}) for side in reversed(sides)]
    definition = DataDefinition(numerical_columns=["c0"])
    now, then = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
    theirs = json.loads(Report([ValueDrift(column="c0")]).run(now, then).json())["metrics"][0]

    (ours,), _ = drift.judge([Pair("n", True, np.clip(sides[0], -1e9, 1e9), sides[1])])

    assert ours.method == theirs["config"]["method"]
    assert ours.threshold == theirs["config"]["threshold"]
    assert ours.score == pytest.approx(float(theirs["value"]), abs=0.003)  # ours cuts the outer 0.5 %


def test_many_categories_are_no_drift_of_their_own() -> None:
    draw = np.random.default_rng(0)
    codes = np.array([f"code-{n}" for n in range(400)], object)

    (found, *_), _ = drift.judge([Pair("code", False, draw.choice(codes, 20_000), draw.choice(codes, 3000))])

    assert not found.drifted


def false_alarms(
    make: Callable[[np.random.Generator, int], np.ndarray], numeric: bool, reference: int, rows: int
) -> int:
    """Of 40 columns, each with a reference and a window from the same distribution."""
    draw = np.random.default_rng(1)
    fields = [Field(name=f"f{n}", kind="number" if numeric else "category") for n in range(40)]
    pairs = [samples.pair_of(field, make(draw, reference), make(draw, rows)) for field in fields]
    found, _ = drift.judge(pairs)
    return sum(column.drifted for column in found)


def zones(draw: np.random.Generator, rows: int) -> np.ndarray:
    return np.array([f"zone-{n}" for n in draw.integers(0, 200, rows)], object)


def shops(draw: np.random.Generator, rows: int) -> np.ndarray:
    shares = 1 / np.arange(1, 301)
    return np.array([f"shop-{n}" for n in draw.choice(300, rows, p=shares / shares.sum())], object)


def seldom(draw: np.random.Generator, rows: int) -> np.ndarray:
    return np.where(draw.random(rows) < 0.0011, 1.0, 0.0)


def heavy(draw: np.random.Generator, rows: int) -> np.ndarray:
    return draw.standard_cauchy(rows)


def sometimes_missing(draw: np.random.Generator, rows: int) -> np.ndarray:
    return np.where(draw.random(rows) < 0.3, np.nan, draw.normal(size=rows))


@pytest.mark.parametrize(
    ("make", "numeric", "reference", "rows"),
    [
        (zones, False, 1000, 300),
        (zones, False, 20_000, 3000),
        (shops, False, 700, 400),
        (seldom, True, 5000, 100),
        (heavy, True, 5000, 1200),
        (sometimes_missing, True, 5000, 300),
        (sometimes_missing, True, 5000, 3000),
    ],
)
def test_what_stays_as_it_was_is_steady_however_many_rare_or_wild_its_values(make, numeric, reference, rows) -> None:
    assert false_alarms(make, numeric, reference, rows) <= 3


@pytest.mark.parametrize("rows", [300, 3000])
def test_a_number_that_goes_missing_has_drifted(rows: int) -> None:
    draw = np.random.default_rng(0)
    now = np.where(draw.random(rows) < 0.6, np.nan, draw.normal(size=rows))

    (found, *_), _ = drift.judge([Pair("income", True, draw.normal(size=5000), now)])

    assert found.drifted
    assert found.method.startswith("share of missing values")


@pytest.mark.parametrize("rows", [900, 1500])
def test_a_number_that_stands_for_unknown_hides_no_drift(rows: int) -> None:
    draw = np.random.default_rng(0)
    incomes = [
        np.where(draw.random(n) < 0.001, 999_999_999.0, draw.normal(40, 5, n) * x) for n, x in ((5000, 1), (rows, 2))
    ]

    (found, *_), _ = drift.judge([Pair("income", True, *incomes)])

    assert found.drifted


def test_the_picture_is_drawn_of_small_samples_too() -> None:
    draw = np.random.default_rng(0)
    words = np.array(["a", "b"], object)
    pairs = [Pair("n", True, draw.normal(size=200), draw.normal(size=100))]
    pairs += [Pair("c", False, draw.choice(words, 200), draw.choice(words, 100))]

    text = drift.render_html(pairs).decode()

    assert "two-sample" in text
    assert "K-S" in text


def test_a_nearly_constant_column_is_compared_as_usual_or_other() -> None:
    before = np.zeros(2000)
    before[:5] = 300.0
    now = np.zeros(2000)
    now[:6] = 2672.0

    ((column), *_), _ = drift.judge([samples.pair_of(Field(name="n", kind="number"), before, now)])

    assert not column.drifted
    assert column.score < 0.1


@pytest.mark.parametrize("rows", [500, 2000])
def test_a_column_of_numbers_too_large_to_be_cut_into_bins_spoils_no_other(rows: int) -> None:
    large = Pair("large", True, RANDOM.normal(size=rows) * 1e3, np.full(rows, 1e18) + np.arange(rows) % 2)
    steady = Pair("steady", True, RANDOM.normal(size=rows), RANDOM.normal(size=rows))
    with pytest.raises(ValueError, match="bins"):
        judging.metrics([large, steady])

    (far, near), evidence = drift.judge([large, steady])

    assert (far.column, far.drifted) == ("large", True)
    assert (near.column, near.drifted) == ("steady", False)
    assert [metric["column"] for metric in evidence] == ["large", "steady"]


WORD = """
import json, sys
import numpy as np, pandas as pd
{how}
random = np.random.default_rng(0)
frames = [
    pd.DataFrame({{"n": random.normal(size=2000) + shift, "c": random.choice(list("abc"), 2000)}})
    for shift in (0, .3)
]
definition = DataDefinition(numerical_columns=["n"], categorical_columns=["c"])
sides = [Dataset.from_pandas(frame, data_definition=definition) for frame in frames]
told = json.loads(Report([ValueDrift(column="n"), ValueDrift(column="c")], include_tests=True).run(*sides).json())
configs = [metric["config"] for metric in told["metrics"]] + [test["status"] for test in told["tests"]]
print(json.dumps([[metric["value"] for metric in told["metrics"]], configs]))
"""
WHOLE = "from evidently import DataDefinition, Dataset, Report\nfrom evidently.metrics import ValueDrift"
LEAN = """from activities.compute import GATHERED_BY_EVIDENTLY, on_demand
with on_demand(*GATHERED_BY_EVIDENTLY):
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift
assert "evidently.legacy.tests.recsys_tests" not in sys.modules"""


def test_evidently_says_the_same_however_it_is_imported() -> None:
    (whole, configs), (lean, same) = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", WORD.format(how=how)],
                env=engine.environment(),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for how in (WHOLE, LEAN)
    )

    assert lean == pytest.approx(whole, rel=1e-9)  # sums over threads end in other last digits
    assert same == configs
    assert "FAIL" in configs
