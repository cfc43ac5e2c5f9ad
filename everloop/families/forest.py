"""forest: trees that each see other rows and other features, averaged (random forest, or extra trees)."""

from typing import Annotated, Literal

from pydantic import Field

from everloop.families.space import Space, choice, integer, number
from everloop.strict import Strict

STEP = "trees"


class Params(Strict):
    """`params:` of `trainer: forest`. Of `training:` it takes the seed."""

    kind: Literal["random", "extra"] = "random"
    """random: rows drawn for each tree, the best thresholds; extra: all rows, thresholds drawn."""
    trees: Annotated[int, Field(ge=1, le=2000)] = 120
    leaves: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Of all trees together at most `LEAVES`, so that the graph stays small: left out, each may have its share."""
    min_leaf: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Rows that a leaf must have. Left out: 2 of classes, 3 of numbers."""
    features: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the features that a split may look at. Left out: the root of their number, of numbers a third."""


def space(task: str, rows: int) -> Space:  # noqa: ARG001
    return Space(
        parameters=(
            choice("kind", "random", "extra"),
            integer("min_leaf", 1, 20 if rows < 5_000 else 60, log=True, usual=2),  # noqa: PLR2004
            number("features", 0.1, 1.0, usual=0.3),
        ),
        portfolio=({}, {"kind": "extra", "features": 0.5}, {"min_leaf": 5, "features": 0.4}),
    )
