# ruff: noqa: T201  # what a job prints is its log
"""LightGBM on one thread: fitted on the train part until validation says stop, then on everything.

Inputs are float32: the exported graph compares float32 with its thresholds, and only a model that was fitted
on the same values can be converted exactly.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute import UNUSED_BY_LIGHTGBM, Job, without
from activities.compute.data import Table, check_spec, event_seconds, moment, target_of
from activities.compute.data.seen import keep_seen
from activities.compute.evaluation import score
from activities.compute.features import (
    TRAIN,
    VALIDATION,
    Floats,
    Matrix,
    Pipeline,
    PreparedRows,
    fit,
    opened_rows,
    prepared_rows,
    smallest_leaf,
    write,
)
from activities.compute.rows import opened
from everloop.contracts import RefitRequest, TrainRequest
from everloop.records import Refitted, Trained
from everloop.specs import LifecycleSpec

with without(*UNUSED_BY_LIGHTGBM):
    import lightgbm

OBJECTIVES = {"binary": "binary", "multiclass": "multiclass", "regression": "regression"}
REPORT_EVERY = 10
"""Rounds between two progress reports."""


def train(request: TrainRequest, job: Job) -> Trained:
    """Fit on the train part; early stopping looks at the validation part. The same request gives the same bytes."""
    spec = request.spec
    pipeline = Pipeline.read(job.artifacts, request.prepared.pipeline)
    with prepared_rows(job.artifacts, request.prepared) as rows:
        learned, judged = np.flatnonzero(rows.part == TRAIN), np.flatnonzero(rows.part == VALIDATION)
        goal = (rows.y - pipeline.center) / pipeline.scale
        params = parameters(spec, pipeline, len(learned))
        data = dataset(rows, learned, goal[learned], pipeline, params)
        held_out = lightgbm.Dataset(Part(rows, judged), goal[judged], reference=data)
        booster = lightgbm.train(
            params,
            data,
            spec.training.rounds,
            valid_sets=[held_out],
            valid_names=["validation"],
            callbacks=[lightgbm.early_stopping(spec.training.early_stopping, verbose=False), _progress(job)],
        )
        iterations = booster.best_iteration or booster.current_iteration()
        answers = predicted_rows(booster, pipeline, rows, judged, iterations)
        metrics = score(pipeline, rows.y[judged], answers)
    print(f"{iterations} of at most {spec.training.rounds} rounds; validation: {_told(metrics)}")
    text = booster.model_to_string(num_iteration=iterations)
    return Trained(model=job.artifacts.put(text.encode(), "model.txt"), iterations=max(1, iterations), metrics=metrics)


def refit(request: RefitRequest, job: Job) -> Refitted:
    """Fit preprocessing and model again on every labelled row, with the number of rounds that training found.

    The rounds stay as found: the rows that are added are like the ones that were there.
    """
    with opened(job.artifacts, request.snapshot) as table:
        return _refit(request, job, table)


def _refit(request: RefitRequest, job: Job, table: Table) -> Refitted:
    spec = request.spec
    check_spec(spec, table.rows.column_names)
    target = target_of(table, spec)
    rows = target.labelled
    before = Pipeline.read(job.artifacts, request.prepared.pipeline)
    pipeline = fit(spec, table, target, rows, like=before, scratch=job.scratch)
    path = job.scratch / "prepared.arrow"
    every = np.full(len(rows), TRAIN, np.int8)
    write(path, pipeline, table, rows, y=target.values[rows], part=every, fresh=every > TRAIN)
    goal = (target.values[rows] - pipeline.center) / pipeline.scale
    params = parameters(spec, pipeline, len(rows))
    with opened_rows(path) as written:
        data = dataset(written, np.arange(len(rows)), goal, pipeline, params)
        booster = lightgbm.train(params, data, request.trained.iterations, callbacks=[_progress(job)])
    path.unlink()
    path = job.scratch / "seen.npz"
    keep_seen(table, rows, path)
    seconds = event_seconds(table, spec.time)[rows] if spec.time else np.array([np.nan])
    until = moment(float(np.nanmax(seconds))) if np.isfinite(seconds).any() else None
    when = f", until {until:%Y-%m-%d %H:%M}" if until else ""
    print(f"{len(rows):,} rows, {booster.current_iteration()} rounds{when}")
    return Refitted(
        model=job.artifacts.put(booster.model_to_string().encode(), "model.txt"),
        pipeline=job.artifacts.put(pipeline.dump(), "pipeline.json"),
        rows=len(rows),
        seen=job.artifacts.put_file(path, "seen.npz"),
        trained_until=until,
    )


def parameters(spec: LifecycleSpec, pipeline: Pipeline, rows: int) -> dict[str, Any]:
    """LightGBM's parameters for the spec's training."""
    params: dict[str, Any] = {
        "objective": OBJECTIVES[spec.task],
        "learning_rate": spec.training.learning_rate,
        "num_leaves": spec.training.leaves,
        "seed": spec.training.seed,
        "deterministic": True,
        "force_row_wise": True,  # the other layout sums in another order
        "num_threads": 1,  # one slot, one thread: two that spin on a shared core are slower than one
        "verbosity": -1,
        "min_data_in_leaf": smallest_leaf(rows),
        "min_data_per_group": min(100, max(5, rows // 50)),
        "feature_pre_filter": False,
        "bin_construct_sample_cnt": max(200_000, min(rows, 500_000)),  # see every missing value there is
    }
    if spec.task == "multiclass":
        params["num_class"] = len(pipeline.classes)
    return params


class Part(lightgbm.Sequence):  # type: ignore[misc]  # LightGBM has no types for us
    """Some prepared rows, as LightGBM asks for them: one by one to draw its bins, then batch by batch."""

    batch_size = 65_536

    def __init__(self, rows: PreparedRows, places: NDArray[np.int64]) -> None:
        """*places* ascend."""
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Floats:  # noqa: ANN401  # a number, a slice or a list
        # LightGBM draws its sample as float64: every float32 is one of those.
        if isinstance(index, int | np.integer):
            return self._rows.row(int(self._places[index])).astype(np.float64)
        return self._rows.matrix(self._places[index]).astype(np.float64)


def dataset(
    rows: PreparedRows, places: NDArray[np.int64], goal: Floats, pipeline: Pipeline, params: dict[str, Any]
) -> "lightgbm.Dataset":
    """Rows by their places (ascending) to learn *goal* from. Only bins of them are kept in memory."""
    names = [f"f{place}" for place in range(rows.features)]  # column names may hold what LightGBM refuses
    categorical = pipeline.categorical
    return lightgbm.Dataset(
        Part(rows, places), goal, feature_name=names, categorical_feature=categorical, params=params
    )


def predicted_rows(
    booster: "lightgbm.Booster",
    pipeline: Pipeline,
    rows: PreparedRows,
    places: NDArray[np.int64],
    iterations: int | None = None,
) -> Floats:
    """`predicted` of prepared rows by their places, batch by batch."""
    found = [predicted(booster, pipeline, matrix, iterations) for matrix in rows.matrices(places)]
    return np.concatenate(found)


def predicted(booster: "lightgbm.Booster", pipeline: Pipeline, matrix: Matrix, iterations: int | None = None) -> Floats:
    """Probabilities [rows, classes] in the pipeline's order of classes, or values [rows] of the target."""
    raw = np.asarray(booster.predict(matrix, num_iteration=iterations, num_threads=1), np.float64)
    if pipeline.task == "regression":
        return raw * pipeline.scale + pipeline.center
    return np.stack([1 - raw, raw], axis=1) if raw.ndim == 1 else raw


def _progress(job: Job) -> Callable[[Any], None]:
    def report(env: Any) -> None:  # noqa: ANN401  # LightGBM's CallbackEnv
        done = env.iteration + 1
        if done % REPORT_EVERY and done != env.end_iteration:
            return
        losses = {f"{name}_{metric}": float(value) for name, metric, value, *_ in env.evaluation_result_list or ()}
        job.report(done, rounds=done, **losses)

    return report


def _told(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
