# ruff: noqa: T201  # what a job prints is its log
"""Trials: a job asks for parameters, learns and judges, once or, where that is quick, several times.

Optuna is loaded when a trial is asked for (`asking.py`): a warm process that runs no search has no use for it.
"""

import hashlib
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from activities.compute import Context
from activities.compute.evaluation import score
from activities.compute.examples import examples_of
from activities.compute.features import Floats, prepared_as
from activities.compute.folds import Crossed, Fold, cross, plan
from activities.compute.inference import Columns
from activities.compute.latency import DIFFERENT_ROWS, cost
from activities.compute.trainers import Examples, Fitted, Pruned
from activities.compute.trainers.part import Part
from everloop import choices
from everloop.artifacts import Artifacts
from everloop.contracts import TrialRequest
from everloop.errors import EverloopError, Invalid
from everloop.families import family
from everloop.records import Blob, Prepared
from everloop.search import Search
from everloop.specs import Features, LifecycleSpec
from everloop.trials import TOGETHER_SECONDS, Plan, Study, Trial, Trials

if TYPE_CHECKING:
    from activities.compute.search.asking import Asked, Asking

KEPT = 16
"""Trials among so many best keep their answers: an ensemble is chosen from these."""
FIRST_RUNG, NEXT_RUNG = 8, 1.5
"""Of rounds: which ones a pruner is told, so that trials are compared at the same ones."""
SAID = 300
"""Letters of an error."""


def trials(request: TrialRequest, job: Context) -> Trials:
    """Ask, learn and judge: the first of the request's numbers, and more of them while there is time."""
    began = time.monotonic()
    from activities.compute.search.asking import Asking

    shared = plan_of(job.artifacts, request.study)
    known = known_to(request, job.artifacts)
    restored = job.restore()
    done, held = Part.done(restored)
    ended = [Trial.model_validate(each) for each in json.loads(str(held["trials"]))] if done else []
    with examples_of(shared.spec, shared.snapshot, shared.prepared, job) as examples:
        folds = plan(examples)
        asking = Asking(shared, len(folds[0].train))
        for place in range(len(ended), len(request.numbers)):
            left = None if request.seconds is None else request.seconds - (time.monotonic() - began)
            if place and (time.monotonic() - began > TOGETHER_SECONDS or (left is not None and left <= 0)):
                break
            part = Part(job, place, {"trials": lambda: _written(ended)}, restored)
            judged = Judged(asking, examples, folds, [*known, *ended], left)
            ended.append(judged.tried(request.numbers[place], part))
            print(said(ended[-1]), flush=True)
    if not request.by_reference:
        return Trials(trials=tuple(ended))
    lines = b"".join(each.model_dump_json().encode() + b"\n" for each in ended)
    return Trials(trials=tuple(each.brief() for each in ended), kept=job.artifacts.put(lines, "trials.jsonl"))


def _written(trials: Sequence[Trial]) -> str:
    return json.dumps([each.model_dump(mode="json") for each in trials])


def known_to(request: TrialRequest, artifacts: Artifacts) -> list[Trial]:
    """All that had ended when the job was asked for, in order of their numbers."""
    told = told_trials(artifacts, request.study)
    lines = [line for kept in request.kept for line in artifacts.get(kept.blob).splitlines()]
    since = [*(Trial.model_validate_json(line) for line in lines), *request.recent]
    return [*told, *sorted((each for each in since if each.number >= len(told)), key=lambda each: each.number)]


def said(trial: Trial) -> str:
    """A trial as its log has it."""
    figures = ", ".join(f"{value:.6g}" for value in trial.values)
    result = f"{trial.state} {figures}" if figures else trial.state + (f": {trial.error}" if trial.error else "")
    return f"trial {trial.number}: {trial.family} {json.dumps(trial.parameters)}: {result}, {trial.seconds:.2f} s"


def plan_of(artifacts: Artifacts, study: Study) -> Plan:
    return Plan.model_validate_json(artifacts.get(study.plan))


def told_trials(artifacts: Artifacts, study: Study) -> list[Trial]:
    """Those of the study's blobs, in order of their numbers."""
    lines = [line for blob in study.blobs for line in artifacts.get(blob).splitlines()]
    return [Trial.model_validate_json(line) for line in lines]


def as_chosen(shared: Plan, features: Features, job: Context) -> Prepared:
    """The plan's rows, prepared with these *features*: once for all trials that choose the same."""
    asked = json.dumps([shared.prepared.model_dump(mode="json", exclude={"ran"}), features.model_dump(mode="json")])
    key = hashlib.sha256(f"search {asked}".encode()).hexdigest()
    known = job.artifacts.recalled(key)
    if known is not None:
        return Prepared.model_validate_json(job.artifacts.get(known))
    made = prepared_as(shared.spec, shared.snapshot, shared.prepared, features, job)
    job.artifacts.remember(key, prepared_blob(made, job))
    return made


def prepared_blob(prepared: Prepared, job: Context) -> Blob:
    return job.artifacts.put(prepared.model_dump_json().encode(), "prepared.json")


def of_family(spec: LifecycleSpec, name: str) -> LifecycleSpec:
    """The spec as if it said `trainer: name`, for what a family reads of it."""
    return spec.model_copy(update={"trainer": name, "params": {}, "search": None})


class Cut(Pruned):
    """The time is over."""


class Looking:
    """A pruner looks at a training's rungs; a clock, too."""

    def __init__(self, asked: "Asked", until: float | None, *, folds: int, prunes: bool) -> None:
        self._asked, self._until, self._folds, self._prunes = asked, until, folds, prunes
        self._next = float(FIRST_RUNG) if family(asked.family).STEP == "rounds" and folds == 1 else 1.0
        self.seen: list[tuple[int, float]] = []

    def reached(self, step: int, loss: float) -> None:
        """Raises `Cut` or `Pruned`."""
        if self._until is not None and time.monotonic() > self._until:
            raise Cut
        if step < round(self._next) or not math.isfinite(loss):
            return
        if self._folds == 1:
            self._next = max(self._next * NEXT_RUNG, self._next + 1)
        self.seen.append((step, loss))
        if not self._prunes or step == self._folds > 1:
            return
        if self._asked.worse(step, loss):
            raise Pruned


class Clock:
    """Only a clock looks."""

    def __init__(self, until: float | None) -> None:
        self._until = until

    def reached(self, step: int, loss: float) -> None:  # noqa: ARG002
        """Raises `Cut`."""
        if self._until is not None and time.monotonic() > self._until:
            raise Cut


class Judged:
    """One trial of a job."""

    def __init__(
        self,
        asking: "Asking",
        examples: Examples,
        folds: Sequence[Fold],
        known: Sequence[Trial],
        left: float | None,
    ) -> None:
        self._asking, self._examples, self._folds, self._left = asking, examples, folds, left
        self._known = sorted(known, key=lambda each: each.number)
        self._search = asking.search if isinstance(asking.search, Search) else Search()

    def tried(self, number: int, job: Context) -> Trial:
        """The trial *number*. What a family refuses, or fails with, is a failed trial."""
        knew = next((place for place, each in enumerate(self._known) if each.number != place), len(self._known))
        asked = self._asking.ask(number, self._known, self._left)
        began = time.monotonic()
        # The first ones go to their end: something must be found.
        may_be_cut = self._left is not None and any(each.state == "complete" for each in self._known)
        until = began + max(0.0, self._left or 0.0) if may_be_cut else None
        looks = Looking(asked, until, folds=len(self._folds), prunes=self._search.pruned_by != "none")
        found: dict[str, Any] = {}
        clock = Clock(until) if until is not None else None
        try:
            params, picked = choices.split(asked.parameters)
            features = choices.chosen(self._examples.spec.features, picked)
            with self._own(asked, features, job) as (own, prepared):
                crossed = cross(own, params, job, self._folds, looks, clock)
                found = self._complete(crossed, own, job) | {"prepared": prepared}
        except Cut:
            found = {"state": "cut"}
        except Pruned:
            found = {"state": "pruned"}
        except (MemoryError, EverloopError) as error:
            if not isinstance(error, Invalid):
                raise
            found = {"state": "failed", "error": str(error)[:SAID]}
        except Exception as error:  # a library's, of parameters that it does not bear
            if "OutOfMemory" in type(error).__name__:
                raise
            found = {"state": "failed", "error": f"{type(error).__name__}: {error}"[:SAID]}
        return Trial.model_validate(
            {
                "number": number,
                "family": asked.family,
                "parameters": asked.parameters,
                "drawn": asked.drawn,
                "distributions": asked.distributions,
                "intermediates": looks.seen,
                "attributes": asked.attributes,
                "origin": asked.origin,
                "knew": knew,
                "beside": [each.number for each in self._known[knew:]],
                "left": self._left,
                "seconds": round(time.monotonic() - began, 4),
                "device": job.lease.members[0].device,
            }
            | found
        )

    @contextmanager
    def _own(self, asked: "Asked", features: Features, job: Context) -> Iterator[tuple[Examples, Blob | None]]:
        """The examples of the trial, and how they were prepared, where not as the spec says."""
        spec = of_family(self._examples.spec, asked.family)
        if features == spec.features:
            yield replace(self._examples, spec=spec), None
            return
        own, prepared = spec.model_copy(update={"features": features}), as_chosen(self._asking.plan, features, job)
        with examples_of(own, self._asking.plan.snapshot, prepared, job) as examples:
            yield examples, prepared_blob(prepared, job)

    def _complete(self, crossed: Crossed, own: Examples, job: Context) -> dict[str, Any]:
        pipeline, rows, judged = own.pipeline, own.rows, crossed.judged
        metrics = score(pipeline, rows.y[judged], crossed.answers[judged])
        value = self._asking.value(metrics)
        if not math.isfinite(value):
            return {"state": "failed", "error": f"the rows do not say its {self._asking.metric}"}
        if not all(map(math.isfinite, (*metrics.values(), *crossed.losses))):  # no JSON carries them
            return {"state": "failed", "error": "it answers what is no number, or too large for one"}
        size, milliseconds = (len(crossed.last.dump()) if crossed.last else 0), 0.0
        values: tuple[float, ...] = (value,)
        many = self._search.sampler == "nsga2"
        if crossed.last is not None and (many or own.spec.latency_ms is not None):
            size, milliseconds = measured(own, crossed.last)
        if many:
            values = (value, milliseconds, float(size))
        return {
            "state": "complete",
            "values": values,
            "metrics": metrics,
            "losses": [round(each, 8) for each in crossed.losses],
            "learned": crossed.parameters,
            "iterations": crossed.iterations,
            "rows": len(judged),
            "bytes": size,
            "milliseconds": round(milliseconds, 4),
            "answers": self._kept(crossed.answers, value, job),
        }

    def _kept(self, answers: Floats, value: float, job: Context) -> Blob | None:
        """The answers out of fold, where the trial is among the best so far."""
        losses = sorted(self._asking.loss(each.values[0]) for each in self._known if each.state == "complete")
        if len(losses) >= KEPT and self._asking.loss(value) > losses[KEPT - 1]:
            return None
        packed = io.BytesIO()
        np.save(packed, answers.astype(np.float32), allow_pickle=False)
        return job.artifacts.put(packed.getvalue(), "answers.npy")


def measured(examples: Examples, fitted: Fitted) -> tuple[int, float]:
    """Bytes and milliseconds of one row that a model adds to a graph of its features."""
    found = cost(examples.pipeline, fitted, some_columns(examples))
    return found.bytes, found.milliseconds


def some_columns(examples: Examples) -> Columns:
    """Raw rows to answer."""
    return examples.raw([entry.name for entry in examples.pipeline.inputs], examples.rows.rows[:DIFFERENT_ROWS])


def answers_of(artifacts: Artifacts, trial: Trial) -> Floats | None:
    """The answers that a trial has kept."""
    if trial.answers is None:
        return None
    found: Floats = np.load(io.BytesIO(artifacts.get(trial.answers)), allow_pickle=False).astype(np.float64)
    return found
