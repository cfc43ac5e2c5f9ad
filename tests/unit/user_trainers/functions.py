"""A user's functions: written into a module, and called by a lifecycle's stages."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from activities.compute import data, evaluation, export, features, training
from activities.compute.inference import Model
from activities.jobs.context import ThisJob
from everloop import contracts
from everloop.records import Exported, Signature
from everloop.specs import LifecycleSpec
from tests.job import FolderJob
from tests.stages import SLOT

NUMBERS = itertools.count()
BEGINNING = "import numpy as np\nfrom everloop.trainer import Learned\n"
Write = Callable[[str], str]


class Stages:
    """A lifecycle's stages over a table, by themselves."""

    def __init__(self, folder: Path, table: pd.DataFrame, **spec: Any) -> None:
        table.to_csv(folder / "table.csv", index=False)
        values = {"model": "m", "source": {"path": str(folder / "table.csv")}} | spec
        self.spec = LifecycleSpec.model_validate(values)
        self.job: FolderJob | ThisJob = FolderJob(folder)
        self.snapshot = data.snapshot(contracts.SnapshotRequest(spec=self.spec, slot=SLOT), self.job)
        asked = contracts.PrepareRequest(spec=self.spec, snapshot=self.snapshot, champion=None, slot=SLOT)
        self.prepared = features.prepare(asked, self.job)

    def train(self) -> None:
        self.trained = training.train(
            contracts.TrainRequest(
                spec=self.spec, prepared=self.prepared, snapshot=self.snapshot, code=self.snapshot.code, slot=SLOT
            ),
            self.job,
        )

    def learned_by(self, trainer: str) -> "Stages":
        """The same prepared table for another function."""
        other = copy.copy(self)
        other.spec = self.spec.model_copy(update={"trainer": trainer})
        return other

    def rest(self) -> Exported:
        common: dict[str, Any] = {"spec": self.spec, "snapshot": self.snapshot, "slot": SLOT}
        asked = contracts.EvaluateRequest(prepared=self.prepared, trained=self.trained, champion=None, **common)
        self.evaluation = evaluation.evaluate(asked, self.job)
        again = contracts.RefitRequest(prepared=self.prepared, trained=self.trained, code=self.trained.code, **common)
        self.refitted = training.refit(again, self.job)
        return export.export(contracts.ExportRequest(refitted=self.refitted, **common), self.job)

    def model(self, exported: Exported) -> Model:
        signature = Signature.model_validate_json(self.job.artifacts.get(exported.signature))
        return Model(self.job.artifacts.get(exported.model), signature)


def small(rows: int = 300) -> pd.DataFrame:
    random = np.random.default_rng(0)
    y = random.integers(0, 2, rows)
    x = random.normal(size=rows) + y
    return pd.DataFrame({"x": x, "c": random.choice(list("abc"), rows), "y": np.where(y, "yes", "no")})
