"""Pictures of a search: every trial's objective over time with the best so far, and how trials learned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from api.search.answers import Rung, TrialView

WIDTH, HEIGHT, TOP = 640, 240, 8
SHADES = 6
"""Colours for families; further ones share them."""
SHOWN_CURVES = 8
MOST_SPREAD = 4
"""The picture goes no further from the best than so many times the way to the middle trial: worse ones stand at its
edge."""


@dataclass(frozen=True)
class Dot:
    """A trial."""

    x: float
    y: float
    shade: int
    beyond: bool
    """The value is beyond the scale."""
    title: str


@dataclass(frozen=True)
class OverTime:
    """The objective over time, 640 by 240."""

    dots: list[Dot]
    best: str
    """Points of the line of the best so far."""
    top: float
    bottom: float
    """Values at the edges."""
    seconds: float
    """At the right edge."""
    families: list[tuple[str, int]]
    """With its shade."""


@dataclass(frozen=True)
class Line:
    """How one trial learned."""

    points: str
    kind: str
    """`first` for the best trial, `complete`, `pruned`."""
    title: str


@dataclass(frozen=True)
class Learning:
    """Learning curves of some trials, 640 by 240."""

    lines: list[Line]
    trials: list[TrialView]
    """Those that are drawn, the best first."""
    top: float
    bottom: float
    last_step: int


def over_time(trials: Sequence[TrialView], began: datetime, *, rising: bool, name: str) -> OverTime | None:
    """None with fewer than two values."""
    told = sorted(
        (each for each in trials if each.value is not None and math.isfinite(each.value)),
        key=lambda trial: trial.ended_at,
    )
    if len(told) < 2:  # noqa: PLR2004
        return None
    seconds = max(0.001, (told[-1].ended_at - began).total_seconds())
    scale = _Scale([each.value for each in told if each.value is not None], rising=rising)
    families = sorted({each.family for each in told})
    shades = {family: place % SHADES for place, family in enumerate(families)}

    def across(trial: TrialView) -> float:
        return round(WIDTH * max(0.0, (trial.ended_at - began).total_seconds()) / seconds, 1)

    sign = -1 if rising else 1
    dots: list[Dot] = []
    best, height, steps = math.inf, 0.0, list[str]()
    for trial in told:
        value = trial.value or 0.0
        x, y, beyond = across(trial), scale.up(value), scale.beyond(value)
        title = f"trial {trial.number}, {trial.family}: {name} {value:.5g}"
        dots.append(Dot(x, y, shades[trial.family], beyond, title))
        if sign * value < best:
            steps += [f"{x},{height}", f"{x},{y}"] if steps else [f"{x},{y}"]
            best, height = sign * value, y
    steps += [f"{WIDTH},{height}"] if steps else []
    return OverTime(dots, " ".join(steps), scale.top, scale.bottom, seconds, list(shades.items()))


def gains(trials: Sequence[TrialView], *, rising: bool) -> list[TrialView]:
    """The trials with which the best got better, in the order of their ends."""
    sign, best = -1 if rising else 1, math.inf
    found = []
    for trial in sorted(trials, key=lambda each: each.ended_at):
        if trial.value is not None and math.isfinite(trial.value) and sign * trial.value < best:
            best = sign * trial.value
            found.append(trial)
    return found


def learning(trials: Sequence[TrialView]) -> Learning | None:
    """The best trials and the last ones that were pruned. None where no two steps were reported."""
    reported = [each for each in trials if len([rung for rung in each.rungs if math.isfinite(rung.loss)]) > 1]
    ranked = sorted((each for each in reported if each.rank), key=lambda trial: trial.rank or 0)[:SHOWN_CURVES]
    pruned = [each for each in reported if each.state == "pruned"][-SHOWN_CURVES:]
    shown = [*ranked, *pruned]
    if not shown:
        return None
    steps = [rung.step for each in shown for rung in each.rungs]
    first, last = min(steps), max(steps)
    scale = _Scale([rung.loss for each in shown for rung in each.rungs if math.isfinite(rung.loss)])

    def point(rung: Rung) -> str:
        return f"{round(WIDTH * (rung.step - first) / max(1, last - first), 1)},{scale.up(rung.loss)}"

    def points(trial: TrialView) -> str:
        return " ".join(point(rung) for rung in trial.rungs if math.isfinite(rung.loss))

    lines = [
        Line(
            points(each),
            "pruned" if each.state == "pruned" else "first" if each is shown[0] else "complete",
            f"trial {each.number}, {each.family}{', pruned' * (each.state == 'pruned')}",
        )
        for each in reversed(shown)  # the best lies on top
    ]
    return Learning(lines, ranked, scale.top, scale.bottom, last)


class _Scale:
    """From values to heights, larger ones above."""

    def __init__(self, values: Sequence[float], *, rising: bool = False) -> None:
        ordered = sorted(values, reverse=rising)
        best, worst = ordered[0], ordered[-1]
        usual = ordered[len(ordered) // 2] - best
        if usual and abs(worst - best) > MOST_SPREAD * abs(usual):
            worst = best + MOST_SPREAD * usual
        self.bottom, self.top = min(best, worst), max(best, worst)

    def beyond(self, value: float) -> bool:
        return not self.bottom <= value <= self.top

    def up(self, value: float) -> float:
        if self.top == self.bottom:
            return HEIGHT / 2
        share = min(1.0, max(0.0, (value - self.bottom) / (self.top - self.bottom)))
        return round(HEIGHT - TOP - (HEIGHT - 2 * TOP) * share, 1)
