"""Which rows are the same: a caller may send a request again, and its rows count once."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def hashed(ids: pa.ChunkedArray, rows: pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits of each (request id, row)."""
    found: NDArray[np.uint64] = pd.util.hash_array(ids.to_numpy(), categorize=False)
    mixed: NDArray[np.uint64] = (found ^ (rows.to_numpy().astype(np.uint64) * _SPREAD)) * _MIX
    return mixed


def repeated(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Places, ascending, of what may be there more than once."""
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]
    same = ranked[1:] == ranked[:-1]
    found = np.zeros(len(order), bool)
    found[1:] = same
    found[:-1] |= same
    return np.sort(order[found])


def later_ones(
    places: NDArray[np.int64], names: Sequence[str], rows: Sequence[int], logged_at: NDArray[np.int64]
) -> list[int]:
    """Which of *places* are the same (request id, row) as one that was logged before."""
    best: dict[tuple[str, int], int] = {}
    dropped = []
    for place, name, row in zip(places.tolist(), names, rows, strict=True):
        known = best.setdefault((name, row), place)
        if known == place:
            continue
        earlier, later = sorted((known, place), key=lambda each: (logged_at[each], each))
        best[name, row] = earlier
        dropped.append(later)
    return dropped


def moments(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Microseconds; of a row that does not say when, the last there are."""
    found: NDArray[np.int64] = column.cast(pa.int64()).fill_null(np.iinfo(np.int64).max).to_numpy()
    return found


def drawn(hashes: NDArray[np.uint64], most: int, seed: int) -> NDArray[np.int64]:
    """At most *most* places, each as likely as the other: the same rows for the same seed, whatever their order."""
    if len(hashes) <= most:
        return np.arange(len(hashes))
    mixed = (hashes ^ (np.uint64((seed + 1) * int(_SPREAD) % 2**64))) * _MIX
    mixed ^= mixed >> np.uint64(31)
    mixed *= _MIX
    return np.sort(np.argpartition(mixed, most)[:most])
