"""Which of Evidently's tests compares a column, from where it has drifted, and the test that is ours."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MISSING = "missing"
SMALL = 1000
"""Rows up to which Evidently too prefers a test over a distance; here of the smaller side."""
SIGNIFICANCE = 0.01
"""Of those tests. At Evidently's 0.05 a model of one column would be trained again every twentieth quiet window."""
FILLED = 10
"""Rows for each category up to which a distance says more of the sample than of what it is drawn from."""
DISTANCE = 0.1
"""Evidently's threshold of distances."""
CONTINGENCY = "two_sample_chisquare"
NAMES = {
    "ks": "K-S p_value",
    CONTINGENCY: "two-sample chi-square or Fisher p_value",
    "wasserstein": "Wasserstein distance (normed)",
    "jensenshannon": "Jensen-Shannon distance",
}
FEW_VALUES, LOOKED_AT = 5, 1000
"""Numbers of so many values at most are compared as categories are, as Evidently does; told by some where they do."""
EXPECTED = 5.0
"""Rows that a category should have on each side for chi-square to hold; rarer ones count as one."""


@dataclass(frozen=True)
class Pair:
    """One column of both sides, ready to compare. Both arrays are float64 or both are text."""

    name: str
    numeric: bool
    reference: NDArray[Any]
    current: NDArray[Any]


def method_and_threshold(pair: Pair) -> tuple[str, float]:
    """Evidently's name of the test for *pair*, and from where it has drifted.

    Of large samples it is the one that Evidently takes by itself, which counts the values of each twice to find it.

    Evidently's chi-square takes the reference for the truth and not for a sample: ours compares two samples.
    The squared Jensen-Shannon distance of two samples of the same categories is about (categories - 1) / 8 times the
    sum of 1 / rows, by chance alone: that much is allowed on top.
    """
    if pair.numeric:
        if is_small(pair):
            return "ks", SIGNIFICANCE
        return "wasserstein" if _has_many_values(pair) else "jensenshannon", DISTANCE
    rows = [len(side) for side in (pair.reference, pair.current)]
    categories = len(set(pair.reference.tolist()) | set(pair.current.tolist()))
    if min(rows) <= max(SMALL, FILLED * categories):
        return CONTINGENCY, SIGNIFICANCE
    by_chance = (categories - 1) / 8 * sum(1 / size for size in rows)
    return "jensenshannon", math.sqrt(DISTANCE**2 + by_chance)


def _has_many_values(pair: Pair) -> bool:
    sides = (pair.reference, pair.current)
    return any(
        len(np.unique(np.concatenate([_finite(side[:most]) for side in sides]))) > FEW_VALUES
        for most in (LOOKED_AT, None)
    )


def _finite(side: NDArray[np.float64]) -> NDArray[np.float64]:
    return side[np.isfinite(side)]


def is_small(pair: Pair) -> bool:
    """Has either side of the numbers so few values that a test decides and no distance?"""
    return min(int(np.isfinite(side).sum()) for side in (pair.reference, pair.current)) <= SMALL


def register_contingency() -> None:
    """Make our test known to Evidently by its name."""
    from evidently.legacy.calculations.stattests.registry import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    register_stattest(
        StatTest(
            name=CONTINGENCY,
            display_name=NAMES[CONTINGENCY],
            allowed_feature_types=[ColumnType.Categorical],
            default_threshold=SIGNIFICANCE,
        ),
        _contingency,
    )


def _contingency(reference: pd.Series, current: pd.Series, _: object, threshold: float) -> tuple[float, bool]:
    """The p-value of both samples having the same shares of categories, and whether it is below *threshold*."""
    from scipy.stats import chi2_contingency, fisher_exact

    table = _table(pd.concat([reference.value_counts(), current.value_counts()], axis=1).fillna(0).to_numpy().T)
    if table.shape[1] < 2:  # noqa: PLR2004
        value = 1.0
    elif table.shape[1] == 2:  # noqa: PLR2004
        value = float(fisher_exact(table).pvalue)  # exact, also for what is rare
    else:
        value = float(chi2_contingency(table, correction=False).pvalue)
    return value, value < threshold


def _table(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows of each side by category, [2, categories], the rare ones of both sides together as one."""
    expected = counts.sum(axis=0) / counts.sum() * counts.sum(axis=1).min()
    order = np.argsort(expected, kind="stable")
    counts, expected = counts[:, order], np.cumsum(expected[order])
    lump = int(np.searchsorted(expected, EXPECTED)) + 1 if expected[0] < EXPECTED else 1
    while lump < len(expected) and expected[lump] - expected[lump - 1] < EXPECTED:
        lump += 1
    if len(expected) - lump < 1:
        lump = max(len(expected) - 1, 1)  # two columns are judged exactly
    return np.column_stack([counts[:, :lump].sum(axis=1), counts[:, lump:]]).astype(np.int64)
