"""`search:` of a spec: which families and parameters are tried, for how long, and what wins."""

import math
import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from everloop.families import LEARNERS
from everloop.strict import Strict

SPAN = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(s|min|m|h|d)")
UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400}
LONGEST = timedelta(days=30)
USUAL = timedelta(seconds=60)
FAMILIES = ("lightgbm", "xgboost", "linear", "forest")
"""What a search tries that does not say it: torch takes longer, and is asked for."""
MEMBERS = 8
"""Of an ensemble, at most, where nothing is said."""
QUARTER = 0.25
"""Of the budget, for a retraining."""
Sampler = Literal["tpe", "random", "grid", "gp", "nsga2"]
Pruner = Literal["auto", "none", "median", "asha", "hyperband"]


def span(value: Any) -> Any:  # noqa: ANN401  # what a person wrote
    """A timedelta of `60s`, `10min` or `2h`; other values as they are. Raises `ValueError`."""
    if not isinstance(value, str) or value.startswith(("P", "-P")):  # ISO 8601: as JSON says it
        return value
    found = SPAN.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value[:40]!r} is no time, such as 60s, 10min or 2h")
    return timedelta(seconds=float(found[1]) * UNITS[found[2]])


Span = Annotated[timedelta, BeforeValidator(span)]


class Budget(Strict):
    """What a search may use: time, trials, or whichever ends first."""

    time: Span | None = None
    """Of its trials: waits for a slot and for people do not count."""
    trials: Annotated[int, Field(ge=1, le=100_000)] | None = None

    @field_validator("time")
    @classmethod
    def _bounded(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and not timedelta(seconds=1) <= value <= LONGEST:
            raise ValueError("must be from 1 second to 30 days")
        return value

    @model_validator(mode="after")
    def _some(self) -> "Budget":
        if self.time is None and self.trials is None:
            raise ValueError("says neither a time nor a number of trials, such as 60s or {trials: 100}")
        return self

    @property
    def seconds(self) -> float | None:
        return None if self.time is None else self.time.total_seconds()

    def of(self, *, again: bool) -> "Budget":
        """All of it, or a retraining's quarter: that begins from what was good before."""
        if not again:
            return self
        trials = None if self.trials is None else max(1, math.ceil(self.trials * QUARTER))
        return Budget.model_construct(time=None if self.time is None else self.time * QUARTER, trials=trials)


def limits(value: Any) -> Any:  # noqa: ANN401  # what a person wrote
    """`60s` is a budget of time."""
    if isinstance(value, str):
        return {"time": value}
    if isinstance(value, int | float):
        raise ValueError(f"{value} of what? Say {value}s, or {{trials: {value}}}")  # noqa: TRY004  # pydantic's error
    return value


class Search(Strict):
    """Trials of families and their parameters under a budget; the best, or an ensemble of the best, goes on."""

    budget: Annotated[Budget, BeforeValidator(limits)] = Budget(time=USUAL)
    metric: str = ""
    """What is made better; left out, the spec's."""
    families: Annotated[tuple[str, ...], Field(min_length=1, max_length=len(LEARNERS))] | None = None
    """Left out: lightgbm, xgboost, linear and forest; or the `trainer`, where the spec names another."""
    sampler: Sampler = "tpe"
    """After each family's good starting points. tpe: near what was good; random; grid; gp: a Gaussian process; nsga2:
    many goals, quality, milliseconds of a row and bytes."""
    pruner: Pruner = "auto"
    """What ends a trial early that does worse than others did: median, asha, hyperband. auto: median, and none with
    nsga2."""
    parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """Trials at a time, at most: it goes on with fewer where there is no room for more."""
    features: bool = False
    """Try also which columns to leave out, how to straighten skewed numbers, and products of columns. Each new choice
    prepares the rows again."""
    ensemble: Annotated[int, Field(ge=1, le=20)] | None = None
    """Models that may be averaged, at most; 1: the best trial alone. Left out: 8, and 1 with nsga2."""
    patience: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Trials without a gain after which it ends early. Left out: it finds out, where only time limits it."""

    @field_validator("families")
    @classmethod
    def _known(cls, families: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in families or ():
            if name not in LEARNERS:
                raise ValueError(f"{name[:60]!r} is none of {', '.join(LEARNERS)}")
        if families and len(set(families)) < len(families):
            raise ValueError("names a family twice")
        return families

    @model_validator(mode="after")
    def _possible(self) -> "Search":
        if self.sampler == "nsga2" and self.pruner not in ("auto", "none"):
            raise ValueError(f"pruner: with nsga2 a trial has many goals, and {self.pruner} looks at one: say none")
        if self.sampler == "nsga2" and (self.ensemble or 1) > 1:
            raise ValueError("ensemble: nsga2 weighs each model's size and time, an ensemble adds them up: say 1")
        return self

    @property
    def pruned_by(self) -> str:
        """The pruner that looks, or `none`."""
        if self.pruner != "auto":
            return self.pruner
        return "none" if self.sampler == "nsga2" else "median"

    @property
    def members(self) -> int:
        """Of the ensemble, at most."""
        return self.ensemble or (1 if self.sampler == "nsga2" else MEMBERS)

    def families_of(self, trainer: str) -> tuple[str, ...]:
        """What it tries for a spec with that `trainer`."""
        return self.families or ((trainer,) if trainer != FAMILIES[0] else FAMILIES)


def refused(search: Search, spec: Any, metrics: tuple[str, ...]) -> str:  # noqa: ANN401  # a LifecycleSpec
    """Why *spec*, whose task has these *metrics*, cannot have that search, as `field: sentence`; or nothing."""
    if search.metric not in ("", *metrics):
        return f"search.metric: {search.metric!r} is not one of {', '.join(metrics)}"
    if spec.own_trainer:
        return "search: nothing is known of the parameters of a function of yours; search inside it"
    if spec.trainer == "ensemble":
        return "search: it makes an ensemble of its own; leave `trainer` out"
    if spec.params:
        return "params: the search chooses them; leave params or search out"
    if search.families is not None and spec.trainer not in (FAMILIES[0], *search.families):
        return f"search.families: do not name {spec.trainer}, which is the `trainer`; leave one of the two out"
    return ""
