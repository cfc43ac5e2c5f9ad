"""A category of many values as the target's mean: in NumPy and, value by value the same, as a node of the graph."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute.features.categories import Coded, coded
from activities.compute.features.graph import Graph
from activities.compute.features.inputs import Encoding, Feature, Floats

WEIGHT = 20
"""The mean of all rows counts as much as so many rows of a value."""
MOST_ENCODED = 2000
Batch = tuple[Coded, NDArray[np.integer[Any]], NDArray[np.int8]]
"""Of some rows: texts, the target in whole units, folds."""


def means(sums: Floats, counts: Floats, total: float, rows: float) -> NDArray[np.float32]:
    """Smoothed means of values from their sums and counts, and last that of a value that was never seen."""
    usual = total / rows if rows else 0.0
    found = (np.append(sums, 0.0) + WEIGHT * usual) / (np.append(counts, 0.0) + WEIGHT)
    found = found.astype(np.float32)
    return np.where(np.abs(found) <= np.float32(1e-35), np.float32(0), found)


def answers(entry: Encoding) -> NDArray[np.float32]:
    """What each known value is answered with, and last any other."""
    sums, counts = np.array(entry.sums, np.float64), np.array(entry.counts, np.float64)
    return means(sums.sum(axis=1), counts.sum(axis=1), *map(float, entry.total))


def encoded(entry: Encoding, column: NDArray[np.generic] | Coded, folds: NDArray[np.int8] | None = None) -> Feature:
    """The mean of each row's value. *folds*: those of rows that it was fitted on, -1 for others."""
    places = coded(column).among(entry.known)
    found: Feature = answers(entry)[places]
    if folds is None:
        return found
    sums, counts = np.array(entry.sums, np.float64), np.array(entry.counts, np.float64)
    for fold in range(sums.shape[1]):
        own = folds == fold
        total, rows = entry.total[0] - sums[:, fold].sum(), entry.total[1] - counts[:, fold].sum()
        others = means(sums.sum(axis=1) - sums[:, fold], counts.sum(axis=1) - counts[:, fold], total, rows)
        found[own] = others[places[own]]
    return found


def summed(known: tuple[str, ...], batches: Iterator[Batch], folds: int) -> tuple[Floats, Floats]:
    """Sums and counts [values, folds] of the values in *known*, and last of all others: whole numbers, so that those
    of stretches of the rows add up to the same in any order.
    """
    sums, counts = (np.zeros((len(known) + 1, folds)) for _ in range(2))
    for texts, goal, fold in batches:
        cells = texts.among(known) * folds + fold
        sums += np.bincount(cells, goal, sums.size).reshape(sums.shape)
        counts += np.bincount(cells, minlength=sums.size).reshape(sums.shape)
    return sums, counts


def fitted(column: str, known: tuple[str, ...], sums: Floats, counts: Floats, of: int | None = None) -> Encoding:
    """Of what `summed` says. *of*: the class that its target says is there (1) or not (0)."""
    # Rows of other values count with those of the mean of all alone.
    return Encoding(
        column=column,
        known=known,
        sums=tuple(tuple(map(int, row)) for row in sums[:-1]),
        counts=tuple(tuple(map(int, row)) for row in counts[:-1]),
        total=(int(sums.sum()), int(counts.sum())),
        of=of,
    )


def encoded_in_graph(graph: Graph, entry: Encoding) -> str:
    """`encoded` of rows that it was not fitted on."""
    found = answers(entry)
    return graph.add(
        "LabelEncoder",
        entry.column,
        domain="ai.onnx.ml",
        keys_strings=[value.encode() for value in entry.known],
        values_floats=[float(value) for value in found[:-1]],
        default_float=float(found[-1]),
    )
