"""What a check looks at beside the drift of each column: the answers, and whether the data is whole.

Data that moved is a reason to learn again; data that is broken is not, and a person must know which column.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute import Job
from activities.compute.inference import Columns
from everloop.records import Blob, Break, ColumnDrift, Field, Measure, Signature
from everloop.specs import Monitor

GONE, THERE_ONCE = 0.995, 0.5
"""A column is broken that lacks at least the first share of its values and lacked at most the second in training."""
FACTORS = (1000.0, 100.0, 10.0, 60.0, 24.0, 3600.0, 2.20462, 1.609344, 3.28084, 2.54, 25.4)
"""Between units that people mix up: thousands and cents, minutes, hours, pounds, miles, feet and inches."""
QUANTILES = np.linspace(0.05, 0.95, 19)
NEAR, NEAR_BY_CHANCE = 0.02, 0.3
"""Of the inner spread: how far quantiles may lie apart on average after a change of the unit, beside what a sample of
so many rows brings (the second, by the root of the rows)."""
FAR = 0.6
"""And how far they must lie apart before it."""
FEWEST_VALUES, FEWEST_ROWS = 20, 100
MOST_VALUES, FEWEST_SAME, ROUNDING = 100, 3, 1e-6
"""Different numbers of a column up to which they are compared one by one, how many must agree, and how nearly."""
DISTANCE, CHANCE = 0.1, 2.0
"""From where answers have moved: Evidently's threshold of distances, and what two samples bring by chance alone, by
the root of the sum of 1 / rows."""
LEAST_SPREAD = 1e-3
SURE = 3.0
"""Standard errors by which a share must be larger than it was."""
MOST_NAMED = 3

ANSWER = {"binary": "probability", "regression": "value", "multiclass": "label"}
"""The column of the log that tells an answer as one number, or of many classes as the label."""
Answers = NDArray[Any]
Judge = Callable[[str, bool, NDArray[Any], NDArray[Any]], ColumnDrift]
"""Evidently's word on one pair: name, are they numbers, then, now."""


def measures_of(
    signature: Signature, reference: Columns, current: Columns, monitor: Monitor
) -> tuple[list[Measure], list[Break]]:
    """The data's quality: what is missing, new or out of range more than it was, and which columns are broken."""
    shares: dict[str, dict[str, float]] = {"missing": {}, "new_categories": {}, "out_of_range": {}}
    broken: list[Break] = []
    for entry in signature.fields:
        if entry.name not in reference or entry.name == signature.time:
            continue
        then, now = reference[entry.name], current[entry.name]
        found = _break(entry, then, now)
        if found is not None:
            broken.append(found)
        lacks = [_missing(entry, side) for side in (then, now)]
        shares["missing"][entry.name] = _more(lacks[0].mean(), lacks[1].mean(), len(then), len(now))
        if entry.kind == "category" and entry.known:
            shares["new_categories"][entry.name] = _new(then[~lacks[0]], now, lacks[1])
        elif entry.kind == "number":
            shares["out_of_range"][entry.name] = _outside(entry, then, now)
    return [_worst(name, found, monitor.quality) for name, found in shares.items() if found], broken


def answers_of(signature: Signature, now: Answers, evaluation: Mapping[str, Any]) -> Measure | None:
    """How far the answers lie from those of the evaluation, which were on rows that the model had not learned.

    A distance and no test: what was evaluated is not the model that answers, which was fitted again on all rows, and
    a test tells two forests apart by the very values of their leaves.
    None where the version does not say its answers, or answered too few rows of the window.
    """
    then = (evaluation.get("sample") or {}).get("answers")
    if not then or len(now) < FEWEST_ROWS:
        return None
    numeric = signature.task != "multiclass"
    far = _distance(np.array(then), now, numeric=numeric)
    by_chance = CHANCE * math.sqrt(1 / len(then) + 1 / len(now))
    threshold = DISTANCE + by_chance
    moved = "have moved away from" if far >= threshold else "are spread like"
    method = "normed Wasserstein distance" if numeric else "Jensen-Shannon distance"
    why = f"the answers {moved} those of the evaluation ({method} {far:.3g}, threshold {threshold:.3g})"
    return Measure(name="predictions", value=far, threshold=threshold, over=far >= threshold, why=why)


def _distance(then: NDArray[Any], now: NDArray[Any], *, numeric: bool) -> float:
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import wasserstein_distance

    if numeric:
        return float(wasserstein_distance(then, now) / max(float(np.std(then)), LEAST_SPREAD))
    names = np.unique(np.concatenate([then, now]))
    return float(jensenshannon(*(np.array([np.mean(side == name) for name in names]) for side in (then, now))))


def labels_drift(signature: Signature, then: Sequence[Any], now: Sequence[Any], judge: Judge) -> Measure | None:
    """How far the labels lie from those of the evaluation."""
    if not len(then) or len(now) < FEWEST_ROWS:
        return None
    return _spread("target", "the labels", signature.task == "regression", then, now, judge)


def _spread(  # noqa: PLR0917
    name: Any,  # noqa: ANN401  # a MeasureName
    what: str,
    numeric: bool,
    then: Sequence[Any],
    now: Sequence[Any],
    judge: Judge,
) -> Measure:
    kind: Any = np.float64 if numeric else object
    told = judge(name, numeric, np.array(then, kind), np.array(now, kind))
    moved = "have moved away from" if told.drifted else "are spread like"
    why = f"{what} {moved} those of the evaluation ({told.method} {told.score:.3g}, threshold {told.threshold:g})"
    return Measure(name=name, value=told.score, threshold=told.threshold, over=told.drifted, why=why)


# --- quality ----------------------------------------------------------------------------------------


def _missing(entry: Field, values: NDArray[Any]) -> NDArray[np.bool_]:
    if entry.kind == "category":
        return np.asarray(values == "", np.bool_)
    return ~np.isfinite(values.astype(np.float64))


def _more(then: float, now: float, rows_then: int, rows_now: int) -> float:
    """By how much a share has grown, or 0 where that may be chance."""
    pooled = (then * rows_then + now * rows_now) / max(rows_then + rows_now, 1)
    error = math.sqrt(pooled * (1 - pooled) * (1 / max(rows_then, 1) + 1 / max(rows_now, 1)))
    return float(now - then) if now - then > SURE * error else 0.0


def _new(then: NDArray[Any], now: NDArray[Any], lacks: NDArray[np.bool_]) -> float:
    """Share of rows with a value that training did not have, beyond what one more draw from training would bring."""
    known, counts = np.unique(then.astype(str), return_counts=True)
    unseen = ~np.isin(now[~lacks].astype(str), known)
    once = int((counts == 1).sum()) / max(len(then), 1)  # Good and Turing
    return _more(once, float(unseen.sum()) / max(len(now), 1), len(then), len(now))


def _outside(entry: Field, then: NDArray[np.float64], now: NDArray[np.float64]) -> float:
    filled = then[np.isfinite(then)]
    if not len(filled):
        return 0.0
    low = filled.min() if entry.minimum is None else entry.minimum
    high = filled.max() if entry.maximum is None else entry.maximum
    outside = (now < low) | (now > high)
    return _more(0.0, float(outside.mean()), len(then), len(now))


WORDS = {
    "missing": ("more values are missing than in training", "no column lacks more values than in training"),
    "new_categories": ("values are new", "no column has more new values than training would have brought"),
    "out_of_range": ("values lie outside of training's range", "values lie within training's range"),
}


def _worst(name: Any, shares: Mapping[str, float], threshold: float) -> Measure:  # noqa: ANN401  # a MeasureName
    order = sorted(shares, key=lambda column: -shares[column])
    worst = order[0]
    grown = [column for column in order if shares[column] > 0]
    if not grown:
        return Measure(name=name, value=0.0, threshold=threshold, over=False, why=WORDS[name][1])
    listed = ", ".join(f"{column!r} {shares[column]:.1%}" for column in grown[:MOST_NAMED])
    more = f" and {len(grown) - MOST_NAMED} more" if len(grown) > MOST_NAMED else ""
    why = f"{WORDS[name][0]}: {listed}{more}"
    return Measure(
        name=name, value=shares[worst], threshold=threshold, over=shares[worst] >= threshold, why=why, column=worst
    )


# --- broken -----------------------------------------------------------------------------------------


def _break(entry: Field, then: NDArray[Any], now: NDArray[Any]) -> Break | None:
    lacked, lacks = (float(_missing(entry, side).mean()) if len(side) else 1.0 for side in (then, now))
    if len(now) < FEWEST_ROWS:
        return None
    if lacks >= GONE and lacked <= THERE_ONCE:
        gone = "all values are" if lacks == 1 else f"{lacks:.1%} of the values are"
        return Break(column=entry.name, kind="missing", why=f"{gone} missing; {lacked:.1%} were in training")
    if entry.kind == "category" and entry.known:
        changed = _changed_type(then, now)
        if changed:
            return Break(column=entry.name, kind="schema", why=changed)
    if entry.kind == "number":
        unit = changed_unit(then, now)
        if unit:
            return Break(column=entry.name, kind="unit", why=f"it looks like another unit: {unit}")
    return None


NUMBER, MOMENT = re.compile(r"[+-]?\d+([.,]\d+)?([eE][+-]?\d+)?"), re.compile(r"\d{4}-\d\d-\d\d([T ].*)?")


def _changed_type(then: NDArray[Any], now: NDArray[Any]) -> str:
    """How the texts of a column are of another type than they were, or empty."""
    before, after = (_type_of(side) for side in (then, now))
    if not before or not after or before == after:
        return ""
    shown = ", ".join(repr(str(text)[:20]) for text in now[now != ""][:MOST_NAMED])
    return f"its values are {after} ({shown}); they were {before} in training"


def _type_of(texts: NDArray[Any]) -> str:
    """What nearly all of them are; empty where they are of several types."""
    filled, counts = np.unique(texts[texts != ""].astype(str), return_counts=True)
    if not len(filled):
        return ""
    numbers = np.array([bool(NUMBER.fullmatch(text)) for text in filled])
    moments = np.array([bool(MOMENT.fullmatch(text)) for text in filled])
    parts = {"numbers": numbers, "dates": moments, "words": ~numbers & ~moments}
    sure = [name for name, chosen in parts.items() if counts[chosen].sum() >= GONE * counts.sum()]
    return sure[0] if sure else ""


def changed_unit(then: NDArray[np.float64], now: NDArray[np.float64]) -> str:
    """How *now* tells *then* in another unit, or empty.

    Of many values: the same spread after the change, and another before it. Of few: the very same ones after it.
    """
    then, now = then[np.isfinite(then)], now[np.isfinite(now)]
    if len(now) < FEWEST_ROWS:
        return ""
    known = np.unique(then)
    best = _same_values(known, now) if len(known) <= MOST_VALUES else ""
    if not best and len(known) >= FEWEST_VALUES:
        best = _same_spread(then, now)
    return best and f"its values are {best} (median {np.median(then):.4g} then, {np.median(now):.4g} now)"


def _changes(before: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """*before* in other units."""
    changes = {f"{factor:.4g} times what they were": before * factor for factor in FACTORS}
    changes |= {f"1/{factor:.4g} of what they were": before / factor for factor in FACTORS}
    changes["in Fahrenheit where they were in Celsius"] = before * 1.8 + 32
    changes["in Celsius where they were in Fahrenheit"] = (before - 32) / 1.8
    return changes


def _same_values(known: NDArray[np.float64], now: NDArray[np.float64]) -> str:
    """The change after which nearly all of *now* is among what was *known*, where most was not before. 0 is any unit's.

    Some values may agree by chance: with fewer than `FEWEST_SAME` of them nothing is said.
    """
    values, counts = np.unique(now[now != 0], return_counts=True)
    if len(values) < FEWEST_SAME or counts[_among(values, known)].sum() > counts.sum() / 2:
        return ""
    for words, changed in _changes(known).items():
        if counts[_among(values, changed)].sum() >= GONE * counts.sum():
            return words
    return ""


def _among(values: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the *values* are *known*, but for rounding."""
    known = np.sort(known)
    after = np.clip(np.searchsorted(known, values), 1, max(len(known) - 1, 1))
    sides = [known[np.minimum(after, len(known) - 1)], known[after - 1]]
    return np.asarray(np.logical_or(*(np.isclose(values, side, rtol=ROUNDING, atol=0) for side in sides)))


def _same_spread(then: NDArray[np.float64], now: NDArray[np.float64]) -> str:
    before, after = np.quantile(then, QUANTILES), np.quantile(now, QUANTILES)
    width = float(before[-1] - before[0])
    if not width or _apart(before, after, width) < FAR:
        return ""
    changes = _changes(before)
    near = {words: _apart(changed, after, float(changed[-1] - changed[0])) for words, changed in changes.items()}
    best = min(near, key=lambda words: near[words])
    return "" if near[best] > NEAR + NEAR_BY_CHANCE / math.sqrt(len(now)) else best


def _apart(before: NDArray[np.float64], after: NDArray[np.float64], width: float) -> float:
    """How far quantiles lie apart on average, in inner spreads."""
    return float(np.abs(before - after).mean() / width) if width else math.inf


# --- what the evaluation kept -----------------------------------------------------------------------


def evaluation_of(job: Job, report: Blob | None) -> dict[str, Any]:
    """The report of an evaluation as JSON; empty where there is none, or what was kept cannot be read."""
    if report is None:
        return {}
    found = json.loads(job.artifacts.get(report))
    return found if isinstance(found, dict) else {}


# --- distributions, for people ----------------------------------------------------------------------

BARS = 12


def distribution(numeric: bool, then: NDArray[Any], now: NDArray[Any]) -> dict[str, Any]:
    """Shares of rows by value, then and now: of numbers in 11 bars, of texts the 11 most frequent and the rest."""
    if numeric:
        return _bars(then, now)
    names, counts = np.unique(np.concatenate([then, now]).astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[: BARS - 1]
    chosen = [str(name) for name in names[order]]
    sides = [
        [float(np.mean(side.astype(str) == name)) if len(side) else 0.0 for name in chosen] for side in (then, now)
    ]
    if len(names) > len(chosen):
        chosen.append("others")
        sides = [[*side, max(0.0, 1 - sum(side))] for side in sides]
    return {"labels": [name[:40] for name in chosen], "then": sides[0], "now": sides[1]}


def _bars(then: NDArray[np.float64], now: NDArray[np.float64]) -> dict[str, Any]:
    filled = [side[np.isfinite(side)] for side in (then, now)]
    both = np.concatenate(filled)
    if not len(both):
        return {"labels": ["missing"], "then": [1.0], "now": [1.0]}
    low, high = np.quantile(both, (0.005, 0.995))
    edges = np.linspace(low, high, BARS) if low < high else np.array([low, low])
    sides = []
    for side, kept in zip((then, now), filled, strict=True):
        counts, _ = np.histogram(np.clip(kept, edges[0], edges[-1]), bins=edges)
        lacks = len(side) - len(kept)
        sides.append([*(counts / max(len(side), 1)).tolist(), lacks / max(len(side), 1)])
    labels = [f"{edge:.4g}" for edge in edges[:-1]]
    return {"labels": [*labels, "missing"], "then": sides[0], "now": sides[1], "upper": f"{edges[-1]:.4g}"}
