"""Prepared rows prepared in another way: the same rows in the same parts, of other features or fitted on others."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from activities.compute import Job
from activities.compute.data import Table, bounded, target_of
from activities.compute.features.fitting import fit
from activities.compute.features.parts import TRAIN
from activities.compute.features.pipeline import Pipeline
from activities.compute.features.preparation import write
from activities.compute.features.table import PreparedRows, prepared_rows
from activities.compute.resources import Resources
from activities.compute.rows import opened
from everloop.records import Column, Prepared, Snapshot
from everloop.specs import Features, LifecycleSpec


def prepared_as(spec: LifecycleSpec, snapshot: Snapshot, prepared: Prepared, features: Features, job: Job) -> Prepared:
    """*prepared* as the prepare stage would have left it with these *features*: a trial of a search chooses them.

    The same features give the same bytes. Raises `InvalidData` where no column is left.
    """
    own = spec.model_copy(update={"features": features})
    path = job.scratch / "chosen.arrow"
    with prepared_rows(job.artifacts, prepared) as rows, opened(job.artifacts, snapshot) as table:
        pipeline = written(path, own, table, rows, rows.part, job)
    return prepared.model_copy(
        update={
            "table": job.artifacts.put_file(path, "prepared.arrow"),
            "matrix": None,
            "pipeline": job.artifacts.put(pipeline.dump(), "pipeline.json"),
            "feature_count": len(pipeline.inputs),
            "features": bounded([Column(name=entry.name, kind=entry.kind) for entry in pipeline.inputs]),
            "selection": str(pipeline.selected or ""),
        }
    )


def written(  # noqa: PLR0917
    path: Path, spec: LifecycleSpec, table: Table, rows: PreparedRows, part: NDArray[np.int8], job: Job
) -> Pipeline:
    """Fit the preprocessing on the rows that are in the train *part*, and write all *rows* to *path*."""
    train = rows.rows[part == TRAIN]
    pipeline = fit(spec, table, target_of(table, spec), train, scratch=job.scratch, resources=Resources.of(job))
    write(path, pipeline, table, rows.rows, y=rows.y, part=part, fresh=rows.fresh)
    return pipeline
