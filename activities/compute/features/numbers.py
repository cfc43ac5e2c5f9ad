"""Numbers and booleans as features: in NumPy and, operation by operation the same, as nodes of the graph."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from activities.compute.features.graph import DOUBLE, FLOAT, Graph
from activities.compute.features.inputs import Feature, Floats, Indicator, Input, Matrix, Skew
from activities.compute.features.skews import evened, evened_in_graph
from activities.compute.inference import Columns

LARGEST = float(np.finfo(np.float32).max)
"""Numbers are kept within float32: LightGBM's infinite threshold ("missing or not") is exported as 1e300."""
NOTHING = np.float32(1e-35)
"""LightGBM takes what is this near to 0 for 0, but only in some of its ways through a tree: so it never sees any."""


def number(entry: Input, column: NDArray[np.generic], skew: Skew | None = None) -> Feature:
    """A number or boolean: filled where training had no missing value, made even or centred, and cast."""
    wide = filled(entry, column)
    if skew is not None:
        wide = evened(skew, wide)
    elif entry.offset:
        wide = wide - entry.offset
    return single(wide)


def filled(entry: Input, column: NDArray[np.generic]) -> Floats:
    """A number with what answers for a missing one, where training had none."""
    wide = np.asarray(column, np.float64)
    if not entry.nullable and (missing := np.isnan(wide)).any():
        return np.where(missing, entry.fill, wide)
    return wide


def single(wide: Floats) -> Feature:
    """As float32, cast as ONNX Cast does."""
    found = np.clip(wide, -LARGEST, LARGEST).astype(np.float32)
    np.copyto(found, np.float32(0), where=np.abs(found) <= NOTHING)
    return found


def numbers_in_graph(graph: Graph, inputs: Sequence[Input], skews: Mapping[str, Skew] | None = None) -> str:
    """`number`, for all of them at once."""
    skews = skews or {}
    block = graph.add("Concat", *(_even_in_graph(graph, entry, skews.get(entry.name)) for entry in inputs), axis=1)
    if not all(entry.nullable or entry.name in skews for entry in inputs):
        fills = graph.constant([[np.nan if entry.nullable else entry.fill for entry in inputs]], np.float64)
        block = graph.add("Where", graph.add("IsNaN", block), fills, block)
    if any(entry.offset for entry in inputs):
        block = graph.add("Sub", block, graph.constant([[entry.offset for entry in inputs]], np.float64))
    return single_in_graph(graph, block)


def _even_in_graph(graph: Graph, entry: Input, skew: Skew | None) -> str:
    if skew is None:
        return entry.name
    wide = entry.name
    if not entry.nullable:
        wide = graph.add("Where", graph.add("IsNaN", wide), graph.constant([[entry.fill]], np.float64), wide)
    return evened_in_graph(graph, skew, wide)


def single_in_graph(graph: Graph, block: str) -> str:
    """`single`. Where and not Clip: what Clip makes of a missing value is not said."""
    most, least = graph.constant([[LARGEST]], np.float64), graph.constant([[-LARGEST]], np.float64)
    block = graph.add("Where", graph.add("Greater", block, most), most, block)
    block = graph.add("Where", graph.add("Less", block, least), least, block)
    found = graph.add("Cast", block, to=FLOAT)
    near = graph.add("LessOrEqual", graph.add("Abs", found), graph.constant([[NOTHING]], np.float32))
    return graph.add("Where", near, graph.constant([[0.0]], np.float32), found)


def fine(entry: Input, column: NDArray[np.generic]) -> Matrix:
    """What float32 leaves of each number, and what it leaves of that: each holds 24 bits more. [fine, rows]

    A tree that has split by the plain feature can go on by these: together they order the numbers as they are.
    """
    values = np.asarray(column, np.float64)
    wide = (values if entry.nullable else np.where(np.isnan(values), entry.fill, values)) - entry.offset
    wide = np.where(wide > LARGEST, LARGEST, np.where(wide < -LARGEST, -LARGEST, wide))
    rests = []
    for _ in range(entry.fine):
        wide = wide - wide.astype(np.float32).astype(np.float64)
        rest = wide.astype(np.float32)
        rests.append(np.where(np.abs(rest) <= NOTHING, np.float32(0), rest))
    return np.stack(rests)


def fine_in_graph(graph: Graph, entry: Input) -> list[str]:
    """`fine`."""
    wide = entry.name
    if not entry.nullable:
        wide = graph.add("Where", graph.add("IsNaN", wide), graph.constant([[entry.fill]], np.float64), wide)
    wide = graph.add("Sub", wide, graph.constant([[entry.offset]], np.float64))
    most, least = graph.constant([[LARGEST]], np.float64), graph.constant([[-LARGEST]], np.float64)
    wide = graph.add("Where", graph.add("Greater", wide, most), most, wide)
    wide = graph.add("Where", graph.add("Less", wide, least), least, wide)
    rests = []
    for _ in range(entry.fine):
        wide = graph.add("Sub", wide, graph.add("Cast", graph.add("Cast", wide, to=FLOAT), to=DOUBLE))
        rest = graph.add("Cast", wide, to=FLOAT)
        near = graph.add("LessOrEqual", graph.add("Abs", rest), graph.constant([[NOTHING]], np.float32))
        rests.append(graph.add("Where", near, graph.constant([[0.0]], np.float32), rest))
    return rests


def indicator(entry: Indicator, columns: Columns) -> Feature:
    """Whether a number is missing."""
    return np.isnan(np.asarray(columns[entry.column], np.float64)).astype(np.float32)


def indicator_in_graph(graph: Graph, entry: Indicator) -> str:
    """`indicator`."""
    return graph.add("Cast", graph.add("IsNaN", entry.column), to=FLOAT)
