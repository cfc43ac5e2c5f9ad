"""One column of several versions, which may have typed it differently."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from activities.compute.inference import loose_reader
from activities.compute.predictions.columns import MICROSECONDS, MOMENT, TYPES
from everloop.records import Field


def as_raw(column: pa.ChunkedArray, field: Field) -> NDArray[Any]:
    """A stored column as the raw one of *field*: float64 with NaN, or text with "" where a value is missing."""
    if column.type != TYPES[field.kind]:
        return _as_another(column, field)
    if field.kind == "category":
        return np.asarray(pc.fill_null(column, "").to_numpy(), object)
    if field.kind == "datetime":
        return _seconds(column)
    return _floats(column)


def missing(field: Field, rows: int) -> NDArray[Any]:
    """A column that the rows do not have."""
    return np.full(rows, "", object) if field.kind == "category" else np.full(rows, math.nan)


def as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A stored column as *kind*; null where a value is none of that."""
    if column.type == kind or pa.types.is_null(kind):
        return column if column.type == kind else pa.chunked_array([pa.nulls(len(column))])
    if kind == pa.string():
        return pa.chunked_array(
            [pa.array([None if each is None else _text(each) for each in column.to_pylist()], kind)]
        )
    if kind == pa.float64() and pa.types.is_boolean(column.type):
        return column.cast(kind)
    return pa.chunked_array([pa.nulls(len(column), kind)])


def _as_another(column: pa.ChunkedArray, field: Field) -> NDArray[Any]:
    """Of a version that had it as another kind: what it logged, as this field reads it."""
    read = loose_reader(field)
    plain = [each.isoformat() if pa.types.is_timestamp(column.type) and each else each for each in column.to_pylist()]
    values = [read(value) for value in plain]
    return np.array(values, object if field.kind == "category" else np.float64)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    numbers = column.cast(pa.float64()) if pa.types.is_boolean(column.type) else column
    return np.asarray(pc.fill_null(numbers, math.nan).to_numpy(), np.float64)


def _seconds(column: pa.ChunkedArray) -> NDArray[np.float64]:
    found = column.cast(MOMENT).cast(pa.int64()).cast(pa.float64(), safe=False)
    return _floats(found) / MICROSECONDS


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return ("true" if value else "false") if isinstance(value, bool) else str(value)
