"""Trials on the dev tables without the search around them: what `portfolio.py` and `choices.py` share."""

import contextlib
import csv
import io
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from activities.compute import data, features, folds
from activities.compute.examples import examples_of
from bench.dev_tables import TABLES
from everloop import families
from everloop.contracts import PrepareRequest, SnapshotRequest
from everloop.errors import EverloopError
from everloop.families import Space
from everloop.records import Prepared, Slot, Snapshot
from everloop.specs import Features, LifecycleSpec
from tests.job import FolderJob

SLOT = Slot(device="cpu0", token=1, holder="bench")
FOLDS = 3


@dataclass
class Ready:
    """A table that is read and prepared: trials differ in family, parameters and choices only."""

    name: str
    job: FolderJob
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared

    def loss(self, family: str, params: Mapping[str, Any], chosen: Features | None = None) -> tuple[float, float]:
        """The mean loss of the folds, and the seconds that it took, the preparation's with them."""
        started, prepared, spec = time.monotonic(), self.prepared, self.spec
        spec = spec.model_copy(update={"trainer": family, "params": dict(params), "features": chosen or spec.features})
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            if chosen is not None and chosen != self.spec.features:
                prepared = features.prepared_as(self.spec, self.snapshot, self.prepared, chosen, self.job)
            with examples_of(spec, self.snapshot, prepared, self.job) as examples:
                crossed = folds.cross(examples, params, self.job, folds.plan(examples))
        return float(np.mean(crossed.losses)), time.monotonic() - started


def ready(name: str, rows: int, folder: Path, seed: int = 0) -> Ready:
    """So many rows of a dev table, drawn by the seed, read and prepared as a lifecycle does it."""
    table = TABLES[name]
    frame = table.make().dropna(subset=[table.target])
    if len(frame) > rows:
        frame = frame.sample(rows, random_state=seed).sort_index()
    if table.task != "regression":
        counted = frame[table.target].value_counts()
        frame = frame[frame[table.target].isin(counted.index[counted >= 20])]
    return prepared(name, frame, table.task, table.target, table.time, folder)


def prepared(  # noqa: PLR0917
    name: str, frame: pd.DataFrame, task: str, target: str, timed: str | None, folder: Path
) -> Ready:
    path = folder / f"{name}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    given: dict[str, Any] = {"model": "bench", "task": task, "target": target, "source": {"path": str(path)}}
    given |= {"validation": {"method": "folds", "folds": FOLDS, "repeats": 1}} | ({"time": timed} if timed else {})
    (folder / name).mkdir(exist_ok=True)
    job, spec = FolderJob(folder / name), LifecycleSpec.model_validate(given)
    with contextlib.redirect_stdout(io.StringIO()):
        snapshot = data.snapshot(SnapshotRequest(spec=spec, slot=SLOT), job)
        found = features.prepare(PrepareRequest(spec=spec, snapshot=snapshot, champion=None, slot=SLOT), job)
    return Ready(name, job, spec, snapshot, found)


def drawn(space: Space, random: np.random.Generator) -> dict[str, Any]:
    """A point of *space*, each parameter on its own."""
    point: dict[str, Any] = {}
    for each in space.parameters:
        if not all(point.get(name) in values for name, values in each.when.items()):
            continue
        if each.kind == "choice":
            point[each.name] = each.choices[int(random.integers(len(each.choices)))]
            continue
        assert each.low is not None
        assert each.high is not None
        ends = np.log([each.low, each.high]) if each.log else np.array([each.low, each.high])
        value = float(random.uniform(*ends))
        value = float(np.exp(value)) if each.log else value
        point[each.name] = round(value) if each.kind == "integer" else float(f"{value:.3g}")
    return point


class Kept:
    """Losses as a CSV file: what is there is not learned again."""

    COLUMNS = ("table", "family", "point", "loss", "seconds")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.losses: dict[tuple[str, str, str], float] = {}
        if path.exists():
            with path.open() as file:
                for row in csv.DictReader(file):
                    self.losses[row["table"], row["family"], row["point"]] = float(row["loss"])

    def loss(self, table: Ready, family: str, params: dict[str, Any], chosen: Features | None, point: str) -> float:
        key = (table.name, family, point)
        if key not in self.losses:
            try:
                loss, seconds = table.loss(family, params, chosen)
            except (EverloopError, ValueError) as error:
                print(f"{table.name} {family} {point}: {error}", flush=True)
                loss, seconds = float("inf"), 0.0
            self.losses[key] = loss
            new = not self.path.exists()
            with self.path.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(self.COLUMNS)
                writer.writerow((*key, f"{loss:.6g}", f"{seconds:.2f}"))
        return self.losses[key]


def told(point: Mapping[str, Any]) -> str:
    return json.dumps(dict(point), sort_keys=True)


def spaces(family: str, table: Ready) -> Space:
    return families.family(family).space(table.spec.task, table.prepared.train_rows)
