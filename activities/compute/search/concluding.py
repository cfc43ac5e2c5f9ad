# ruff: noqa: T201  # what a job prints is its log
"""After the trials: which of them are learned, with which weights, and the model that comes of it.

Chosen by their answers out of fold; learned on all rows but the test part, for as long as the folds found best.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute import Context
from activities.compute.evaluation import score
from activities.compute.export import build
from activities.compute.features import TEST, Floats
from activities.compute.latency import limits
from activities.compute.search import KEPT, answers_of, of_family, some_columns, told_trials
from activities.compute.trainers import Examples, trainer
from activities.compute.trainers.ensemble.selection import Candidate, select
from activities.compute.training import Learned
from everloop import choices
from everloop.artifacts import Artifacts
from everloop.contracts import TrainRequest
from everloop.errors import GraphTooLarge
from everloop.records import Prepared
from everloop.search import Search
from everloop.specs import HIGHER_IS_BETTER, LifecycleSpec
from everloop.trials import Searched, Trial

TRIES = 4
"""Choices whose graph may be too large, before the search has failed."""


def concluded(examples: Examples, searched: Searched, job: Context) -> Learned:
    """The best trial, or an ensemble of the best. Raises `GraphTooLarge` where none of them fits into a graph."""
    spec = examples.spec
    search = spec.search or Search()
    metric = search.metric or spec.objective
    kept = _kept(job.artifacts, searched, search, metric)
    judged = _judged(kept[0][1])
    too_large: set[int] = set()
    for _ in range(TRIES):
        fits = [one for one in kept if one[0].number not in too_large]
        chosen = _chosen(examples, metric, search.members, fits, judged)
        made = _learned(examples, chosen, judged, job)
        size = len(build(examples.pipeline, made.fitted).SerializeToString())
        if size <= spec.model_mib << 20:
            return made
        largest = max(chosen, key=lambda one: one[0].bytes)[0]
        print(f"its graph takes {size / 2**20:.1f} MiB, more than {spec.model_mib}: without trial {largest.number}")
        too_large.add(largest.number)
        if len(too_large) == len(kept):
            break
    message = f"the graphs of the best trials take more than model_mib allows ({spec.model_mib})"
    raise GraphTooLarge(message, field="model_mib", hint="raise it, or search smaller families: linear, lightgbm")


def _kept(artifacts: Artifacts, searched: Searched, search: Search, metric: str) -> list[tuple[Trial, Floats]]:
    """The best trials with what they told, the best first; of those that chose the features of the best."""
    complete = [each for each in told_trials(artifacts, searched.study) if each.state == "complete" and each.answers]
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    complete.sort(key=lambda each: (sign * each.values[0], each.number))
    best = next((each for each in complete if each.number == searched.best.number), complete[0])
    same = [each for each in complete if each.prepared == best.prepared]
    first = [best, *(each for each in same if each.number != best.number)]
    if search.members == 1:
        first = first[:1]
    found = [(each, answers_of(artifacts, each)) for each in first[:KEPT]]
    return [(each, told) for each, told in found if told is not None]


def _judged(told: Floats) -> NDArray[np.int64]:
    first = told if told.ndim == 1 else told[:, 0]
    return np.flatnonzero(~np.isnan(first))


def _chosen(
    examples: Examples,
    metric: str,
    members: int,
    kept: Sequence[tuple[Trial, Floats]],
    judged: NDArray[np.int64],
) -> list[tuple[Trial, Floats, float]]:
    """Trials with their answers to the judged rows, and weights."""
    y = examples.rows.y[judged]

    def loss(told: Floats) -> float:
        value = score(examples.pipeline, y, told).get(metric, float("nan"))
        return 1 - value if metric in HIGHER_IS_BETTER else value

    candidates = [Candidate(told[judged], trial.bytes, trial.milliseconds) for trial, told in kept]
    most = {}
    if examples.spec.latency_ms is not None:  # the trials have measured it
        most = limits(examples.spec, examples.pipeline, some_columns(examples))
    try:
        weights = select(candidates, loss, members=members, **most)
    except ValueError:  # the export says by how much
        weights = {0: 1.0}
    for place, weight in weights.items():
        trial = kept[place][0]
        print(
            f"  {weight:.3f} x trial {trial.number}, {trial.family} {trial.parameters}: {metric} {trial.values[0]:.6g}"
        )
    return [(kept[place][0], kept[place][1][judged], weight) for place, weight in weights.items()]


def _learned(
    examples: Examples, chosen: Sequence[tuple[Trial, Floats, float]], judged: NDArray[np.int64], job: Context
) -> Learned:
    folds = len(chosen[0][0].losses) if len(chosen[0][0].losses) > 1 else 0
    answers: Floats = sum((weight * told for _, told, weight in chosen), np.zeros(1))
    every = np.flatnonzero(examples.rows.part != TEST)
    own = replace(examples, train=every, validation=np.zeros(0, np.int64), iterations=1)
    if len(chosen) == 1:
        trial = chosen[0][0]
        own = replace(own, iterations=max(1, trial.iterations), spec=of_family(own.spec, trial.family))
        fitted = trainer(trial.family).fit(own, params_of(trial), job)
        return Learned(fitted, judged, answers, folds, trial.family, params_of(trial), max(1, trial.iterations))
    members = [
        {
            "family": trial.family,
            "params": params_of(trial),
            "weight": weight,
            "iterations": max(1, trial.iterations),
        }
        for trial, _, weight in chosen
    ]
    fitted = trainer("ensemble").fit(replace(own, spec=of_family(own.spec, "ensemble")), {"members": members}, job)
    return Learned(fitted, judged, answers, folds, "ensemble", {"members": members}, 1)


def params_of(trial: Trial) -> dict[str, Any]:
    """What the trainer is given to learn the same again."""
    return choices.split(dict(trial.learned))[0]


def prepared_by(request: TrainRequest, job: Context) -> tuple[LifecycleSpec, Prepared, bool]:
    """Spec and rows of the best trial; and whether it chose them."""
    best = request.searched.best if request.searched else None
    if best is None or best.prepared is None:
        return request.spec, request.prepared, False
    features = choices.chosen(request.spec.features, choices.split(best.parameters)[1])
    prepared = Prepared.model_validate_json(job.artifacts.get(best.prepared))
    return request.spec.model_copy(update={"features": features}), prepared, True
