"""What a user's function is given: `everloop.trainer.Training` and `Rows`, over prepared rows and raw columns."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from activities.compute import Context
from activities.compute.data.table import array_of, floats
from activities.compute.rows import chunks
from activities.compute.trainers import Examples
from everloop import steps

if TYPE_CHECKING:
    import pandas as pd

CODED = pa.dictionary(pa.int32(), pa.string())


class GivenRows:
    """Some rows, as `everloop.trainer.Rows` says."""

    def __init__(self, examples: Examples, places: NDArray[np.int64], held: pa.Table | None = None) -> None:
        """*places* ascend. *held*: their raw columns, where they are at hand."""
        self._examples, self._places, self._held = examples, places, held
        self.raw = examples.spec.inputs == "raw"
        pipeline = examples.pipeline
        self.names = tuple(entry.name for entry in pipeline.inputs) if self.raw else pipeline.names

    def __len__(self) -> int:
        return len(self._places)

    @property
    def y(self) -> NDArray[Any]:
        goal = self._examples.goal[self._places]
        pipeline = self._examples.pipeline
        if pipeline.task != "regression":
            return goal.astype(np.int64)
        return goal * pipeline.scale + pipeline.center if self.raw else goal

    @property
    def weights(self) -> NDArray[np.float64]:
        return self._examples.weight(self._places)

    def arrow(self) -> pa.Table:
        if not self.raw:
            return pa.table(list(self.numpy().T), names=list(self.names))
        return pa.table({name: self._typed(name, column) for name, column in self._columns()})

    def pandas(self) -> "pd.DataFrame":
        import pandas as pd

        if not self.raw:
            return pd.DataFrame(self.numpy(), columns=list(self.names))
        return pd.DataFrame({name: _series(self._typed(name, column)) for name, column in self._columns()})

    def numpy(self) -> Any:  # noqa: ANN401
        if not self.raw:
            return self._examples.rows.matrix(self._places)
        return {name: _array(column) for name, column in self._columns()}

    def loader(
        self, batch_size: int = 1024, *, shuffle: bool = False, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> Any:  # noqa: ANN401
        import torch
        from torch.utils.data import DataLoader, IterableDataset

        y = torch.as_tensor(self.y) if self._examples.pipeline.task != "regression" else torch.as_tensor(self.y).float()
        some, count, seed = self._batch(), len(self), self._examples.spec.training.seed
        passes = itertools.count(epoch)

        class Batches(IterableDataset):  # type: ignore[misc]  # torch is not there where types are checked
            def __len__(self) -> int:
                return (count + batch_size - 1) // batch_size

            def __iter__(self) -> Iterator[tuple[Any, Any]]:
                random = np.random.default_rng([seed, next(passes)])
                order = random.permutation(count) if shuffle else np.arange(count)
                for start in range(0, count, batch_size):
                    batch = np.sort(order[start : start + batch_size])
                    if len(batch) >= world_size:  # no rank waits for one that has no rows
                        own = batch[rank::world_size]
                        yield some(own), y[own]

        return DataLoader(Batches(), batch_size=None)

    def batches(self, size: int = 65_536) -> Iterator["GivenRows"]:
        if not self.raw:
            for start in range(0, len(self), size):
                yield GivenRows(self._examples, self._places[start : start + size])
            return
        done = 0
        for numbers, batch in chunks(self._examples.raw.table(), list(self.names), self._numbers(), size):
            yield GivenRows(self._examples, self._places[done : done + len(numbers)], batch)
            done += len(numbers)

    # --- raw columns ---

    def _numbers(self) -> NDArray[np.int64]:
        return self._examples.rows.rows[self._places]

    def _columns(self) -> list[tuple[str, pa.ChunkedArray]]:
        table = self._held
        if table is None:
            table = self._examples.raw.table().rows.select(list(self.names)).take(pa.array(self._numbers()))
        return list(zip(table.column_names, table.columns, strict=True))

    def _typed(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        kind = next(entry.kind for entry in self._examples.pipeline.inputs if entry.name == name)
        return column.cast(CODED) if kind == "category" else column

    def _batch(self) -> Callable[[NDArray[np.int64]], Any]:
        """Rows by their places among these, as tensors."""
        import torch

        if not self.raw:
            return lambda own: torch.from_numpy(self._examples.rows.matrix(self._places[own]))
        held = {name: array_of(column) for name, column in self._columns()}
        return lambda own: {
            name: values[own].tolist() if values.dtype == object else torch.from_numpy(values[own])
            for name, values in held.items()
        }


def _series(column: pa.ChunkedArray) -> Any:  # noqa: ANN401
    import pandas as pd

    if pa.types.is_integer(column.type) and column.null_count:  # a float would lose digits
        return column.to_pandas(types_mapper={column.type: pd.Int64Dtype()}.get)
    return column.to_pandas()


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_timestamp(column.type):
        found: NDArray[Any] = column.cast(pa.timestamp("us")).to_numpy()
        return found
    return array_of(column) if pa.types.is_string(column.type) else floats(column)


class Given:
    """The one argument of a user's function, as `everloop.trainer.Training` says."""

    def __init__(self, examples: Examples, params: Mapping[str, Any], context: Context) -> None:
        self._examples, self._context = examples, context
        spec, pipeline = examples.spec, examples.pipeline
        self.train = GivenRows(examples, examples.train)
        self.validation = GivenRows(examples, examples.validation) if len(examples.validation) else None
        self.iterations = examples.iterations
        self.params = dict(params)
        self.seed = spec.training.seed
        self.task, self.target, self.classes = pipeline.task, pipeline.target, pipeline.classes
        self.categorical = tuple(entry.name for entry in pipeline.of("category"))
        self.steps = examples.iterations or 1
        """The last step that was reported."""
        self.unit = steps.STEP
        """What the reports call it."""

    @property
    def cores(self) -> int:
        return self._context.cores

    @property
    def lease(self) -> Any:  # noqa: ANN401
        return self._context.lease

    @property
    def rank(self) -> int:
        return self._context.rank

    @property
    def world_size(self) -> int:
        return self._context.world_size

    @property
    def rendezvous(self) -> Any:  # noqa: ANN401
        return self._context.rendezvous

    def join(self, backend: str = "") -> None:
        self._context.join(backend)

    @property
    def scratch(self) -> Path:
        return self._context.scratch

    def report(self, step: int, /, **values: float) -> None:
        self._context.report(step, **values)
        self.steps = max(1, int(step))
        self.unit = steps.unit_of(values) if self.unit == steps.STEP else self.unit

    def checkpoint(self, step: int, state: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> bool:
        return self._context.checkpoint(step, state)

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        return self._context.restore()

    def should_stop(self) -> bool:
        return self._context.should_stop()

    def shrink(self, most: int = 3) -> int:
        return self._context.shrink(most)

    def log_artifact(self, name: str, data: bytes | Path) -> None:
        self._context.log_artifact(name, data)
