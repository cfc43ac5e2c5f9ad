"""Prepared rows on the disk: Arrow IPC, written in batches of one size and read as views of the mapped file.

`features` is a fixed-size list of float32, so that a batch is one matrix [rows, features] as it lies in the file;
`y`, `part`, `fold`, `row` (number in the snapshot) and `fresh` stand beside it.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from activities.compute.features.inputs import Floats, Matrix
from everloop.artifacts import Artifacts
from everloop.errors import IntegrityError
from everloop.records import Prepared

BATCH_ROWS = 65_536
BESIDE = {"y": pa.float64(), "part": pa.int8(), "fold": pa.int8(), "row": pa.int64(), "fresh": pa.bool_()}


class Writer:
    """Writes prepared rows. However they come in, the same rows give the same bytes."""

    def __init__(self, path: Path, features: int, *, batch_rows: int = BATCH_ROWS) -> None:
        self._features, self._batch_rows = features, batch_rows
        kinds = {"features": pa.list_(pa.float32(), features), **BESIDE}
        self._schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])
        self._file = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_file(self._file, self._schema)
        self._matrix = np.empty((batch_rows, features), np.float32)
        self._beside = {name: np.empty(batch_rows, kind.to_pandas_dtype()) for name, kind in BESIDE.items()}
        self._filled = 0

    def add(self, matrix: Matrix, **beside: NDArray[Any]) -> None:
        """Append rows: *matrix* [rows, features], and a value per row for each name of `BESIDE`."""
        done = 0
        while done < len(matrix):
            step = min(len(matrix) - done, self._batch_rows - self._filled)
            into, out = slice(self._filled, self._filled + step), slice(done, done + step)
            self._matrix[into] = matrix[out]
            for name, held in self._beside.items():
                held[into] = beside[name][out]
            self._filled += step
            done += step
            if self._filled == self._batch_rows:
                self._flush()

    def _flush(self) -> None:
        rows, self._filled = self._filled, 0
        if not rows:
            return
        values = pa.array(self._matrix[:rows].reshape(-1))
        arrays = [pa.FixedSizeListArray.from_arrays(values, self._features)]
        arrays += [pa.array(held[:rows], BESIDE[name]) for name, held in self._beside.items()]
        self._stream.write_batch(pa.record_batch(arrays, schema=self._schema))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
            self._stream.close()
        finally:
            self._file.close()


def join(parts: Sequence[Path], path: Path) -> None:
    """Rows that ranks wrote in stretches of whole batches, as one file: the bytes that one `Writer` makes of them."""
    with ExitStack() as files:
        streams = [pa.ipc.open_file(files.enter_context(pa.OSFile(str(part)))) for part in parts]
        file = files.enter_context(pa.OSFile(str(path), "wb"))
        out = files.enter_context(pa.ipc.new_file(file, streams[0].schema))
        for stream in streams:
            for place in range(stream.num_record_batches):
                out.write_batch(stream.get_batch(place))


class PreparedRows:
    """Prepared rows, to read. Matrices are gathered from the mapped file; what stands beside them is in memory."""

    def __init__(
        self, matrices: list[Matrix], beside: dict[str, NDArray[Any]], let_go: Callable[[], None] = lambda: None
    ) -> None:
        """*let_go* of what was read of the matrices: it is read again when it is asked for."""
        self._matrices, self._let_go, self._read = matrices, let_go, 0
        self._starts = np.cumsum([0, *map(len, matrices)])
        self.y: Floats = beside["y"]
        """Class index or number."""
        self.part: NDArray[np.int8] = beside["part"]
        self.fold: NDArray[np.int8] = beside["fold"]
        self.rows: NDArray[np.int64] = beside["row"]
        """Numbers of the rows in the snapshot."""
        self.fresh: NDArray[np.bool_] = beside["fresh"]
        """Not seen by the champion, and in the test part."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def features(self) -> int:
        return int(self._matrices[0].shape[1])

    def row(self, place: int) -> NDArray[np.float32]:
        """Features of one row."""
        batch = int(np.searchsorted(self._starts, place, "right")) - 1
        found: NDArray[np.float32] = self._matrices[batch][place - int(self._starts[batch])].copy()
        self._count(1)
        return found

    def matrix(self, places: NDArray[np.int64]) -> Matrix:
        """Features of rows by their places, ascending: float32 [places, features]."""
        found = np.empty((len(places), self.features), np.float32)
        borders = np.searchsorted(places, self._starts)
        for batch, (low, high) in enumerate(pairwise(borders)):
            if low < high:
                found[low:high] = self._matrices[batch][places[low:high] - self._starts[batch]]
                self._count(int(high - low))
        return found

    def _count(self, rows: int) -> None:
        self._read += rows
        if self._read >= BATCH_ROWS:
            self._read = 0
            self._let_go()

    def matrices(self, places: NDArray[np.int64], size: int = BATCH_ROWS) -> Iterator[Matrix]:
        """The same in steps of *size* rows."""
        for start in range(0, len(places), size):
            yield self.matrix(places[start : start + size])


@contextmanager
def opened_rows(path: Path) -> Iterator[PreparedRows]:
    """Rows that `Writer` wrote. The views live as long as the block. Raises `IntegrityError`."""
    try:
        rows = _mapped(path)
    except ValueError as error:  # Arrow's own are of these too
        raise IntegrityError(f"the prepared rows cannot be read: {str(error)[:200]}") from None
    yield rows


def _mapped(path: Path) -> PreparedRows:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    reader = pa.ipc.open_file(pa.py_buffer(mapped))
    batches = [reader.get_batch(place) for place in range(reader.num_record_batches)]
    width = reader.schema.field("features").type.list_size
    matrices = [batch["features"].flatten().to_numpy().reshape(-1, width) for batch in batches]
    beside = {
        name: np.concatenate([batch[name].to_numpy(zero_copy_only=False) for batch in batches]) for name in BESIDE
    }
    # Pages of a mapped file that are not let go of count as this job's memory until it ends.
    return PreparedRows(matrices, beside, lambda: mapped.madvise(mmap.MADV_DONTNEED))


@contextmanager
def prepared_rows(artifacts: Artifacts, of: Prepared) -> Iterator[PreparedRows]:
    """The rows that a prepare stage left, also one before `Prepared.table` was there."""
    if of.table is not None:
        with artifacts.open_local(of.table) as path, opened_rows(path) as rows:
            yield rows
        return
    if of.matrix is None:
        raise IntegrityError("the prepare stage left no rows")
    with artifacts.open_local(of.matrix) as path, np.load(path, allow_pickle=False) as stored:
        beside = {"y": stored["y"], "part": stored["part"], "row": stored["rows"], "fresh": stored["fresh"]}
        matrix = stored["X"]
    yield PreparedRows([matrix], beside | {"fold": np.zeros(len(matrix), np.int8)})
