"""Products and ratios of numbers, in float64: in NumPy and, operation by operation the same, as nodes of the graph."""

from collections.abc import Mapping, Sequence

import numpy as np

from activities.compute.features.graph import Graph
from activities.compute.features.inputs import Combination, Feature, Floats, Input
from activities.compute.features.numbers import filled, single, single_in_graph
from activities.compute.inference import Columns


def combination(entry: Combination, inputs: Mapping[str, Input], columns: Columns) -> Feature:
    """One product or ratio; a ratio by nothing is missing."""
    left, right = (filled(inputs[name], columns[name]) for name in (entry.left, entry.right))
    return single(combined(entry.how, left, right))


def combined(how: str, left: Floats, right: Floats) -> Floats:
    """Of doubles."""
    with np.errstate(all="ignore"):
        found: Floats = left * right if how == "product" else left / np.where(right == 0, np.nan, right)
    return found


def combinations_in_graph(graph: Graph, entries: Sequence[Combination], inputs: Mapping[str, Input]) -> str:
    """`combination`, for all of them at once: products, then ratios, as they stand in the pipeline."""
    used = list(dict.fromkeys(name for entry in entries for name in (entry.left, entry.right)))
    block = graph.add("Concat", *used, axis=1)
    if not all(inputs[name].nullable for name in used):
        fills = [[np.nan if inputs[name].nullable else inputs[name].fill for name in used]]
        block = graph.add("Where", graph.add("IsNaN", block), graph.constant(fills, np.float64), block)

    def side(places: Sequence[int]) -> str:
        return graph.add("Gather", block, graph.constant(places, np.int64), axis=1)

    parts = []
    for how in ("product", "ratio"):
        own = [entry for entry in entries if entry.how == how]
        if not own:
            continue
        left, right = (side([used.index(getattr(entry, of)) for entry in own]) for of in ("left", "right"))
        if how == "product":
            parts.append(graph.add("Mul", left, right))
            continue
        nothing = graph.add("Equal", right, graph.constant([[0.0]], np.float64))
        parts.append(graph.add("Div", left, graph.add("Where", nothing, graph.constant([[np.nan]], np.float64), right)))
    return single_in_graph(graph, graph.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0])
