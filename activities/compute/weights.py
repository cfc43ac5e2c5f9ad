"""How much each row counts while a model learns: its weight column times its class's weight."""

import numpy as np

from activities.compute.data import Table
from activities.compute.features import Floats, Pipeline
from everloop.errors import InvalidData, InvalidSpec
from everloop.specs import LifecycleSpec


def weights_of(
    spec: LifecycleSpec, pipeline: Pipeline, table: Table | None, rows: "np.typing.NDArray[np.int64]", y: Floats
) -> Floats | None:
    """Of rows by their numbers in *table*; *y* are their class indices. None: each counts as 1.

    Raises `InvalidData` where a weight is missing, negative or no number, `InvalidSpec` for a class that is not there.
    """
    found: Floats | None = None
    if spec.weight and table is not None:
        found = _column(spec.weight, table, rows)
    if spec.class_weight:
        own = _of_classes(spec, pipeline, y)[y.astype(np.int64)]
        found = own if found is None else found * own
    if found is not None and not found.any():
        raise InvalidData("every row has the weight 0", field="weight", hint="leave weight and class_weight out")
    return found


def _column(name: str, table: Table, rows: "np.typing.NDArray[np.int64]") -> Floats:
    values = table.arrays([name], rows)[name]
    if values.dtype == object:
        raise InvalidData(f"weight: {name!r} is no column of numbers", field="weight", hint="say its type in `columns`")
    wide: Floats = np.asarray(values, np.float64)
    wrong = ~np.isfinite(wide) | (wide < 0)
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        what = "missing" if np.isnan(wide[place]) else f"{wide[place]:g}"
        message = f"weight: {name!r} is {what} in row {int(rows[place]) + 1:,} and {int(wrong.sum()) - 1:,} others"
        raise InvalidData(
            message, field="weight", hint="a weight is a number from 0; leave such rows out of the source"
        )
    return wide


def _of_classes(spec: LifecycleSpec, pipeline: Pipeline, y: Floats) -> Floats:
    """[classes]"""
    counts = np.bincount(y.astype(np.int64), minlength=len(pipeline.classes))
    if spec.class_weight == "balanced":
        return np.asarray(len(y) / (len(counts) * np.maximum(counts, 1)), np.float64)
    said = spec.class_weight if isinstance(spec.class_weight, dict) else {}
    unknown = sorted(set(said) - set(pipeline.classes))
    if unknown:
        hint = f"the classes are {', '.join(map(repr, pipeline.classes[:20]))}"
        raise InvalidSpec(f"class_weight: the target has no class {unknown[0]!r}", field="class_weight", hint=hint)
    return np.array([said.get(label, 1.0) for label in pipeline.classes])
