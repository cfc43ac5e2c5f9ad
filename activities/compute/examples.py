"""What a trainer is given: the prepared rows with their parts, weights and raw columns."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from activities.compute import Context
from activities.compute.features import TRAIN, VALIDATION, Pipeline, prepared_rows
from activities.compute.trainers import Examples, raw_columns
from activities.compute.weights import weights_of
from everloop.records import Prepared, Snapshot
from everloop.specs import LifecycleSpec


@contextmanager
def examples_of(spec: LifecycleSpec, snapshot: Snapshot | None, prepared: Prepared, job: Context) -> Iterator[Examples]:
    """All rows, with the train and the validation part."""
    pipeline = Pipeline.read(job.artifacts, prepared.pipeline)
    with prepared_rows(job.artifacts, prepared) as rows, raw_columns(job.artifacts, snapshot) as raw:
        yield Examples(
            spec=spec,
            pipeline=pipeline,
            rows=rows,
            train=np.flatnonzero(rows.part == TRAIN),
            validation=np.flatnonzero(rows.part == VALIDATION),
            goal=(rows.y - pipeline.center) / pipeline.scale,
            raw=raw,
            weights=weights_of(spec, pipeline, raw.table() if spec.weight else None, rows.rows, rows.y),
        )
