"""What the labels say of the windows that were decided."""

from everloop.records.drift import Measure, Window
from everloop.records.job import Result
from everloop.records.record import Record


class WindowPerformance(Record):
    """How well the rows of one window were answered, as far as their labels have come."""

    window: Window
    version: int
    """That answered most of the labelled rows."""
    alone: bool = True
    """No other version answered more than a tenth of them."""
    rows: int
    labelled: int
    metric: str
    value: float
    low: float
    high: float
    """The interval in which it lies at 95 %."""
    target: Measure | None = None
    """How far the labels lie from those that the version was evaluated on."""


class PerformanceReport(Result):
    """What the labels say of the windows that were decided: the newest that have any."""

    windows: tuple[WindowPerformance, ...]
    labels: int
    """That came, each row's last one."""
    joined: int
    """Of them, whose prediction is in the log."""
    corrected: int = 0
    """That came after another of the same row."""
    scanned: int = 0
    """Rows of the log."""
