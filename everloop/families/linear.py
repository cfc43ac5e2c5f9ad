"""linear: logistic regression, or a line through numbers; with L1 and L2 (elastic net)."""

from typing import Annotated

from pydantic import Field

from everloop.families.space import Space, integer, number
from everloop.strict import Strict

STEP = ""


class Params(Strict):
    """`params:` of `trainer: linear`. Of `training:` it takes the seed."""

    strength: Annotated[float, Field(ge=1e-9, le=1e6)] = 1.0
    """Of the penalty, as so many rows that say 0: the mean loss over n rows has strength / n of it."""
    l1: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the penalty that is L1, which sets coefficients to exactly 0; the rest is L2."""
    iterations: Annotated[int, Field(ge=10, le=100_000)] = 2000
    """At most."""
    levels: Annotated[int, Field(ge=2, le=1000)] = 100
    """A category's most frequent values that have a coefficient of their own; the others share one."""
    knots: Annotated[int, Field(ge=0, le=8)] = 0
    """Places, at quantiles, where the line of a number may bend."""


def space(task: str, rows: int) -> Space:  # noqa: ARG001
    return Space(
        parameters=(
            number("strength", 1e-3, 1e3, log=True),
            number("l1", 0.0, 1.0),
            integer("knots", 0, 6),
        ),
        portfolio=(  # chosen by bench/portfolio.py
            {},
            {"strength": 10.0, "knots": 3},
            {"strength": 0.1},
            {"strength": 0.00126, "l1": 0.813, "knots": 5},
            {"strength": 10.0, "l1": 0.9},
        ),
    )
