"""Numbers and booleans as features: in NumPy and, operation by operation the same, as nodes of the graph."""

from collections.abc import Sequence

import numpy as np

from activities.compute.features.graph import FLOAT, Graph
from activities.compute.features.inputs import Indicator, Input, Matrix
from activities.compute.inference import Columns
from everloop.errors import naming

LARGEST = float(np.finfo(np.float32).max)
"""Numbers are kept within float32: LightGBM's infinite threshold ("missing or not") is exported as 1e300."""
NOTHING = np.float32(1e-35)
"""LightGBM takes what is this near to 0 for 0, but only in some of its ways through a tree: so it never sees any."""


def numbers(inputs: Sequence[Input], columns: Columns, rows: int) -> Matrix:
    """Numbers and booleans: filled where training had no missing value, centred, and cast as ONNX Cast does."""
    block = np.empty((rows, len(inputs)), np.float64)
    for place, entry in enumerate(inputs):
        with naming(column=entry.name):
            block[:, place] = columns[entry.name]
    fills = np.array([np.nan if entry.nullable else entry.fill for entry in inputs])
    offsets = np.array([entry.offset for entry in inputs])
    with np.errstate(invalid="ignore"):
        wide = np.where(np.isnan(block), fills, block) - offsets
        wide = np.where(wide > LARGEST, LARGEST, wide)
        single = np.where(wide < -LARGEST, -LARGEST, wide).astype(np.float32)
        return np.where(np.abs(single) <= NOTHING, np.float32(0), single)


def numbers_in_graph(graph: Graph, inputs: Sequence[Input]) -> str:
    """`numbers`, for all of them at once."""
    block = graph.add("Concat", *(entry.name for entry in inputs), axis=1)
    if not all(entry.nullable for entry in inputs):
        fills = graph.constant([[np.nan if entry.nullable else entry.fill for entry in inputs]], np.float64)
        block = graph.add("Where", graph.add("IsNaN", block), fills, block)
    if any(entry.offset for entry in inputs):
        block = graph.add("Sub", block, graph.constant([[entry.offset for entry in inputs]], np.float64))
    # Where and not Clip: what Clip makes of a missing value is not said.
    most, least = graph.constant([[LARGEST]], np.float64), graph.constant([[-LARGEST]], np.float64)
    block = graph.add("Where", graph.add("Greater", block, most), most, block)
    block = graph.add("Where", graph.add("Less", block, least), least, block)
    single = graph.add("Cast", block, to=FLOAT)
    near = graph.add("LessOrEqual", graph.add("Abs", single), graph.constant([[NOTHING]], np.float32))
    return graph.add("Where", near, graph.constant([[0.0]], np.float32), single)


def indicator(entry: Indicator, columns: Columns) -> Matrix:
    """Whether a number is missing."""
    return np.isnan(np.asarray(columns[entry.column], np.float64)).astype(np.float32).reshape(-1, 1)


def indicator_in_graph(graph: Graph, entry: Indicator) -> str:
    """`indicator`."""
    return graph.add("Cast", graph.add("IsNaN", entry.column), to=FLOAT)
