"""Categories for trees that know numbers alone: a value's code becomes its rank by the target.

A threshold on the rank is then a split of the values into two sets, and of all sets the best one is among these
(of classes more than two: nearly). It is part of the family's own graph: one look into a table.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from activities.compute.features import Floats, Matrix, Pipeline
from activities.compute.features.graph import INT64, Graph
from activities.compute.trainers import Examples

PRIOR_ROWS = 10.0
"""So many rows of the average target are added to each value: what is rare ranks near the middle."""


@dataclass(frozen=True)
class Ordering:
    """Ranks of the codes of all categories, one table after the other."""

    first: int
    """Place of the first category among the features; all after it are categories."""
    starts: NDArray[np.int64]
    """Of each category's table, [categories]."""
    ranks: NDArray[np.float32]

    @classmethod
    def of(cls, examples: Examples) -> "Ordering":
        """By the train rows; a value that they do not have ranks as the average of all."""
        pipeline = examples.pipeline
        places = pipeline.categorical
        first = len(pipeline.names) - len(places)
        sizes = [len(entry.known) + 2 for entry in pipeline.of("category")]
        if not sizes:
            return cls(first, np.zeros(0, np.int64), np.zeros(0, np.float32))
        sums, counts = _sums(examples, sizes)
        tables = [_ranks(own, held) for own, held in zip(sums, counts, strict=True)]
        return cls(first, np.cumsum([0, *sizes[:-1]]).astype(np.int64), np.concatenate(tables))

    def apply(self, matrix: Matrix) -> Matrix:
        """Features [rows, features] with ranks instead of codes; the same array where there are no categories."""
        if not len(self.starts):
            return matrix
        told = matrix.copy()
        told[:, self.first :] = self.ranks[matrix[:, self.first :].astype(np.int64) + self.starts]
        return told

    def in_graph(self, graph: Graph, features: str) -> str:
        """`apply`."""
        if not len(self.starts):
            return features
        parts = [_columns(graph, features, self.first, self.first + len(self.starts))]
        codes = graph.add("Add", graph.add("Cast", parts[0], to=INT64), graph.constant(self.starts, np.int64))
        parts = [graph.add("Gather", graph.constant(self.ranks, np.float32), codes)]
        if self.first:
            parts.insert(0, _columns(graph, features, 0, self.first))
        return graph.add("Concat", *parts, axis=1)

    def numbers(self, pipeline: Pipeline) -> int:
        """How many features come before the categories."""
        return len(pipeline.names) - len(self.starts)


def _columns(graph: Graph, features: str, low: int, high: int) -> str:
    ends = (graph.constant([end], np.int64) for end in (low, high, 1))
    return graph.add("Slice", features, *ends)


def _sums(examples: Examples, sizes: list[int]) -> tuple[list[Floats], list[Floats]]:
    """Per category: sums [codes, numbers of the target] and rows [codes]. Rows count by their weight."""
    width = len(examples.pipeline.classes) or 1
    sums, counts = [np.zeros((size, width)) for size in sizes], [np.zeros(size) for size in sizes]
    first, step = len(examples.pipeline.names) - len(sizes), 65_536
    for start in range(0, len(examples.train), step):
        some = examples.train[start : start + step]
        codes = examples.rows.matrix(some)[:, first:].astype(np.int64)
        goal, weight = examples.goal[some], examples.weight(some)
        for place, size in enumerate(sizes):
            own = codes[:, place]
            counts[place] += np.bincount(own, weight, size)
            for each in range(width):
                value = weight * (goal == each if width > 1 else goal)
                sums[place][:, each] += np.bincount(own, value, size)
    return sums, counts


def _ranks(sums: Floats, counts: Floats) -> NDArray[np.float32]:
    average = sums.sum(axis=0) / counts.sum()
    means = (sums + PRIOR_ROWS * average) / (counts + PRIOR_ROWS)[:, None]
    if means.shape[1] == 2:  # noqa: PLR2004  # of two classes the second says all
        means = means[:, 1:]
    if means.shape[1] > 1:  # of more, the direction in which the values differ most
        spread = (means - average) * np.sqrt(counts + 1)[:, None]
        direction = np.linalg.svd(spread, full_matrices=False)[2][0]
        means = (means @ np.where(direction[np.argmax(np.abs(direction))] < 0, -direction, direction))[:, None]
    _, ranks = np.unique(np.round(means[:, 0], 12), return_inverse=True)
    return ranks.astype(np.float32)
