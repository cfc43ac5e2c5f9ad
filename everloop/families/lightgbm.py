"""LightGBM: trees, one after the other, each mending what those before it miss."""

from typing import Annotated, Any

from pydantic import Field

from everloop.families.space import Space, choice, integer, number
from everloop.strict import Strict

STEP = "rounds"


class Params(Strict):
    """`params:` of `trainer: lightgbm`, by LightGBM's own names. What is left out is as the size of the data asks."""

    bagging_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the rows that a tree learns from."""
    bagging_freq: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Every how many rounds those rows are drawn anew; 1 where only the share is given."""
    feature_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the features that a tree may look at."""
    feature_fraction_bynode: Annotated[float, Field(gt=0, le=1)] | None = None
    lambda_l1: Annotated[float, Field(ge=0, le=1e6)] | None = None
    lambda_l2: Annotated[float, Field(ge=0, le=1e6)] | None = None
    max_bin: Annotated[int, Field(ge=2, le=255)] | None = None
    max_depth: Annotated[int, Field(ge=1, le=64)] | None = None
    min_data_in_leaf: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    min_gain_to_split: Annotated[float, Field(ge=0, le=1e9)] | None = None
    min_sum_hessian_in_leaf: Annotated[float, Field(ge=0, le=1e9)] | None = None
    path_smooth: Annotated[float, Field(ge=0, le=1e6)] | None = None
    cat_smooth: Annotated[float, Field(ge=0, le=1e6)] | None = None
    cat_l2: Annotated[float, Field(ge=0, le=1e6)] | None = None
    max_cat_threshold: Annotated[int, Field(ge=1, le=1024)] | None = None
    extra_trees: bool | None = None
    """Draw thresholds instead of looking for the best."""
    num_iterations: Annotated[int, Field(ge=1, le=5000)] | None = None
    """Rounds at most, instead of `training.rounds`."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Instead of `training.learning_rate`."""
    num_leaves: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Instead of `training.leaves`."""

    def told(self) -> dict[str, Any]:
        """What LightGBM is told."""
        said = self.model_dump(exclude_none=True, exclude={"num_iterations"})
        return {"bagging_freq": 1} | said if "bagging_fraction" in said else said


def space(task: str, rows: int) -> Space:  # noqa: ARG001  # the same for every task
    """Leaves and their least rows follow the table's size: a small one overfits with many."""
    leaves = 31 if rows < 2_000 else 127 if rows < 20_000 else 255  # noqa: PLR2004
    return Space(
        parameters=(
            number("learning_rate", 0.01, 0.3, log=True, usual=0.05),
            integer("num_leaves", 4, leaves, log=True, usual=31),
            integer("min_data_in_leaf", 2, 100 if rows < 20_000 else 300, log=True, usual=20),  # noqa: PLR2004
            number("feature_fraction", 0.4, 1.0, usual=1.0),
            number("bagging_fraction", 0.5, 1.0, usual=1.0),
            number("lambda_l1", 1e-8, 10.0, log=True, usual=1e-8),
            number("lambda_l2", 1e-8, 10.0, log=True, usual=1e-8),
            number("cat_smooth", 1.0, 100.0, log=True, usual=10.0),
            choice("extra_trees", False, True),
        ),
        portfolio=(  # learned by bench/portfolio.py, but for the last
            {},
            {
                "bagging_fraction": 0.967,
                "cat_smooth": 4.4,
                "extra_trees": True,
                "feature_fraction": 0.934,
                "learning_rate": 0.0597,
                "min_data_in_leaf": 13,
                "num_leaves": 8,
            },
            {
                "bagging_fraction": 0.635,
                "cat_smooth": 10.5,
                "feature_fraction": 0.585,
                "lambda_l1": 0.586,
                "lambda_l2": 0.855,
                "learning_rate": 0.0527,
                "min_data_in_leaf": 42,
                "num_leaves": 30,
            },
            {
                "bagging_fraction": 0.575,
                "cat_smooth": 2.89,
                "extra_trees": True,
                "feature_fraction": 0.602,
                "lambda_l2": 0.147,
                "learning_rate": 0.0226,
                "min_data_in_leaf": 3,
                "num_leaves": 24,
            },
            {"learning_rate": 0.03, "num_leaves": 8, "feature_fraction": 0.6, "bagging_fraction": 0.8},
        ),
    )
