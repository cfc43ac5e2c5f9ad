"""What to try next. All that a suggestion follows from is in the study: the same trials give the same suggestion.

Every trial asks a fresh sampler, which is seeded from (the search's seed, the trial's number) and told the trials
that had ended. Each family has its own Optuna study: its parameters are no others'. Which family comes next is drawn
by how good each has been.
"""

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from statistics import median
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from everloop import choices
from everloop.families import Parameter, Space, family
from everloop.search import Search
from everloop.specs import HIGHER_IS_BETTER
from everloop.trials import Plan, Point, Trial

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

STARTUP = 6
"""Trials of a family before its sampler looks at them, starting points among them."""
POPULATION = 12
"""Of nsga2: trials of a generation."""
GRID = 3
"""Values of a number on a grid."""
HOPELESS = 0.15
"""A family whose best loss is so much above the best is not tried on with its other starting points."""
CLOSE = 0.02
"""By so much above the best loss a family is drawn e times more seldom."""
ROUNDS, LEAST_ROUNDS = "rounds", 8
"""Rungs of rounds begin later: the first ones say little."""
PASSING = ("fixed_params", "tpe:", "gp:")
"""System attributes, by their beginnings, that say only what the trial itself says."""


@dataclass(frozen=True)
class Asked:
    """A trial that has begun, as Optuna knows it too."""

    family: str
    parameters: dict[str, Any]
    drawn: dict[str, Any]
    distributions: dict[str, str]
    origin: str
    trial: optuna.Trial
    study: optuna.Study

    def worse(self, step: int, loss: float) -> bool:
        """Tell the pruner the loss after *step*: does the trial do worse than others did?"""
        self.trial.report(-loss if self.study.direction is StudyDirection.MAXIMIZE else loss, step)
        return bool(self.trial.should_prune())

    @property
    def attributes(self) -> dict[str, Any]:
        """Optuna's system attributes, as far as they have come."""
        found = self.study.get_trials(deepcopy=False)[self.trial.number].system_attrs
        return {name: value for name, value in found.items() if not name.startswith(PASSING)}


class Asking:
    """Asks for trials of one search."""

    def __init__(self, plan: Plan, rows: int) -> None:
        """*rows*: that a fold learns, about: spaces follow them."""
        self.plan = plan
        self.search = plan.spec.search or Search()
        self.metric = self.search.metric or plan.spec.objective
        self.spaces = {name: self._space(name, rows) for name in plan.families}
        self.points = self._points()
        self._frozen: dict[int, FrozenTrial] = {}
        """Trials as Optuna keeps them, by their numbers: they are asked from again and again."""

    def ask(self, number: int, known: Sequence[Trial], left: float | None = None) -> Asked:
        """The trial *number*, by the *known* ones. *left*: seconds of the budget."""
        name, point = self._next(number, known, left)
        own = [each for each in known if each.family == name]
        study = self._study(name, own, number)
        given = None if point is None else point.parameters
        if given is not None:
            study.enqueue_trial(_told(self.spaces[name], name, given))
        trial = study.ask()
        drawn: dict[str, Any] = {}
        for each in self.spaces[name].parameters:
            if all(drawn.get(other) in values for other, values in each.when.items()):
                drawn[each.name] = trial._suggest(each.name, _distribution(each))  # noqa: SLF001  # whatever its kind
        distributions = {key: distribution_to_json(value) for key, value in trial.distributions.items()}
        origin = point.origin if point else "sampler"
        return Asked(name, drawn if given is None else dict(given), drawn, distributions, origin, trial, study)

    def value(self, metrics: dict[str, float]) -> float:
        """Of the metrics, what the search makes better; NaN where the rows do not say it."""
        return metrics.get(self.metric, math.nan)

    def loss(self, value: float) -> float:
        """Of a value of the metric: smaller is better, and ratios mean something."""
        return 1 - value if self.metric in HIGHER_IS_BETTER else value

    def _space(self, name: str, rows: int) -> Space:
        """Of the family, and of the features that it may look at."""
        spec, own = self.plan.spec, family(name).space(self.plan.spec.task, rows)
        if not self.search.features:
            return own
        more = choices.space(spec, name, rows, self.plan.prepared.feature_count)
        return Space(parameters=(*own.parameters, *more.parameters), portfolio=(*own.portfolio, *more.portfolio))

    def _points(self) -> list[Point]:
        """Where to begin: the champion's, then each family's best starting point, each one's second, ..."""
        each = [
            [Point(family=name, parameters=point) for point in self.spaces[name].portfolio]
            for name in self.plan.families
        ]
        return [*self.plan.points, *(point for turn in zip_longest(*each) for point in turn if point is not None)]

    def _next(self, number: int, known: Sequence[Trial], left: float | None) -> tuple[str, Point | None]:
        best = {name: self._best(name, known) for name in self.plan.families}
        least = min(best.values())
        if number < len(self.points):
            point = self.points[number]
            first = not math.isfinite(best.get(point.family, math.inf))
            if first or best[point.family] <= least + HOPELESS * abs(least):
                return point.family, point
        return self._drawn_family(number, known, best, left), None

    def _best(self, name: str, known: Sequence[Trial]) -> float:
        losses = [self.loss(each.values[0]) for each in known if each.family == name and each.state == "complete"]
        return min(losses, default=math.inf)

    def _drawn_family(self, number: int, known: Sequence[Trial], best: dict[str, float], left: float | None) -> str:
        names = [name for name in self.plan.families if math.isfinite(best[name])] or list(self.plan.families)
        if left is not None:
            times = {name: [t.seconds for t in known if t.family == name and t.state == "complete"] for name in names}
            usual = {name: median(each) if each else 0.0 for name, each in times.items()}
            names = [name for name in names if usual[name] <= left] or [min(names, key=lambda name: usual[name])]
        least = min(best[name] for name in names)
        if not math.isfinite(least):
            return names[number % len(names)]
        gaps = [(best[name] - least) / max(abs(least), 1e-12) for name in names]
        weights = np.exp(-np.array(gaps) / CLOSE) + 0.02  # none is forgotten
        return names[int(np.random.default_rng([self.plan.seed, number]).choice(len(names), p=weights / weights.sum()))]

    def _study(self, name: str, own: Sequence[Trial], number: int) -> optuna.Study:
        many = self.search.sampler == "nsga2"
        first = "maximize" if self.metric in HIGHER_IS_BETTER else "minimize"
        study = optuna.create_study(
            directions=[first, "minimize", "minimize"] if many else [first],
            sampler=self._sampler(name, number),
            pruner=self._pruner(name),
            study_name=name,
        )
        sign = -1 if first == "maximize" else 1
        for each in own:
            if each.number not in self._frozen:
                self._frozen[each.number] = _frozen(each, sign, many=many)
            study.add_trial(self._frozen[each.number])
        return study

    def _sampler(self, name: str, number: int) -> BaseSampler:
        seed = int(np.random.SeedSequence([self.plan.seed, number, 1]).generate_state(1)[0])
        match self.search.sampler:
            case "random":
                return RandomSampler(seed=seed)
            case "grid":  # its order is one of the whole search
                return GridSampler({each.name: _grid(each) for each in self.spaces[name].parameters}, self.plan.seed)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=STARTUP)
            case "nsga2":
                return NSGAIISampler(population_size=POPULATION, seed=seed)
            case _:
                return TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)

    def _pruner(self, name: str) -> BasePruner:
        least = LEAST_ROUNDS if family(name).STEP == ROUNDS else 1
        match self.search.pruned_by:
            case "median":
                return MedianPruner(n_startup_trials=4, n_warmup_steps=0)
            case "asha":
                return SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
            case "hyperband":
                return HyperbandPruner(min_resource=1, max_resource=max(8, 32 * least), reduction_factor=2)
            case _:
                return NopPruner()


def _distribution(each: Parameter) -> BaseDistribution:
    if each.kind == "choice":
        return CategoricalDistribution(each.choices)
    assert each.low is not None and each.high is not None  # noqa: S101, PT018  # numbers have both
    if each.kind == "integer":
        return IntDistribution(int(each.low), int(each.high), log=each.log)
    return FloatDistribution(each.low, each.high, log=each.log)


def _grid(each: Parameter) -> list[Any]:
    if each.kind == "choice":
        return list(each.choices)
    assert each.low is not None and each.high is not None  # noqa: S101, PT018
    between = np.geomspace if each.log else np.linspace
    values = between(each.low, each.high, GRID).clip(each.low, each.high).tolist()
    return sorted({round(value) for value in values}) if each.kind == "integer" else values


def _told(space: Space, name: str, point: dict[str, Any]) -> dict[str, Any]:
    """A starting point as a sampler can learn from it: with the family's own value for what it leaves out."""
    fields = family(name).Params.model_fields
    found = {}
    for each in space.parameters:
        default = fields[each.name].default if each.name in fields else None
        value = point.get(each.name, default if default is not None else each.usual)
        if each.kind == "choice":
            found[each.name] = value if value in each.choices else each.choices[0]
            continue
        assert each.low is not None and each.high is not None  # noqa: S101, PT018
        usual = each.low if value is None else float(value)
        near = min(max(usual, each.low), each.high)
        found[each.name] = round(near) if each.kind == "integer" else near
    return found


def _frozen(each: Trial, sign: int, *, many: bool) -> FrozenTrial:
    """A trial that has ended, as Optuna keeps it. One without parameters only holds its place.

    *sign*: of its losses, where the metric is one that grows.
    """
    state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "cut": TrialState.PRUNED}.get(each.state)
    drawn = each.drawn
    if state is None or not drawn or (state is TrialState.PRUNED and (many or not each.intermediates)):
        state = TrialState.FAIL
    steps = {} if many else {step: sign * loss for step, loss in each.intermediates}
    made = create_trial(
        state=state,
        values=list(each.values) if state is TrialState.COMPLETE else None,
        params=drawn,
        distributions={name: _read(text) for name, text in each.distributions.items()},
        intermediate_values=steps,
        system_attrs=dict(each.attributes),
    )
    made.__class__ = Ended
    return made


class Ended(FrozenTrial):  # type: ignore[misc]  # Optuna is not typed for us
    """A trial that nobody changes any more: a study need not copy all that it holds, each time that it is asked."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ended":
        return copy.copy(self)


@lru_cache(maxsize=1000)
def _read(text: str) -> BaseDistribution:
    return json_to_distribution(text)
