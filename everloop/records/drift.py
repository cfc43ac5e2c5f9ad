"""What a check finds in one window of traffic."""

from datetime import datetime
from typing import Literal

from everloop.records.job import Result
from everloop.records.record import Blob, Record

TriggerVerdict = Literal[
    "quiet",
    "retrain",
    "insufficient_data",
    "already_triggered",
    "failed",
    "not_yet",
    "same_drift",
    "cooling_down",
    "over_budget",
    "breaker_open",
    "quarantined",
]
"""What a check's window has led to. From `not_yet` on: over the threshold, and held back by a rule of the monitor.
`quarantined`: the data is broken rather than moved, or was in an earlier window, and a person has not looked yet."""


class Window(Record):
    """A half-open span of event time: start <= t < end, UTC."""

    start: datetime
    end: datetime


class ColumnDrift(Record):
    """Evidently's word on one column."""

    column: str
    method: str
    score: float
    threshold: float
    drifted: bool


MeasureName = Literal["predictions", "target", "missing", "new_categories", "out_of_range", "schema", "performance"]


class Measure(Record):
    """What a check found beside the drift of the columns."""

    name: MeasureName
    value: float
    threshold: float
    """From where it is over."""
    over: bool
    why: str
    """A sentence with the figures."""
    column: str = ""
    """The worst one, where it is about columns."""


class Break(Record):
    """A column that is broken rather than moved."""

    column: str
    kind: Literal["missing", "unit", "schema"]
    why: str


class DriftReport(Result):
    """What a check found in one window."""

    window: Window
    rows: int
    reference_rows: int
    columns: tuple[ColumnDrift, ...]
    share: float
    report: Blob | None = None
    """Evidently's JSON, kept as evidence."""
    insufficient: str = ""
    """Why nothing was computed, or empty."""
    measures: tuple[Measure, ...] = ()
    broken: tuple[Break, ...] = ()
