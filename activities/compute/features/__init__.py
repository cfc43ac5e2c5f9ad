"""Raw columns become features, and rows become parts: `prepare` is the stage.

The preprocessing is fitted on the train part only and is small enough to be written twice: in NumPy and as ONNX
nodes, operation by operation the same, so that the parity gate can ask for equality. Each rule's file has both.
"""

from activities.compute.features.again import prepared_as
from activities.compute.features.dates import DAY, FIRST_SECOND, LAST_SECOND
from activities.compute.features.fitting import fit
from activities.compute.features.inputs import Dropped, Floats, Input, Matrix, smallest_leaf
from activities.compute.features.parts import FRESH_ROWS, TEST, TRAIN, VALIDATION, folds, split
from activities.compute.features.pipeline import Pipeline
from activities.compute.features.preparation import prepare, write
from activities.compute.features.table import PreparedRows, opened_rows, prepared_rows

__all__ = [
    "DAY",
    "FIRST_SECOND",
    "FRESH_ROWS",
    "LAST_SECOND",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Dropped",
    "Floats",
    "Input",
    "Matrix",
    "Pipeline",
    "PreparedRows",
    "fit",
    "folds",
    "opened_rows",
    "prepare",
    "prepared_as",
    "prepared_rows",
    "smallest_leaf",
    "split",
    "write",
]
