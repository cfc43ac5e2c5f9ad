"""XGBoost: trees, one after the other; on the GPU where the lease has one."""

from typing import Annotated

from pydantic import Field

from everloop.families.space import Space, integer, number
from everloop.strict import Strict

STEP = "rounds"


class Params(Strict):
    """`params:` of `trainer: xgboost`, by XGBoost's own names. Of `training:` it takes the seed."""

    rounds: Annotated[int, Field(ge=1, le=5000)] = 600
    """At most."""
    early_stopping: Annotated[int, Field(ge=1, le=1000)] = 30
    """Rounds without a better validation loss after which it stops."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.08
    max_depth: Annotated[int, Field(ge=1, le=16)] = 6
    min_child_weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    gamma: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """By how much a split must lower the loss."""
    subsample: Annotated[float, Field(gt=0, le=1)] = 1.0
    colsample_bytree: Annotated[float, Field(gt=0, le=1)] = 1.0
    colsample_bynode: Annotated[float, Field(gt=0, le=1)] = 1.0
    reg_lambda: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    reg_alpha: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    max_bin: Annotated[int, Field(ge=2, le=1024)] = 256


def space(task: str, rows: int) -> Space:  # noqa: ARG001
    return Space(
        parameters=(
            number("learning_rate", 0.01, 0.3, log=True),
            integer("max_depth", 2, 8 if rows < 5_000 else 11),  # noqa: PLR2004
            number("min_child_weight", 0.1, 50.0, log=True),
            number("subsample", 0.5, 1.0),
            number("colsample_bytree", 0.4, 1.0),
            number("reg_lambda", 1e-3, 30.0, log=True),
            number("reg_alpha", 1e-6, 10.0, log=True),
            number("gamma", 1e-6, 5.0, log=True),
        ),
        portfolio=(  # chosen by bench/portfolio.py
            {},
            {"learning_rate": 0.04, "max_depth": 4, "subsample": 0.8, "colsample_bytree": 0.7, "min_child_weight": 5.0},
            {
                "colsample_bytree": 0.643,
                "gamma": 0.00772,
                "learning_rate": 0.0463,
                "max_depth": 7,
                "min_child_weight": 0.419,
                "reg_lambda": 0.00774,
                "subsample": 0.526,
            },
            {"learning_rate": 0.05, "max_depth": 2, "subsample": 0.9},
            {
                "colsample_bytree": 0.926,
                "learning_rate": 0.0133,
                "max_depth": 7,
                "min_child_weight": 13.3,
                "reg_lambda": 0.00183,
                "subsample": 0.62,
            },
        ),
    )
