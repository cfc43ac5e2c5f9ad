"""A raw column and what was fitted on it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["number", "boolean", "datetime", "category", "text"]
Part = Literal["hour", "weekday", "day", "month", "elapsed"]
Floats = NDArray[np.float64]
Matrix = NDArray[np.float32]
Feature = NDArray[np.float32]
"""One feature of some rows: [rows]."""


@dataclass(frozen=True)
class Input:
    """A raw column and what was fitted on it."""

    name: str
    kind: Kind
    nullable: bool = True
    """Missing values were there when this was fitted. Where not, `fill` answers for one."""
    offset: float = 0.0
    """Number: taken off in float64. Datetime: the moment that `elapsed` counts from."""
    fill: float = 0.0
    low: float | None = None
    high: float | None = None
    known: tuple[str, ...] = ()
    """Category: values in the order of their codes, from `FIRST`."""
    parts: tuple[Part, ...] = ()
    fine: int = 0
    """Number: float32 takes different values for one, so so many further features hold what it leaves of each."""


@dataclass(frozen=True)
class Dropped:
    """A column that the model does not look at, and why."""

    name: str
    reason: str


# --- features that are made of inputs ------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Days from the moment in one datetime column to that in another; missing where either is."""

    start: str
    end: str


@dataclass(frozen=True)
class Indicator:
    """1 where a number is missing, else 0."""

    column: str


@dataclass(frozen=True)
class Encoding:
    """A category as the mean of the target over the rows that share its value.

    Rows that it was fitted on take the mean of the other folds: their own target says nothing of them.
    """

    column: str
    known: tuple[str, ...]
    """Values; the empty text stands for missing. Others are answered with the mean of all rows."""
    sums: tuple[tuple[int, ...], ...]
    """[values, folds] of the target in whole units of `goals.UNIT`."""
    counts: tuple[tuple[int, ...], ...]
    """[values, folds] of rows."""
    total: tuple[int, int]
    """Sum and count of all rows."""
    of: int | None = None
    """Where there are more than two classes: the one whose share of the rows this is."""


@dataclass(frozen=True)
class Terms:
    """Words of a text: how often each is there, weighted by how rare it is among the rows (TF-IDF)."""

    column: str
    terms: tuple[str, ...]
    spellings: tuple[tuple[str, int], ...]
    """As they stand between blanks in the text, and the place of their term."""
    weights: tuple[float, ...]
    """Of the terms, float32."""


@dataclass(frozen=True)
class Combination:
    """Two numbers as one: their product, or the first by the second; missing where either is, or nothing divides."""

    left: str
    right: str
    how: Literal["product", "ratio"]

    @property
    def name(self) -> str:
        return f"{self.left} {'*' if self.how == 'product' else '/'} {self.right}"


@dataclass(frozen=True)
class Skew:
    """What makes a column's numbers even: it rises everywhere, so their order stays."""

    column: str
    how: Literal["log1p", "yeo_johnson", "quantile"]
    where: tuple[float, ...]
    """Ascending; lines between them."""
    value: tuple[float, ...]
    """What they become."""


@dataclass(frozen=True)
class Score:
    """What one column was found to say about the target, and whether it was kept."""

    column: str
    score: float
    kept: bool


@dataclass(frozen=True)
class Selected:
    """How columns were chosen, the best first."""

    method: str
    scores: tuple[Score, ...]

    def __str__(self) -> str:
        gone = [each.column for each in self.scores if not each.kept]
        kept, by = len(self.scores) - len(gone), self.method.replace("_", " ")
        listed = ", ".join(name[:SHOWN] for name in gone[:LISTED])
        more = f" and {len(gone) - LISTED:,} more" if len(gone) > LISTED else ""
        dropped = f"; dropped: {listed}{more}" if gone else ""
        return f"kept {kept:,} of {len(self.scores):,} columns, by {by}{dropped}"


LISTED, SHOWN = 8, 60
"""Columns in a sentence, and letters of a name."""


@dataclass(frozen=True)
class Added:
    """A feature that was made, or what was done to a column, and why."""

    name: str
    rule: str
    reason: str


def smallest_leaf(rows: int) -> int:
    """Rows that a leaf must have: LightGBM's 20 leaves a small table without a split."""
    return min(20, max(2, rows // 50))
