"""The target in whole numbers, whose sums are the same in any order; and whether it differs by more than chance."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute.data import Target
from activities.compute.features.inputs import Floats

UNIT = float(2**20)
"""Of a numeric target: so many whole units are one standard deviation. Of a class, 1 is one row."""
SURE = 4.0
"""Standard errors by which the target must differ before a feature is made of what rows differ in."""


@dataclass(frozen=True)
class Goal:
    """The target of the rows that are fitted on: class indexes or whole units."""

    values: NDArray[np.integer[Any]]
    classes: int
    """0 for a numeric target."""

    @classmethod
    def of(cls, target: Target, rows: NDArray[np.int64], center: float, scale: float) -> "Goal":
        values = target.of(rows)
        if target.classes:
            return cls(values.astype(np.uint8), len(target.classes))  # at most 100 of them
        return cls(np.clip(np.round((values - center) / scale * UNIT), -(2.0**30), 2.0**30).astype(np.int32), 0)

    @property
    def outputs(self) -> int:
        """One per class where there are more than two."""
        return self.classes if self.classes > 2 else 1  # noqa: PLR2004

    def sums(self, places: NDArray[np.int64] | slice = slice(None)) -> Floats:
        """Whole sums [outputs] of rows by their places."""
        values = self.values[places]
        if self.outputs == 1:
            return np.array([values.sum(dtype=np.int64)], np.float64)
        return np.bincount(values, minlength=self.outputs).astype(np.float64)

    @cached_property
    def _usual(self) -> tuple[Floats, Floats]:
        """Mean and variance [outputs] of all rows."""
        mean = self.sums() / len(self.values)
        return mean, mean * (1 - mean) if self.classes else np.array([self.values.var()])

    def strength(self, count: int, sums: Floats) -> float:
        """Standard errors by which some rows, *count* of them with these *sums*, differ from all."""
        rows = len(self.values)
        return max(strength(count, *each) for each in zip(sums, [rows] * len(sums), *self._usual, strict=True))


def strength(count: int, total: float, rows: int, mean: float, variance: float) -> float:
    """Standard errors between the mean of *count* of *rows* rows, whose sum is *total*, and the mean of all."""
    spread = count * variance * (1 - count / rows) if rows else 0.0
    return abs(total - count * mean) / float(np.sqrt(spread)) if spread > 0 else 0.0
