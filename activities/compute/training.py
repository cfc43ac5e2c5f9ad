# ruff: noqa: T201  # what a job prints is its log
"""Fitted on the train part until validation says stop, then on everything. Which family learns, the spec says."""

import contextlib
import importlib.metadata
import json
import platform
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute import Context
from activities.compute.data import Table, check_spec, event_seconds, moment, target_of
from activities.compute.data.seen import keep_seen
from activities.compute.evaluation import score
from activities.compute.examples import examples_of
from activities.compute.features import (
    TEST,
    TRAIN,
    Floats,
    Pipeline,
    PreparedRows,
    fit,
    opened_rows,
    write,
)
from activities.compute.finish import finish_of
from activities.compute.folds import cross, plan, wants_folds
from activities.compute.resources import Resources
from activities.compute.rows import opened
from activities.compute.trainers import Examples, Fitted, Raw, answers_of_rows, learned_with, trainer
from activities.compute.trainers.part import Part
from activities.compute.weights import weights_of
from everloop import steps
from everloop.contracts import RefitRequest, TrainRequest
from everloop.records import Blob, Code, Refitted, Trained
from everloop.specs import LifecycleSpec

EMPTY = np.zeros(0, np.int64)


def train(request: TrainRequest, job: Context) -> Trained:
    """Fit on the train part; early stopping looks at the validation part. The same request gives the same bytes."""
    spec, prepared, chose = request.spec, request.prepared, False
    if request.searched is not None:
        from activities.compute.search.concluding import prepared_by

        spec, prepared, chose = prepared_by(request, job)
    with examples_of(spec, request.snapshot, prepared, job) as examples:
        pipeline, rows = examples.pipeline, examples.rows
        learned = _learned(request, examples, job)
        judged, told = learned.judged, learned.answers
        metrics = score(pipeline, rows.y[judged], told)
        finish = finish_of(spec, pipeline, rows.y[judged], told)
    fitted = learned.fitted
    print(f"{steps.count(fitted.iterations, fitted.unit)}; validation: {_told(metrics)}")
    return Trained(
        model=job.artifacts.put(fitted.dump(), fitted.file),
        iterations=learned.iterations or max(1, fitted.iterations),
        folds=learned.folds,
        finish=finish,
        metrics=metrics,
        family=learned.family or spec.trainer,
        unit=fitted.unit,
        parameters=learned_with(fitted, spec.params if learned.parameters is None else learned.parameters),
        code=request.code,
        environment=_environment(request.code, spec, job),
        features=spec.features if chose else None,
        prepared=prepared if chose else None,
    )


@dataclass(frozen=True)
class Learned:
    """A model, and answers to rows that none who gave them has learned."""

    fitted: Fitted
    judged: NDArray[np.int64]
    """Places of those rows."""
    answers: Floats
    folds: int = 0
    family: str = ""
    """What a search chose, as the next two."""
    parameters: dict[str, Any] | None = None
    iterations: int = 0


def _learned(request: TrainRequest, examples: Examples, job: Context) -> Learned:
    if request.searched is not None:
        from activities.compute.search.concluding import concluded

        return concluded(examples, request.searched, job)
    if wants_folds(request.spec, _learnable(examples.rows)):
        return _in_folds(examples, job)
    return _held_out(examples, job)


def _learnable(rows: PreparedRows) -> int:
    return int((rows.part != TEST).sum())


def _held_out(examples: Examples, job: Context) -> Learned:
    """The validation part says when to stop, and how good it is."""
    spec, judged = examples.spec, examples.validation
    fitted = trainer(spec.trainer).fit(examples, spec.params, job)
    return Learned(fitted, judged, answers_of_rows(fitted, examples.pipeline, examples.rows, judged, examples.raw))


def _in_folds(examples: Examples, job: Context) -> Learned:
    """Folds say how long to learn, and how good it is; then all of their rows are learned so long."""
    folds = plan(examples)
    crossed = cross(examples, examples.spec.params, job, folds)
    every = np.flatnonzero(examples.rows.part != TEST)
    own = replace(examples, train=every, validation=EMPTY, iterations=crossed.iterations)
    part = Part(job, len(folds), crossed.held, job.restore())
    fitted = trainer(examples.spec.trainer).fit(own, crossed.parameters, part)
    return Learned(fitted, crossed.judged, crossed.answers[crossed.judged], len(folds))


def refit(request: RefitRequest, job: Context) -> Refitted:
    """Fit preprocessing and model again on every labelled row, for as many rounds or epochs as training found best.

    Their number stays as found: the rows that are added are like the ones that were there.
    """
    with opened(job.artifacts, request.snapshot) as table:
        return _refit(request, job, table)


def _refit(request: RefitRequest, job: Context, table: Table) -> Refitted:
    spec, trained = request.spec, request.trained
    check_spec(spec, table.rows.column_names)
    target = target_of(table, spec)
    rows = target.labelled
    before = Pipeline.read(job.artifacts, request.prepared.pipeline)
    pipeline = fit(spec, table, target, rows, like=before, scratch=job.scratch, resources=Resources.of(job))
    path = job.scratch / "prepared.arrow"
    every = np.full(len(rows), TRAIN, np.int8)
    write(path, pipeline, table, rows, y=target.of(rows), part=every, fresh=every > TRAIN)
    with opened_rows(path) as written:
        examples = Examples(
            spec=spec,
            pipeline=pipeline,
            rows=written,
            train=np.arange(len(rows)),
            validation=EMPTY,
            goal=(target.of(rows) - pipeline.center) / pipeline.scale,
            raw=Raw(lambda: table),
            weights=weights_of(spec, pipeline, table, rows, target.of(rows)),
            iterations=trained.iterations,
        )
        fitted = trainer(trained.family).fit(examples, trained.parameters, job)
    path.unlink()
    path = job.scratch / "seen.npz"
    keep_seen(table, rows, path)
    seconds = event_seconds(table, spec.time)[rows] if spec.time else np.array([np.nan])
    until = moment(float(np.nanmax(seconds))) if np.isfinite(seconds).any() else None
    when = f", until {until:%Y-%m-%d %H:%M}" if until else ""
    print(f"{len(rows):,} rows, {steps.count(fitted.iterations, fitted.unit)}{when}")
    return Refitted(
        model=job.artifacts.put(fitted.dump(), fitted.file),
        pipeline=job.artifacts.put(pipeline.dump(), "pipeline.json"),
        rows=len(rows),
        seen=job.artifacts.put_file(path, "seen.npz"),
        trained_until=until,
        family=trained.family,
        unit=fitted.unit,
        parameters=trained.parameters,
        finish=trained.finish,
        code=request.code,
        environment=_environment(request.code, spec, job),
    )


def _environment(code: Code | None, spec: LifecycleSpec, job: Context) -> Blob | None:
    """What a user's code ran with: another version of a package may learn another model."""
    if code is None:
        return None
    installed: dict[str, str] = {}
    for each in importlib.metadata.distributions():  # of two of one name, the first is imported
        with contextlib.suppress(Exception):  # a wheel of the user's may say anything of itself, or nothing
            installed.setdefault(each.name.lower(), f"{each.name}=={each.version}")
    found = {
        "python": sys.version,
        "platform": platform.platform(),
        "seed": spec.training.seed,
        "code": code.digest,
        "requirements": list(code.requirements),
        "packages": sorted(installed.values(), key=str.lower),
    }
    return job.artifacts.put(json.dumps(found, indent=1).encode(), "environment.json")


def _told(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
