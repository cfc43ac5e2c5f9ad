"""The columns of one kind of a model, read from JSON rows together."""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute.inference.readers import Reader, number
from everloop.records import Field

Columns = dict[str, NDArray[Any]]


class Numbers:
    """The columns of one model that are numbers, read together. Nothing is left out of a row."""

    def __init__(self, columns: Sequence[tuple[Field, Reader]]) -> None:
        self.names = tuple(field.name for field, _ in columns)
        self._readers = [(field.name, read) for field, read in columns]
        self._pick = itemgetter(*self.names) if len(columns) > 1 else None
        self._are_plain = all(read is number for _, read in columns)

    def columns(self, rows: Sequence[Mapping[str, object]]) -> Columns:
        """Each [rows, 1]; all of them views of one array. Raises what a reader raises, or `KeyError`."""
        if not self.names:
            return {}
        values = self._plain(rows[0]) if len(rows) == 1 else None
        if values is None:
            values = [[read(row[name]) for row in rows] for name, read in self._readers]
        held: NDArray[Any] = np.array(values, np.float64).reshape(len(self.names), len(rows), 1)
        return dict(zip(self.names, held, strict=True))

    def _plain(self, row: Mapping[str, object]) -> Any:  # noqa: ANN401  # numbers, as they are
        """The values of a row that has nothing but finite numbers, without a call for each; None where one is not."""
        if self._pick is None or not self._are_plain:
            return None
        values = self._pick(row)
        # Of a NaN or Infinity among them the sum is neither finite.
        return values if set(map(type, values)) <= _NUMBERS and math.isfinite(sum(values)) else None


_NUMBERS = frozenset({int, float})


class Texts:
    """The columns of one model that are texts, read together. Nothing is left out of a row."""

    def __init__(self, columns: Sequence[tuple[Field, Reader]]) -> None:
        self.names = tuple(field.name for field, _ in columns)
        # Texts that are read as what they are: most of those that come.
        self._readers = [
            (field.name, read, frozenset(text for text in field.known if read(text) == text)) for field, read in columns
        ]

    def columns(self, rows: Sequence[Mapping[str, object]]) -> Columns:
        """Each [rows, 1]; all of them views of one array. Raises what a reader raises, or `KeyError`."""
        if not self.names:
            return {}
        held = np.empty((len(self.names), len(rows), 1), object)
        for place, (name, read, known) in enumerate(self._readers):
            for at, row in enumerate(rows):
                value = row[name]
                held[place, at, 0] = value if type(value) is str and value in known else read(value)
        return dict(zip(self.names, held, strict=True))
