"""What a model may be asked to do, and how that is measured."""

from typing import Literal

Task = Literal["binary", "multiclass", "regression"]

METRICS: dict[Task, tuple[str, ...]] = {
    "binary": ("auc", "log_loss", "accuracy"),
    "multiclass": ("log_loss", "accuracy", "auc"),
    "regression": ("rmse", "mae", "r2"),
}
"""Metrics by task; the first is the default objective. `auc` is macro one-vs-rest for multiclass."""

HIGHER_IS_BETTER = frozenset({"auc", "accuracy", "r2"})
