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
    ranked = np.sort(content)
    if (ranked[1:] != ranked[:-1]).all():
        return content  # each is the first of its content
    del ranked
    order = np.argsort(content, kind="stable")
    ranked = content[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    lengths = np.diff(np.r_[first, len(ranked)])
    del ranked
    copies = np.empty(len(content), np.uint64)
    copies[order] = np.arange(len(content), dtype=np.uint64) - np.repeat(first, lengths).astype(np.uint64)
    content ^= copies * ODD
    return content


def content_hashes(table: Table, within: tuple[int, int] | None = None) -> NDArray[np.uint64]:
    """A 64-bit hash of what each row holds; of those from the first number of *within* on and before the second.

    Columns are hashed by pandas' keyed SipHash (text) or its integer mix (numbers), salted with their name, and
    added: neither the order of columns nor a column's kind while it holds no value matters.
    """
    from activities.compute.rows import batches

    low, high = within or (0, len(table))
    if table.hashes is not None:
        return table.hashes[low:high].copy()
    total = np.zeros(high - low, np.uint64)
    for name in table.rows.column_names:
        salt = np.uint64(int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big"))
        with naming(column=name):
            for start, batch in batches(table.rows, [name], coded=True, within=(low, high)):
                first, last = max(low, start), min(high, start + batch.num_rows)
                if first < last:
                    mixed = (hashed(batch[name].slice(first - start, last - first)) ^ salt) * ODD
                    total[first - low : last - low] += mixed ^ (mixed >> np.uint64(29))
    return total


def hashed(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Of each value of a batch; texts once per different value."""
    from pandas.util import hash_array

    if pa.types.is_string(column.type) or pa.types.is_dictionary(column.type):
        return np.concatenate([np.zeros(0, np.uint64), *map(_hashed_texts, column.chunks)])
    values = array_of(column)
    hashed = hash_array(values + 0.0)  # -0.0 and 0.0 are the same value
    hashed = _exactly(column, values, hashed)
    return np.where(np.isnan(values), MISSING_HASH, hashed)


def _hashed_texts(chunk: pa.Array) -> NDArray[np.uint64]:
    from pandas.util import hash_array

    coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
    texts = np.asarray(coded.dictionary.to_numpy(zero_copy_only=False), object)
    known = np.where(texts == "", MISSING_HASH, hash_array(texts, categorize=False)) if len(texts) else texts
    places = pc.fill_null(coded.indices, len(texts)).to_numpy()
    return np.asarray(np.append(known, MISSING_HASH).astype(np.uint64)[places])


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
