"""Decision trees as one node of the graph, written from their arrays and not by a converter.

Known wrong conversions that this is instead of: thresholds in float64 rounded to the nearest float32 (rows on a
threshold change sides), and XGBoost's trees after a scaler (up to 0.13 of probability, with every label right).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from activities.compute.features.graph import Graph

LEAF = -1
"""The feature of a leaf."""


@dataclass(frozen=True)
class Trees:
    """Nodes of all trees, one after the other; each array is [nodes], places of children count within their tree."""

    starts: NDArray[np.int64]
    """Of each tree, [trees]."""
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    """Where the feature's value is below the threshold (or equal to it, as the mode says)."""
    right: NDArray[np.int32]
    missing_left: NDArray[np.bool_]
    value: NDArray[np.float32]
    """[nodes, targets]; of leaves alone."""

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def joined(cls, parts: "list[Trees]") -> "Trees":
        moved = np.cumsum([0, *(len(part.feature) for part in parts[:-1])])
        starts = [part.starts + by for part, by in zip(parts, moved, strict=True)]
        rest = {
            each.name: np.concatenate([getattr(part, each.name) for part in parts])
            for each in fields(cls)
            if each.name != "starts"
        }
        return cls(starts=np.concatenate(starts), **rest)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> "Trees":
        """From what `arrays` gave, maybe among others."""
        return cls(**{each.name: np.asarray(arrays[each.name]) for each in fields(cls)})

    def thresholds(self) -> dict[int, list[float]]:
        """By feature, ascending."""
        inner = self.feature != LEAF
        found: dict[int, list[float]] = {}
        for place in np.unique(self.feature[inner]).tolist():
            found[place] = np.unique(self.threshold[inner & (self.feature == place)]).astype(float).tolist()
        return found


def in_graph(
    graph: Graph,
    features: str,
    trees: Trees,
    *,
    mode: Literal["BRANCH_LT", "BRANCH_LEQ"],
    targets: int,
    of_tree: NDArray[np.int64] | None = None,
    base: list[float] | None = None,
) -> str:
    """Add the trees' node: the sum of the leaves, float [rows, *targets*].

    *of_tree*: the target that each tree adds to, where leaves have one value. *base*: is added to each target.
    """
    ends = np.append(trees.starts[1:], len(trees.feature))
    sizes = ends - trees.starts
    tree_ids = np.repeat(np.arange(len(trees)), sizes)
    node_ids = np.arange(len(trees.feature)) - np.repeat(trees.starts, sizes)
    leaf = trees.feature == LEAF
    if of_tree is not None:
        places = np.flatnonzero(leaf)
        ids, weights = of_tree[tree_ids[places]], trees.value[places, 0]
    else:
        places, ids = np.nonzero((trees.value != 0) & leaf[:, None])
        weights = trees.value[places, ids]
    attributes: dict[str, Any] = {
        "n_targets": targets,
        "aggregate_function": "SUM",
        "post_transform": "NONE",
        "nodes_treeids": tree_ids.tolist(),
        "nodes_nodeids": node_ids.tolist(),
        "nodes_featureids": np.where(leaf, 0, trees.feature).tolist(),
        "nodes_modes": np.where(leaf, "LEAF", mode).tolist(),
        "nodes_values": np.where(leaf, 0, trees.threshold).astype(float).tolist(),
        "nodes_truenodeids": np.where(leaf, 0, trees.left).tolist(),
        "nodes_falsenodeids": np.where(leaf, 0, trees.right).tolist(),
        "nodes_missing_value_tracks_true": trees.missing_left.astype(int).tolist(),
        "target_treeids": tree_ids[places].tolist(),
        "target_nodeids": node_ids[places].tolist(),
        "target_ids": np.asarray(ids).tolist(),
        "target_weights": weights.astype(float).tolist(),
    }
    if base is not None:
        attributes["base_values"] = base
    return graph.add("TreeEnsembleRegressor", features, domain="ai.onnx.ml", **attributes)
