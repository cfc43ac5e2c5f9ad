"""Whether a window that was measured causes a retraining: a pure function of what was found and what came of it before.

All spans are of event time, so a replay of last year is answered as it would have been.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Literal, NamedTuple

from everloop.records import Window
from everloop.specs import Monitor

MONTH = timedelta(days=30)
MOST_DOUBLINGS = 20
GAIN = "released"
"""How a retraining ends that was worth it."""


class Before(NamedTuple):
    """A window of the model that was decided."""

    window: Window
    version: int
    """Of the champion it was compared with."""
    share: float | None
    """Of its columns that drifted; None: too few rows, or not measured."""
    retrained: bool
    outcome: str = ""
    """Of its retraining: its lifecycle's status."""
    over: frozenset[str] | None = None
    """The measures that were over, `columns` for their share. None: as the share says."""


COLUMNS: frozenset[str] = frozenset({"columns"})
"""What is over where the share of drifted columns is."""

Held = Literal["not_yet", "same_drift", "cooling_down", "over_budget", "breaker_open"]
"""Why a window over the threshold causes no retraining."""


def held_back(  # noqa: PLR0917
    window: Window,
    version: int,
    rules: Monitor,
    before: Sequence[Before],
    rearmed_at: datetime | None = None,
    over: frozenset[str] = COLUMNS,
) -> tuple[Held, str] | None:
    """The rule that keeps *window*, which is over the threshold, from causing a retraining, with its reason.

    *before*: the decided windows, oldest first. *rearmed_at*: retrainings of windows up to then count no more, a
    person has looked at them. *over*: the measures that are. None: nothing keeps it back.
    """
    past = [one for one in before if one.window.end <= window.start]
    counted = [one for one in past if one.retrained and (rearmed_at is None or one.window.end > rearmed_at)]
    return (
        _too_few_in_a_row(rules, past, over)
        or _breaker(rules, version, past, counted)
        or _same_drift(rules, version, past, counted, over)
        or _cooling_down(window, rules, counted)
        or _over_budget(window, rules, counted)
    )


def _over(rules: Monitor, one: Before) -> frozenset[str] | None:
    """Which measures of an earlier window were over; None where it was not measured."""
    if one.over is not None:
        return one.over
    if one.share is None:
        return None
    return COLUMNS if one.share >= rules.share else frozenset()


def _too_few_in_a_row(rules: Monitor, past: Sequence[Before], over: frozenset[str]) -> tuple[Held, str] | None:
    """One window may be chance. Each measure has a row of its own."""
    known = [found for one in reversed(past) if (found := _over(rules, one)) is not None]
    most = max(_in_a_row(name, known) for name in over)
    if most + 1 >= rules.windows_in_a_row:
        return None
    return "not_yet", f"it is window {most + 1} in a row; {rules.windows_in_a_row} are needed"


def _in_a_row(name: str, latest_first: Sequence[frozenset[str]]) -> int:
    return sum(1 for _ in takewhile(lambda found: name in found, latest_first))


def _breaker(
    rules: Monitor, version: int, past: Sequence[Before], counted: Sequence[Before]
) -> tuple[Held, str] | None:
    """Retraining again and again without gain helps nobody, and costs.

    Data goes on moving all the same, and what was no gain then may be one later: after `breaker` measured windows one
    more retraining is tried, after twice as many the next, and so on.
    """
    of_champion = list(takewhile(lambda one: one.version == version, reversed(counted)))
    without = list(takewhile(lambda one: one.outcome != GAIN, of_champion))
    if rules.breaker is None or len(without) < rules.breaker:
        return None
    last = without[0]
    waited = sum(1 for one in past if one.share is not None and one.window.start >= last.window.end)
    needed = rules.breaker * 2 ** min(len(without) - rules.breaker, MOST_DOUBLINGS)
    if waited >= needed:
        return None
    return "breaker_open", (
        f"the last {len(without)} retrainings brought no better version (the latest, of the window of "
        f"{last.window.start:%Y-%m-%d %H:%M} UTC: {last.outcome or 'not known'}); one more is tried {needed} windows "
        f"after it ({waited} have passed), or once a person says `everloop rearm`"
    )


def _same_drift(
    rules: Monitor, version: int, past: Sequence[Before], counted: Sequence[Before], over: frozenset[str]
) -> tuple[Held, str] | None:
    """Hysteresis: what was answered once is answered again only after it had calmed down, or against a new champion.

    The share of columns calms down below `calm`, another measure where it is no more over.
    """
    if rules.calm is None or not counted or counted[-1].version != version:
        return None
    last = counted[-1]
    since = [one for one in past if one.window.start >= last.window.end]
    answered = _over(rules, last) or COLUMNS
    if any(name not in answered or _calmed(rules, since, name) for name in over):
        return None
    return "same_drift", (
        f"the drift of {last.window.start:%Y-%m-%d %H:%M} UTC has caused a retraining, and no window since was below "
        f"{rules.calm:.0%}"
    )


def _calmed(rules: Monitor, since: Sequence[Before], name: str) -> bool:
    if name in COLUMNS:
        return any(one.share is not None and rules.calm is not None and one.share < rules.calm for one in since)
    return any((found := _over(rules, one)) is not None and name not in found for one in since)


def _cooling_down(window: Window, rules: Monitor, counted: Sequence[Before]) -> tuple[Held, str] | None:
    if not counted or window.start - counted[-1].window.start >= rules.cool_down:
        return None
    until = counted[-1].window.start + rules.cool_down
    return "cooling_down", f"after a retraining the next one waits until {until:%Y-%m-%d %H:%M} UTC"


def _over_budget(window: Window, rules: Monitor, counted: Sequence[Before]) -> tuple[Held, str] | None:
    spent = sum(1 for one in counted if one.window.start > window.start - MONTH)
    if rules.retrainings_a_month is None or spent < rules.retrainings_a_month:
        return None
    return "over_budget", f"{spent} retrainings in 30 days; the budget is {rules.retrainings_a_month}"
