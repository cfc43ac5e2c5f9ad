"""Categories as codes: in NumPy and, operation by operation the same, as a node of the graph."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from activities.compute.features.graph import Graph
from activities.compute.features.inputs import Feature, Input

MISSING, OTHER, FIRST = 0, 1, 2  # codes of a category


@dataclass(frozen=True)
class Coded:
    """A column of text as its different values and each row's place among them: each value is looked at once."""

    values: list[str] | pa.Array
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def texts(self) -> list[str]:
        """The different values."""
        found: list[str] = self.values if isinstance(self.values, list) else self.values.to_pylist()
        return found

    def among(self, known: Sequence[str]) -> NDArray[np.int64]:
        """Each row's value as its place in *known*; the first place after them where it is not there."""
        if isinstance(self.values, list):  # any text at all: Arrow takes no lone surrogates
            place = {value: number for number, value in enumerate(known)}
            found = np.array([place.get(value, len(known)) for value in self.values], np.int64)
        else:
            there = pc.index_in(self.values, value_set=pa.array(known, self.values.type))
            found = pc.fill_null(there, len(known)).to_numpy().astype(np.int64)
        return np.asarray(found[self.places], np.int64)


def coded(column: NDArray[np.generic] | Coded) -> Coded:
    """A text column, also one of plain texts."""
    return column if isinstance(column, Coded) else Coded(column.ravel().tolist(), np.arange(column.size))


def texts_of(column: pa.ChunkedArray) -> Coded:
    """An Arrow column of texts, or of texts as a dictionary; the empty text is missing."""
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    if column.num_chunks == 0:
        return Coded([""], np.zeros(0, np.int64))
    column = column.unify_dictionaries()
    values = column.chunk(0).dictionary
    indices = pa.chunked_array([chunk.indices for chunk in column.chunks])
    if indices.null_count:
        indices = pc.fill_null(indices, len(values))
    return Coded(pa.concat_arrays([values, pa.array([""], values.type)]), indices.to_numpy().astype(np.int64))


def codes(entry: Input, values: NDArray[np.generic] | Coded) -> Feature:
    """The code of each text: 0 missing, 1 rare or unseen, then the known values."""
    table = [MISSING, *range(FIRST, FIRST + len(entry.known)), OTHER]
    return np.array(table, np.float32)[coded(values).among(["", *entry.known])]


def codes_in_graph(graph: Graph, entry: Input) -> str:
    """`codes`."""
    keys = ["", *entry.known]
    values = [float(MISSING), *(float(FIRST + place) for place in range(len(entry.known)))]
    return graph.add(
        "LabelEncoder",
        entry.name,
        domain="ai.onnx.ml",
        keys_strings=[key.encode() for key in keys],
        values_floats=values,
        default_float=float(OTHER),
    )
