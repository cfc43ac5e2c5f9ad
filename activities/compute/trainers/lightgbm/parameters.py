"""What LightGBM is told: its parameters and its rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute import UNUSED_BY_LIGHTGBM, without
from activities.compute.features import Floats, Pipeline, PreparedRows, smallest_leaf
from everloop.families.lightgbm import Params
from everloop.specs import LifecycleSpec

with without(*UNUSED_BY_LIGHTGBM):
    import lightgbm

OBJECTIVES = {"binary": "binary", "multiclass": "multiclass", "regression": "regression"}


def parameters(
    spec: LifecycleSpec, pipeline: Pipeline, rows: int, asked: Mapping[str, Any], *, cores: int = 1
) -> dict[str, Any]:
    """LightGBM's parameters for the spec's training; *asked* are the spec's `params`."""
    params: dict[str, Any] = {
        "objective": OBJECTIVES[spec.task],
        "learning_rate": spec.training.learning_rate,
        "num_leaves": spec.training.leaves,
        "seed": spec.training.seed,
        "deterministic": True,
        "force_row_wise": True,  # the other layout sums in another order
        "num_threads": cores,
        "verbosity": -1,
        "min_data_in_leaf": smallest_leaf(rows),
        "min_data_per_group": min(100, max(5, rows // 50)),
        "feature_pre_filter": False,
        "bin_construct_sample_cnt": max(200_000, min(rows, 500_000)),  # see every missing value there is
    }
    if spec.task == "multiclass":
        params["num_class"] = len(pipeline.classes)
    return params | Params.model_validate(asked).told()


class Part(lightgbm.Sequence):  # type: ignore[misc]  # LightGBM has no types for us
    """Some prepared rows, as LightGBM asks for them: one by one to draw its bins, then batch by batch."""

    batch_size = 65_536

    def __init__(self, rows: PreparedRows, places: NDArray[np.int64]) -> None:
        """*places* ascend."""
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Floats:  # noqa: ANN401  # a number, a slice or a list
        # LightGBM draws its sample as float64: every float32 is one of those.
        if isinstance(index, int | np.integer):
            return self._rows.row(int(self._places[index])).astype(np.float64)
        return self._rows.matrix(self._places[index]).astype(np.float64)


def dataset(  # noqa: PLR0917
    rows: PreparedRows,
    places: NDArray[np.int64],
    goal: Floats,
    pipeline: Pipeline,
    params: Mapping[str, Any],
    weights: Floats | None = None,
) -> "lightgbm.Dataset":
    """Rows by their places (ascending) to learn *goal* from. Only bins of them are kept in memory."""
    names = [f"f{place}" for place in range(rows.features)]  # column names may hold what LightGBM refuses
    categorical = pipeline.categorical
    return lightgbm.Dataset(
        Part(rows, places),
        goal,
        weight=weights,
        feature_name=names,
        categorical_feature=categorical,
        params=dict(params),
    )
