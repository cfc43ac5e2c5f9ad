# ruff: noqa: T201  # what a job prints is its log
"""forest: scikit-learn's random forest or extra trees, grown a few trees at a time, exported node by node.

`params:` are those of `everloop.families.forest`. Of `training:` it takes the seed. Every few trees are a forest of
their own, seeded by (seed, first tree): so a training that goes on from a checkpoint is the same as one that was
never ended. Categories enter as ranks (see `ordering`).
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeRegressor
from sklearn.tree._tree import Tree

from activities.compute import Context
from activities.compute.features import Floats, Matrix, Pipeline
from activities.compute.features.graph import Graph
from activities.compute.trainers import Examples, Question, kept, loss_of, splits
from activities.compute.trainers.ordering import Ordering
from everloop.families.forest import Params

BATCH = 8
"""Trees that are grown together."""
GRAPH_BYTES = 17_000_000
"""That the trees may take of a graph (measured: 40 bytes a node, 14 more for each number in a leaf)."""
NODE_BYTES, NUMBER_BYTES = 42, 16
MOST_CELLS = 60_000_000
"""Features in memory, float32; of a longer table so many rows are drawn."""
KINDS = {
    ("random", False): RandomForestClassifier,
    ("random", True): RandomForestRegressor,
    ("extra", False): ExtraTreesClassifier,
    ("extra", True): ExtraTreesRegressor,
}


def fit(examples: Examples, params: Mapping[str, Any], context: Context) -> "Fitted":
    """So many trees as asked: more of them never make it worse. Goes on from the context's checkpoint."""
    chosen = Params.model_validate(dict(params))
    growth = Growth(examples, chosen, context)
    growth.run()
    trees = splits.Trees.joined(growth.parts)
    print(f"{len(trees):,} trees, {(trees.feature == splits.LEAF).sum():,} leaves")
    return Fitted(trees, examples.pipeline, growth.ordering, growth.worth)


class Growth:
    """A forest as it grows."""

    def __init__(self, examples: Examples, params: Params, context: Context) -> None:
        self.examples, self.params, self.context = examples, params, context
        self.ordering = Ordering.of(examples)
        self.total = examples.iterations or params.trees
        self.judged = self.ordering.apply(examples.rows.matrix(examples.validation))
        self.parts: list[splits.Trees] = []
        self.worth: Floats = np.zeros(examples.rows.features)
        if (restored := context.restore()) is not None:
            state = dict(restored[1])
            self.worth = np.asarray(state["worth"], np.float64)
            self.parts = [splits.Trees.of(state)]
        self.sums = sum((_answers(part, self.judged) * len(part) for part in self.parts), np.zeros(1))
        """Of the trees' answers to the validation rows."""

    def run(self) -> None:
        examples, regression = self.examples, self.examples.pipeline.task == "regression"
        places = examples.drawn(MOST_CELLS, "a forest keeps its features in memory")
        matrix, goal = self.ordering.apply(examples.rows.matrix(places)), examples.goal[places]
        weights = None if examples.weights is None else examples.weights[places]
        settings = _settings(examples, self.params, len(places), self.total)
        while (grown := sum(map(len, self.parts))) < self.total:
            grower = KINDS[self.params.kind, regression](
                min(BATCH, self.total - grown),
                random_state=_seed(examples, grown),
                n_jobs=self.context.cores,
                **settings,
            )
            grower.fit(matrix, goal if regression else goal.astype(np.int64), weights)
            self._take(grower)

    def _take(self, grower: Any) -> None:  # noqa: ANN401
        """Some more trees: keep and judge them."""
        part = _trees(grower, self.examples.pipeline)
        self.parts.append(part)
        self.worth = self.worth + sum(each.tree_.compute_feature_importances() for each in grower.estimators_)
        grown = sum(map(len, self.parts))
        told: dict[str, float] = {}
        if len(self.judged):
            examples, pipeline = self.examples, self.examples.pipeline
            self.sums = self.sums + _answers(part, self.judged) * len(part)
            loss = loss_of(pipeline, examples.goal[examples.validation], _shaped(self.sums / grown, pipeline))
            told[f"validation_{'rmse' if pipeline.task == 'regression' else 'log_loss'}"] = loss
        self.context.report(grown, trees=grown, most=self.total, **told)
        if told:
            self.examples.reached(grown, loss)
        if grown < self.total:
            self.context.checkpoint(grown, self._state)

    def _state(self) -> dict[str, Any]:
        return splits.Trees.joined(self.parts).arrays() | {"worth": self.worth}


def load(dumped: bytes, pipeline: Pipeline) -> "Fitted":
    """The trees, and the ranks of the categories. Raises `IntegrityError`."""
    arrays, about = kept.unpacked(dumped)
    ordering = Ordering(about["first"], arrays["starts_of_ranks"], arrays["ranks"])
    return Fitted(splits.Trees.of(arrays), pipeline, ordering, arrays["worth"])


class Fitted:
    """Trees that are averaged."""

    file = "model.safetensors"
    unit = "tree"

    def __init__(self, trees: splits.Trees, pipeline: Pipeline, ordering: Ordering, worth: Floats) -> None:
        self.trees, self.pipeline, self.ordering, self.worth = trees, pipeline, ordering, worth

    @property
    def iterations(self) -> int:
        return len(self.trees)

    @cached_property
    def _grown(self) -> "list[Tree]":
        return _sklearn(self.trees)

    def predict(self, asked: Question) -> Floats:
        """Probabilities [rows, classes], or values [rows] as they were learned."""
        return _shaped(_mean(self._grown, self.ordering.apply(asked.matrix)), self.pipeline)

    def dump(self) -> bytes:
        arrays = self.trees.arrays() | {
            "starts_of_ranks": self.ordering.starts,
            "ranks": self.ordering.ranks,
            "worth": self.worth,
        }
        return kept.packed(arrays, {"first": self.ordering.first})

    def onnx(self, graph: Graph, pipeline: Pipeline) -> str:
        """The trees as one node after the ranks: the leaves hold their share of the mean."""
        features = self.ordering.in_graph(graph, pipeline.in_graph(graph))
        width = self.trees.value.shape[1]
        shares = splits.Trees(**self.trees.arrays() | {"value": self.trees.value / np.float32(len(self.trees))})
        told = splits.in_graph(graph, features, shares, mode="BRANCH_LEQ", targets=width)
        if pipeline.task == "regression":
            return told
        if width > 1:
            return told
        return graph.add("Concat", graph.add("Sub", graph.constant([[1.0]], np.float32), told), told, axis=1)

    def importance(self, pipeline: Pipeline) -> Mapping[str, float]:
        """By how much the splits of each feature reduced the impurity."""
        return dict(zip(pipeline.names, self.worth.tolist(), strict=True))

    def thresholds(self) -> Mapping[int, list[float]]:
        """Of the splits by features that are numbers: those of ranks are reached by the categories' values."""
        first = self.ordering.first if len(self.ordering.starts) else None
        return {place: all_ for place, all_ in self.trees.thresholds().items() if first is None or place < first}


def _seed(examples: Examples, first: int) -> int:
    return int(np.random.SeedSequence([examples.spec.training.seed, first]).generate_state(1)[0])


def _settings(examples: Examples, chosen: Params, rows: int, trees: int) -> dict[str, Any]:
    """scikit-learn's parameters."""
    regression = examples.pipeline.task == "regression"
    leaves, numbers = most_leaves(examples.pipeline, trees), examples.rows.features
    if chosen.leaves:
        leaves = min(leaves, chosen.leaves)
    share = chosen.features or (1 / 3 if regression else 1 / np.sqrt(numbers))
    least = chosen.min_leaf or (3 if regression else 2)
    return {
        "max_leaf_nodes": leaves if rows / least > leaves else None,  # with a limit it grows best first, and slower
        "min_samples_leaf": min(least, rows),
        "max_features": min(numbers, max(1, round(share * numbers))),
        "bootstrap": chosen.kind == "random",
    }


def most_leaves(pipeline: Pipeline, trees: int) -> int:
    """Leaves of each tree, so that all of them fit into the graph."""
    numbers = len(pipeline.classes) if pipeline.task == "multiclass" else 1
    return max(2, GRAPH_BYTES // (trees * (2 * NODE_BYTES + numbers * NUMBER_BYTES)))


def _trees(grower: Any, pipeline: Pipeline) -> splits.Trees:  # noqa: ANN401
    """Of a fitted forest. Classes that no row of it has are 0."""
    width = len(pipeline.classes) if pipeline.task == "multiclass" else 1
    learned = getattr(grower, "classes_", None)
    return splits.Trees.joined([_tree(each.tree_, pipeline, learned, width) for each in grower.estimators_])


def _tree(tree: Any, pipeline: Pipeline, learned: Any, width: int) -> splits.Trees:  # noqa: ANN401
    leaf = tree.children_left == -1
    value = np.asarray(tree.value[:, 0, :], np.float64)
    if pipeline.task != "regression":
        value = value / value.sum(axis=1, keepdims=True)
        every = np.zeros((len(value), len(pipeline.classes)))
        every[:, np.asarray(learned, np.int64)] = value
        value = every if width > 1 else every[:, 1:]
    single = tree.threshold.astype(np.float32)
    # x <= threshold is the same for every float32 x when the threshold is rounded down
    single = np.where(single > tree.threshold, np.nextafter(single, np.float32(-np.inf)), single)
    return splits.Trees(
        starts=np.zeros(1, np.int64),
        feature=np.where(leaf, splits.LEAF, tree.feature).astype(np.int32),
        threshold=np.where(leaf, 0, single).astype(np.float32),
        left=np.where(leaf, 0, tree.children_left).astype(np.int32),
        right=np.where(leaf, 0, tree.children_right).astype(np.int32),
        missing_left=tree.missing_go_to_left.astype(bool) & ~leaf,
        value=np.where(leaf[:, None], value, 0).astype(np.float32),
    )


def _sklearn(trees: splits.Trees) -> "list[Tree]":
    """As scikit-learn's own, so that it answers and not a rewriting of ours."""
    kind = DecisionTreeRegressor(max_depth=1).fit([[0.0], [1.0]], [0.0, 1.0]).tree_.__getstate__()["nodes"].dtype
    features, width = int(trees.feature.max(initial=0)) + 1, trees.value.shape[1]
    ends, found = np.append(trees.starts[1:], len(trees.feature)), []
    for start, end in zip(trees.starts.tolist(), ends.tolist(), strict=True):
        own = slice(start, end)
        leaf = trees.feature[own] == splits.LEAF
        nodes = np.zeros(end - start, kind)
        nodes["left_child"] = np.where(leaf, -1, trees.left[own])
        nodes["right_child"] = np.where(leaf, -1, trees.right[own])
        nodes["feature"] = np.where(leaf, -2, trees.feature[own])
        nodes["threshold"] = np.where(leaf, -2.0, trees.threshold[own].astype(np.float64))
        nodes["missing_go_to_left"] = trees.missing_left[own]
        made = Tree(features, np.ones(width, np.intp), width)
        values = trees.value[own].astype(np.float64)[:, :, None]
        made.__setstate__({"max_depth": 0, "node_count": len(nodes), "nodes": nodes, "values": values})
        found.append(made)
    return found


def _mean(grown: "list[Tree]", matrix: Matrix) -> Floats:
    """Of what the trees answer, [rows, width]."""
    total: Floats = np.zeros((len(matrix), grown[0].n_outputs))
    for each in grown:
        total += np.asarray(each.predict(matrix), np.float64).reshape(total.shape)
    return total / len(grown)


def _answers(trees: splits.Trees, matrix: Matrix) -> Floats:
    return _mean(_sklearn(trees), matrix)


def _shaped(told: Floats, pipeline: Pipeline) -> Floats:
    """As the protocol has answers."""
    if pipeline.task == "regression":
        return told[:, 0]
    return np.concatenate([1 - told, told], axis=1) if told.shape[1] == 1 else told
