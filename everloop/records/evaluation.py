"""How good it is, and whether it is better than the champion."""

from typing import Literal

from everloop.records.job import Result
from everloop.records.record import Blob, Record


class Comparison(Record):
    """Champion against challenger on the same rows, which neither has seen."""

    verdict: Literal["no_champion", "better", "not_better", "no_fresh_rows"]
    reason: str
    """One sentence with both figures."""
    sure: float | None = None
    """Of samples drawn again from the same rows, the share in which the challenger is the better one. None: not
    tested, by an older Everloop."""
    metric: str = ""
    champion: float | None = None
    challenger: float | None = None
    champion_version: int | None = None
    rows: int = 0


class ColumnScore(Record):
    """What one column was found to say about the target, and whether the model looks at it."""

    column: str
    score: float
    kept: bool


class Evaluation(Result):
    """How the candidate does on the test part, and against the champion on fresh rows."""

    metrics: dict[str, float]
    rows: int
    comparison: Comparison
    report: Blob
    """JSON: metrics, per-class or residual figures, feature importance."""
    importance: dict[str, float] = {}
    """The features that are worth most, as shares of what all are worth."""
    importance_is: Literal["", "native", "permutation"] = ""
    """How that was found: what the family says of itself, or by how much shuffling a feature raises the loss."""
    selected_by: str = ""
    """The method by which columns were chosen, where the spec asks for a choice."""
    selection: tuple[ColumnScore, ...] = ()
    """The first of them by it, the best first; the report has all."""
