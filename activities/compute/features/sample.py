"""A bounded sample of the rows that are fitted on, as features: what choices among columns look at."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from activities.compute.data import Table, array_of
from activities.compute.features.categories import Coded, texts_of
from activities.compute.features.goals import Goal
from activities.compute.features.inputs import Floats, Matrix
from activities.compute.features.parts import folds
from activities.compute.features.pipeline import Pipeline
from activities.compute.rows import chunks

MOST_ROWS, LEAST_ROWS = 20_000, 1_000
MOST_CELLS = 20_000_000
"""Features of the sample, 4 bytes each."""


@dataclass(frozen=True)
class Sample:
    """Some rows."""

    pipeline: Pipeline
    rows: NDArray[np.int64]
    """Their numbers, ascending."""
    matrix: Matrix
    """[rows, features]"""
    goal: Goal

    @classmethod
    def of(cls, pipeline: Pipeline, table: Table, rows: NDArray[np.int64], goal: Goal, seed: int) -> "Sample":
        """Drawn by *seed*: the same rows in any process."""
        most = max(LEAST_ROWS, min(MOST_ROWS, MOST_CELLS // len(pipeline.names)))
        places = np.arange(len(rows))
        if len(rows) > most:
            places = np.sort(np.random.default_rng([seed, 7]).choice(len(rows), most, replace=False))
        names = [entry.name for entry in pipeline.inputs]
        parts = [
            pipeline.by_feature(raw(batch), folds(numbers)).T
            for numbers, batch in chunks(table, names, rows[places], coded=True)
        ]
        return cls(pipeline, rows[places], np.concatenate(parts), Goal(goal.values[places], goal.classes))

    @cached_property
    def categorical(self) -> set[int]:
        """Places of the features that are codes."""
        return set(self.pipeline.categorical)

    def without(self, pipeline: Pipeline) -> "Sample":
        """The same rows with the features that *pipeline*, which looks at fewer columns, has kept."""
        kept = {entry.name for entry in pipeline.inputs}
        places = [at for at, columns in enumerate(self.pipeline.sources) if kept.issuperset(columns)]
        return Sample(pipeline, self.rows, self.matrix[:, places], self.goal)

    def by_column(self, scores: Floats) -> dict[str, float]:
        """Of each column, the best *scores* of the features that are made of it."""
        found = dict.fromkeys((entry.name for entry in self.pipeline.inputs), 0.0)
        for columns, score in zip(self.pipeline.sources, scores.tolist(), strict=True):
            for name in columns:
                found[name] = max(found[name], score)
        return found


def raw(batch: pa.Table) -> dict[str, Any]:
    """Raw columns as `Pipeline.transform` takes them; texts as `Coded`."""
    return {name: _raw(column) for name, column in zip(batch.column_names, batch.columns, strict=True)}


def _raw(column: pa.ChunkedArray) -> NDArray[np.generic] | Coded:
    text = pa.types.is_string(column.type) or pa.types.is_dictionary(column.type)
    return texts_of(column) if text else array_of(column)
