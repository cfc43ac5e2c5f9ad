"""Categories as codes: in NumPy and, operation by operation the same, as a node of the graph."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from activities.compute.features.graph import Graph
from activities.compute.features.inputs import Input, Matrix

MISSING, OTHER, FIRST = 0, 1, 2  # codes of a category


@dataclass(frozen=True)
class Coded:
    """A column of text as its different values and each row's place among them: each value is looked at once."""

    values: list[str]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def look_up(self, table: Mapping[str, float], default: float) -> NDArray[np.float32]:
        """What *table* says of each row's value."""
        found = np.array([table.get(value, default) for value in self.values], np.float32)
        return found[self.places]


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
    values = column.chunk(0).dictionary.to_pylist()
    indices = pa.chunked_array([chunk.indices for chunk in column.chunks]).cast(pa.int64())
    return Coded([*values, ""], pc.fill_null(indices, len(values)).to_numpy())


def codes(entry: Input, values: NDArray[np.generic] | Coded) -> Matrix:
    """The code of each text: 0 missing, 1 rare or unseen, then the known values."""
    table = {value: float(place) for place, value in enumerate(entry.known, FIRST)} | {"": float(MISSING)}
    return coded(values).look_up(table, float(OTHER)).reshape(-1, 1)


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
