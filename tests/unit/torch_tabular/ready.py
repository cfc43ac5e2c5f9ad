"""A table that is prepared, for trainings that differ in their parameters only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from activities.compute import data, features, training
from activities.compute.features import TRAIN, VALIDATION, Pipeline, PreparedRows
from activities.compute.trainers import Examples
from everloop import contracts
from everloop.records import Prepared, Snapshot, Trained
from everloop.specs import LifecycleSpec
from tests.job import FolderJob
from tests.stages import SLOT, csv, spec_of

SMALL = {"layers": 1, "width": 16, "epochs": 4, "batch": 16}


@dataclass
class Ready:
    """A table that is prepared: trainings differ in their parameters only."""

    job: FolderJob
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared

    def train(self, job: FolderJob | None = None, seed: int = 0, **params: Any) -> tuple[Trained, bytes]:
        job = job or self.job
        training_ = self.spec.training.model_copy(update={"seed": seed})
        spec = self.spec.model_copy(update={"params": SMALL | params, "training": training_})
        trained = training.train(contracts.TrainRequest(spec=spec, prepared=self.prepared, slot=SLOT), job)
        return trained, job.artifacts.get(trained.model)

    @property
    def features(self) -> int:
        return len(Pipeline.read(self.job.artifacts, self.prepared.pipeline).names)

    def other_job(self, **kinds: Any) -> FolderJob:
        return FolderJob(self.job.scratch.parent, **kinds)

    def examples(self, rows: PreparedRows) -> Examples:
        pipeline = Pipeline.read(self.job.artifacts, self.prepared.pipeline)
        train, held = (np.flatnonzero(rows.part == part) for part in (TRAIN, VALIDATION))
        goal = (rows.y - pipeline.center) / pipeline.scale
        return Examples(self.spec, pipeline, rows, train, held, goal, raw=lambda names, rows: {})


def ready(folder: Path, frame: pd.DataFrame, task: str) -> Ready:
    folder.mkdir(exist_ok=True)
    job, spec = FolderJob(folder), spec_of(csv(folder, frame), task, "y", trainer="torch")
    snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    request = contracts.PrepareRequest(spec=spec, snapshot=snapshot, champion=None, slot=SLOT)
    return Ready(job, spec, snapshot, features.prepare(request, job))
