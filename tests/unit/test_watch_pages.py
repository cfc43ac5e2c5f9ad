"""What a model's page draws of its watch."""

from datetime import UTC, datetime, timedelta

import pytest

from api import watch
from api.drift import DriftView
from api.labels import PerformanceView

START = datetime(2026, 1, 1, tzinfo=UTC)


def view(day: int, share: float | None, verdict: str = "quiet", rows: int = 100, late: int = 0) -> DriftView:
    start = START + timedelta(days=day)
    return DriftView(
        number=day + 1, project="p", model="m", version=1, window_start=start, window_end=start + timedelta(days=1),
        rows=rows, late_rows=late, share=share, drifted=[], verdict=verdict, reason="", lifecycle="",
        checked_at=start, links={},
    )  # fmt: skip


def test_bars_are_as_high_as_their_shares_and_say_what_they_are() -> None:
    made = watch.drift_bars([view(0, 0.5), view(1, 1.0), view(2, None, "failed"), view(3, 0.2, "quarantined")], 0.6)
    assert [bar.height for bar in made.bars] == [75.0, 150.0, 2.0, 30.0]
    assert [bar.kind for bar in made.bars] == ["under", "over", "unknown", "broken"]
    assert made.threshold == pytest.approx(60)
    assert made.bars[0].says == "2026-01-01 00:00: 50% of the columns drifted, quiet"
    assert [date.text for date in made.dates] == ["Jan 01", "Jan 02", "Jan 03", "Jan 04"]


def test_dates_leave_room_for_each_other() -> None:
    made = watch.drift_bars([view(day, 0.1) for day in range(90)], None)
    assert len(made.bars) == watch.MOST_WINDOWS
    assert len(made.dates) <= watch.DATES
    assert all(bar.x + bar.width <= watch.WIDTH for bar in made.bars)


def test_what_came_late_stands_on_top() -> None:
    made = watch.volume_bars([view(0, 0.1, rows=100, late=100), view(1, 0.1, rows=50)])
    assert [(bar.kind, bar.height, bar.y) for bar in made.bars] == [
        ("under", 75.0, 75.0),
        ("late", 75.0, 0.0),
        ("under", 37.5, 112.5),
    ]


def test_intervals_lie_around_their_figures() -> None:
    row = PerformanceView(
        window_start=START, window_end=START + timedelta(days=1), version=1, rows=9, labelled=9, metric="auc",
        value=0.8, low=0.7, high=0.85, expected=0.9, over=True, target={}, verdict="", reason="", lifecycle="",
    )  # fmt: skip
    made = watch.performance_points([row])
    assert made is not None
    (point,) = made.points
    assert point.expected is not None
    assert point.expected < point.high < point.y < point.low
    assert watch.performance_points([]) is None


METRICS = """\
everloop_predict_seconds_bucket{project="p",model="m",process="1",le="0.001"} 90
everloop_predict_seconds_bucket{project="p",model="m",process="1",le="0.01"} 100
everloop_predict_seconds_bucket{project="p",model="m",process="1",le="+Inf"} 100
everloop_predict_seconds_sum{project="p",model="m",process="1"} 0.2
everloop_predict_seconds_bucket{project="p",model="m",process="2",le="0.001"} 100
everloop_predict_seconds_bucket{project="p",model="m",process="2",le="0.01"} 100
everloop_predict_seconds_bucket{project="p",model="m",process="2",le="+Inf"} 100
everloop_predict_seconds_sum{project="p",model="m",process="2"} 0.2
everloop_predict_requests_total{project="p",model="m",status="422",process="1"} 3
everloop_predict_requests_total{project="p",model="m",status="200",process="1"} 97
everloop_predict_seconds_bucket{project="p",model="other",process="1",le="+Inf"} 5
"""


def test_latency_is_of_all_processes_together() -> None:
    found = watch.latency_of(METRICS, "p", "m")
    assert found is not None
    assert (found.requests, found.mean_ms, found.refused) == (200, pytest.approx(2), 3)
    assert found.bounds_ms == [("50%", 1.0), ("95%", 1.0), ("99%", 10.0)]
    assert found.rows == [("1 ms", 0.95), ("10 ms", 1.0)]


def test_a_model_that_refuses_everything_says_so() -> None:
    found = watch.latency_of('everloop_predict_requests_total{project="p",model="m",status="422"} 7\n', "p", "m")
    assert found == watch.Latency(0, 0.0, [], [], 7)
    assert watch.latency_of("", "p", "m") is None
    refused = {"name": "schema", "over": True, "why": "100.0% of the rows were refused"}
    broken = view(0, None, "quarantined", rows=0).model_copy(update={"measures": [refused]})
    assert [bar.kind for bar in watch.drift_bars([broken], 0.5).bars] == ["broken"]
    assert watch.volume_bars([broken]).bars[0].says.endswith("0 predictions; 100.0% of the rows were refused")
    assert watch.latency_of(METRICS, "p", "none") is None
