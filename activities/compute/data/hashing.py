"""Rows by their content."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from activities.compute.data.table import Table, array_of
from everloop.errors import naming

MISSING_HASH = np.uint64(0x9E3779B97F4A7C15)
EXACT = 2.0**53
"""Whole numbers up to here are their own float64."""
ODD = np.uint64(0xBF58476D1CE4E5B9)


def row_hashes(table: Table) -> NDArray[np.uint64]:
    """Who a row is: its content, and the how-manieth of that content it is. The same in every process and snapshot.

    A folder that grows keeps the identities of the rows it had, also where rows repeat.
    """
    content = content_hashes(table)
    order = np.argsort(content, kind="stable")
    ranked = content[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    lengths = np.diff(np.r_[first, len(ranked)])
    copies = np.empty(len(content), np.uint64)
    copies[order] = np.arange(len(content), dtype=np.uint64) - np.repeat(first, lengths).astype(np.uint64)
    return content ^ (copies * ODD)


def content_hashes(table: Table) -> NDArray[np.uint64]:
    """A 64-bit hash of what each row holds.

    Columns are hashed by pandas' keyed SipHash (text) or its integer mix (numbers), salted with their name, and
    added: neither the order of columns nor a column's kind while it holds no value matters.
    """
    total = np.zeros(len(table), np.uint64)
    for name in table.rows.column_names:
        with naming(column=name):
            total += _mixed(name, table.rows[name])
    return total


def _mixed(name: str, column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """What each row's value adds to its hash."""
    from pandas.util import hash_array

    values = array_of(column)
    salt = np.uint64(int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big"))
    if values.dtype == object:
        missing = values == ""
        hashed = hash_array(values, categorize=True)
    else:
        missing = np.isnan(values)
        hashed = hash_array(values + 0.0)  # -0.0 and 0.0 are the same value
        hashed = _exactly(column, values, hashed)
    mixed = (np.where(missing, MISSING_HASH, hashed) ^ salt) * ODD
    return np.asarray(mixed ^ (mixed >> np.uint64(29)))


def _exactly(column: pa.ChunkedArray, values: NDArray[np.float64], hashed: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hashes with those values told apart that float64 takes for one: 19 digits, and exact decimals."""
    from pandas.util import hash_array

    if pa.types.is_decimal(column.type):
        back = pc.cast(pa.chunked_array([pa.array(values, from_pandas=True)]), column.type, safe=False)
        rounded = np.asarray(pc.fill_null(pc.not_equal(back, column), fill_value=False))
    elif pa.types.is_integer(column.type):
        rounded = np.abs(values) >= EXACT
    else:
        return hashed
    places = np.flatnonzero(rounded)
    if len(places):
        texts = column.take(pa.array(places)).cast(pa.string()).to_numpy()
        hashed = hashed.copy()
        hashed[places] = hash_array(np.asarray(texts, object), categorize=True)
    return hashed
