"""Labels are joined by exact names, the last one counts, and what is wrong is named by row and column."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from activities.compute import performance
from activities.compute.predictions.columns import key_text
from activities.compute.resampling import interval, sureness
from activities.labels import is_worse
from everloop import rows
from everloop.client.labels import _moved
from everloop.contracts import PerformanceRequest
from everloop.errors import Invalid
from everloop.labels import LabelLog, labels_of, names_of
from everloop.predictions import PredictionLog
from everloop.records import Champion, Field, Signature, Slot
from everloop.specs import Monitor
from everloop.store import PerformanceRow
from tests.job import FolderJob

START = datetime(2024, 3, 1, tzinfo=UTC)
FIELDS = (Field(name="age", kind="number"), Field(name="flight", kind="category", known=("UA1", "UA2")))
BINARY = Signature(task="binary", fields=FIELDS, target="late", classes=("0", "1"), positive="1", key="id")
NUMBER = Signature(task="regression", fields=FIELDS, target="price")


def named(signature: Signature = BINARY, **row: Any) -> tuple[str, ...]:
    return labels_of([{"label": 1} | row], signature, START)[0].name


def test_names_are_exact_texts() -> None:
    assert named(key=7) == named(id="7") == named(key="7")
    assert named(key="7") not in (named(key="7.0"), named(key="07"), named(key=" 7"))
    row = {"request_id": "r1", "row": 2, "key": "007", "feature:age": 7.0, "feature:flight": "UA1"}
    told = list(names_of(row, [("flight",), ("age", "flight"), ("none",)]))
    assert told == [named(request_id="r1", row=2), named(key="007"), named(flight="UA1")]


@pytest.mark.parametrize(
    ("row", "column", "said"),
    [
        ({"key": 7.0, "label": 1}, "key", "row 0: 'key' is the float 7.0, which is no exact name"),
        ({"key": "a"}, "label", "row 0: 'label' has no label: `label` or 'late' is missing"),
        ({"key": "a", "label": None}, "label", "row 0: 'label' has no label"),
        ({"key": "a", "late": "perhaps"}, "late", "row 0: 'late' is 'perhaps'"),
        ({"label": 1}, "id", "row 0: 'id' names no prediction"),
        ({"kee": "a", "label": 1}, "kee", "row 0: 'kee' is no column that a row can be named by"),
        ({"age": 7, "label": 1}, "age", "row 0: 'age' is a number, which has no exact text"),
        ({"key": ["a"], "label": 1}, "key", "row 0: 'key' is ['a'], which is no name"),
    ],
)
def test_what_is_wrong_is_named_by_row_and_column(row: dict[str, Any], column: str, said: str) -> None:
    with pytest.raises(Invalid) as told:
        labels_of([row], BINARY, START)
    assert str(told.value) == said
    assert told.value.field == f"labels[0].{column}"
    assert told.value.hint


def test_a_number_is_asked_for_where_the_model_answers_one() -> None:
    assert labels_of([{"key": "a", "price": "3.5"}], NUMBER, START)[0].value == 3.5
    for wrong in ("cheap", True, "nan", "1e999"):
        with pytest.raises(Invalid, match="which is no number"):
            labels_of([{"key": "a", "price": wrong}], NUMBER, START)
    with pytest.raises(Invalid, match="which is too large a number"):
        labels_of([{"key": "a", "price": -1e200}], NUMBER, START)


def test_rows_of_a_later_batch_are_counted_from_the_first_one() -> None:
    assert _moved("row 3: 'key' names nothing", 20_000) == "row 20,003: 'key' names nothing"
    assert _moved("labels[3].key", 20_000) == "labels[20003].key"


def test_a_csv_file_keeps_the_texts_that_stand_in_it() -> None:
    found = rows.texts_from_csv("id,late\n007,1\n7.0,0\n7,\n", "l.csv", BINARY.model_dump(), ("label",))
    assert found == [{"id": "007", "late": "1"}, {"id": "7.0", "late": "0"}, {"id": "7"}]


def test_a_torn_line_is_no_label_and_spoils_no_later_one(tmp_path: Path) -> None:
    log = LabelLog(tmp_path)
    log.append(labels_of([{"key": "a", "label": 0}, {"key": "b", "label": 1}], BINARY, START))
    with log.path.open("ab") as file:
        file.write(b'[["key", "c"], "1", "2024-03')  # its process died here, and nobody was told that it is kept
    assert [label.name[1] for label in log.read()] == ["a", "b"]
    log.append(labels_of([{"key": "d", "label": 1}], BINARY, START))
    assert [label.name[1] for label in log.read()] == ["a", "b", "d"]
    assert log.path.read_bytes().count(b"\n") == 3


# --- the join ---------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> FolderJob:
    return FolderJob(tmp_path)


def answered(job: FolderJob, days: int = 2, each: int = 200) -> np.ndarray:
    """A log of *days* days, in which the probability tells the truth on the first day alone; the truth."""
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, days * each)
    log = PredictionLog(job.predictions_dir / "p" / "m")
    lines = []
    for place, late in enumerate(truth):
        day = place // each
        told = 0.5 + (0.4 if late else -0.4) * (day == 0) + draw.normal() / 50
        at = START + timedelta(days=day, seconds=place % each)
        lines.append(
            {"request_id": "r", "row": place, "key": f"k{place}", "event_time": at.isoformat(), "version": 1,
             "logged_at": at.isoformat(), "features": {"age": place}, "prediction":
             {"label": int(told > 0.5), "probability": told, "probabilities": {"0": 1 - told, "1": told}}}
        )  # fmt: skip
    log.append(lines)
    log.close()
    return truth


def asked(job: FolderJob) -> PerformanceRequest:
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.table({"age": [1.0]}), buffer)
    signature = job.artifacts.put(BINARY.model_dump_json().encode())
    champion = Champion(
        version=1, model_digest="0" * 64, model=signature, signature=signature, seen=signature, release_seq=1
    )
    return PerformanceRequest(
        project="p",
        model="m",
        champion=champion,
        metric="auc",
        size="day",
        until=START + timedelta(days=9),
        labels_bytes=LabelLog(job.predictions_dir / "p" / "m").size(),
        minimum_rows=100,
        seed=0,
        slot=Slot(device="cpu0", token=1, holder="w/r"),
    )


def test_labels_tell_each_window_how_well_it_was_answered(job: FolderJob) -> None:
    truth = answered(job)
    log = LabelLog(job.predictions_dir / "p" / "m")
    sent = [{"key": f"k{place}", "label": int(1 - late)} for place, late in enumerate(truth)]
    log.append(labels_of([*sent, {"key": "to come", "label": 1}], BINARY, START))
    wrong = performance.measure(asked(job), job)
    right = [{"request_id": "r", "row": place, "label": int(late)} for place, late in enumerate(truth)]
    log.append(labels_of(right, BINARY, START))  # the last one counts, whatever the row was called by

    report = performance.measure(asked(job), job)

    first, second = report.windows
    assert wrong.windows[0].value == 0.0
    assert first.value == first.high == 1.0
    assert (first.rows, first.labelled, first.metric, first.version, first.alone) == (200, 200, "auc", 1, True)
    assert second.low < 0.5 < second.high
    assert second.low < second.value < second.high
    # 400 rows have two names each; one label waits for its prediction
    assert (report.labels, report.joined, report.scanned) == (801, 800, 400)


def test_a_report_holds_the_newest_windows_that_fit_into_it(job: FolderJob, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = answered(job)
    sent = [{"key": f"k{place}", "label": int(late)} for place, late in enumerate(truth)]
    LabelLog(job.predictions_dir / "p" / "m").append(labels_of(sent, BINARY, START))
    both = performance.measure(asked(job), job).windows
    monkeypatch.setattr(performance, "REPORT_BYTES", len(both[1].model_dump_json()))

    assert performance.measure(asked(job), job).windows == both[1:]


def test_labels_that_came_while_the_job_ran_are_left_to_the_next(job: FolderJob) -> None:
    answered(job)
    log = LabelLog(job.predictions_dir / "p" / "m")
    log.append(labels_of([{"key": "k0", "label": 1}], BINARY, START))
    request = asked(job)
    log.append(labels_of([{"key": "k1", "label": 1}], BINARY, START))

    assert performance.measure(request, job).labels == 1


def test_intervals_hold_what_they_say_and_a_paired_test_sees_what_two_intervals_do_not() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for seed in range(60):
        classes = draw.integers(0, 2, 300).astype(float)
        own = np.clip(0.5 + (classes - 0.5) * 0.2 + draw.normal(size=300) / 5, 0.01, 0.99)
        low, high = interval("binary", "accuracy", classes, np.column_stack([1 - own, own]), seed)
        held += low <= 0.6915 <= high  # of a normal beyond half a standard deviation
    assert held >= 52

    truth = draw.normal(size=2000)
    hard = draw.normal(size=2000)
    champion, challenger = truth + hard, truth + 0.97 * hard
    assert sureness("regression", "rmse", truth, challenger, champion, 0) == 1.0
    assert sureness("regression", "rmse", truth, champion, challenger, 0) == 0.0
    assert sureness("regression", "rmse", truth, champion, champion, 0) == 0.5


@pytest.mark.parametrize(("sent", "named"), [(7, "7"), (7.0, "7"), ("7.0", "7.0"), ("007", "007"), (7.5, "7.5")])
def test_a_prediction_answers_to_its_key_as_json_has_it(sent: object, named: str) -> None:
    row = {"request_id": "r", "row": 0, "key": key_text(sent)}
    assert ("key", named) in set(names_of(row, ()))
    assert labels_of([{"key": named, "label": 1}], BINARY, START)[0].name == ("key", named)


@pytest.mark.parametrize(("tested", "worse"), [(100_000, True), (400, False)])
def test_a_figure_of_a_small_evaluation_is_not_taken_for_the_truth(tested: int, worse: bool) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    row = PerformanceRow(
        project="p", model="m", window_start=at, window_end=at + timedelta(days=1), version=1, rows=900, labelled=800,
        metric="auc", value=0.80, low=0.77, high=0.83, expected=0.84, measured_at=at,
    )  # fmt: skip
    assert is_worse(row, Monitor(), tested) is worse
    assert not is_worse(row, Monitor(worse_by=0.1), tested)
    loss = PerformanceRow(**row.model_dump() | {"metric": "rmse", "expected": 0.76})
    assert is_worse(loss, Monitor(), tested) is worse
