"""The target in whole numbers, whose sums are the same in any order; and whether it differs by more than chance."""

from dataclasses import dataclass

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

    values: Floats
    classes: int
    """0 for a numeric target."""

    @classmethod
    def of(cls, target: Target, rows: NDArray[np.int64], center: float, scale: float) -> "Goal":
        values = target.values[rows]
        if not target.classes:
            values = np.clip(np.round((values - center) / scale * UNIT), -(2.0**30), 2.0**30)
        return cls(values, len(target.classes))

    @property
    def outputs(self) -> int:
        """One per class where there are more than two."""
        return self.classes if self.classes > 2 else 1  # noqa: PLR2004

    def sums(self, places: NDArray[np.int64] | slice = slice(None)) -> Floats:
        """Whole sums [outputs] of rows by their places."""
        values = self.values[places]
        if self.outputs == 1:
            return np.array([values.sum()])
        return np.bincount(values.astype(np.int64), minlength=self.outputs).astype(np.float64)

    def strength(self, count: int, sums: Floats) -> float:
        """Standard errors by which some rows, *count* of them with these *sums*, differ from all."""
        rows = len(self.values)
        mean = self.sums() / rows
        variance = mean * (1 - mean) if self.classes else np.array([self.values.var()])
        return max(strength(count, *each) for each in zip(sums, [rows] * len(sums), mean, variance, strict=True))


def strength(count: int, total: float, rows: int, mean: float, variance: float) -> float:
    """Standard errors between the mean of *count* of *rows* rows, whose sum is *total*, and the mean of all."""
    spread = count * variance * (1 - count / rows) if rows else 0.0
    return abs(total - count * mean) / float(np.sqrt(spread)) if spread > 0 else 0.0
