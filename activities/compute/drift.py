# ruff: noqa: T201  # what a job prints is its log
"""Has what is asked for moved away from what was learned? Evidently decides, column by column.

Traps that this file is shaped around: the preset computes everything three times (so: `ValueDrift` per column);
a column that is nearly constant gives a normed distance without bound (so: it is compared as usual or other);
a date moves on by itself (so: its distance from the event is compared, and the event time not at all);
a distance between two samples of the same thing grows as they shrink, and Evidently looks at the reference's size
only (so: where either side is small a test of two samples decides, and many categories may differ more by chance).
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
from numpy.typing import NDArray

from activities.compute import GATHERED_BY_EVIDENTLY, Job, on_demand
from activities.compute.data import Table as Rows
from activities.compute.data import event_seconds
from activities.compute.features import DAY
from activities.compute.inference import Columns
from activities.compute.measures import ANSWER, Answers, answers_of, distribution, evaluation_of, measures_of
from activities.compute.predictions import Logged, signatures_of
from everloop.contracts import DriftRequest
from everloop.errors import DatasetMissing, naming
from everloop.predictions import on_disk
from everloop.records import Blob, Break, ColumnDrift, DriftReport, Field, Measure, Signature

MOST_ROWS = 50_000
NEARLY_CONSTANT = 0.99
"""Share of one value in the reference from which a number is compared as usual or other."""
SUMMARY_BYTES = 16 << 10
"""Columns listed in the result, which travels through Temporal; the report blob has all."""
HTML_COLUMNS = 100
MOST_BROKEN = 20
MISSING = "missing"
SMALL = 1000
"""Rows up to which Evidently too prefers a test over a distance; here of the smaller side."""
SIGNIFICANCE = 0.01
"""Of those tests. At Evidently's 0.05 a model of one column would be trained again every twentieth quiet window."""
FILLED = 10
"""Rows for each category up to which a distance says more of the sample than of what it is drawn from."""
DISTANCE = 0.1
"""Evidently's threshold of distances."""
CONTINGENCY = "two_sample_chisquare"
NAMES = {"ks": "K-S p_value", CONTINGENCY: "two-sample chi-square or Fisher p_value"}
OUTER = 0.005
"""Share of the reference on each side beyond which a number counts as the quantile, where a distance decides."""
EXPECTED = 5.0
"""Rows that a category should have on each side for chi-square to hold; rarer ones count as one."""


@dataclass(frozen=True)
class Pair:
    """One column of both sides, ready to compare. Both arrays are float64 or both are text."""

    name: str
    numeric: bool
    reference: NDArray[Any]
    current: NDArray[Any]


def measure(request: DriftRequest, job: Job) -> DriftReport:
    """Compare the window's rows with the reference, up to 50,000 seeded rows of each."""
    window = _window(request, job)
    signature, current, seconds, rows = window.signature, window.columns, window.seconds, window.rows
    if rows < request.minimum_rows:
        reason = f"{rows} rows in the window, {request.minimum_rows} are needed"
        print(reason)
        return DriftReport(
            window=request.window, rows=rows, reference_rows=0, columns=(), share=0.0, insufficient=reason
        )
    reference, reference_rows = _reference(request, job, signature)
    pairs = _pairs(signature, reference, current, seconds)
    found, evidence = judge(pairs, job)
    share = sum(column.drifted for column in found) / len(found) if found else 0.0
    for column in sorted(found, key=lambda each: (not each.drifted, each.column)):
        word = "drifted" if column.drifted else "steady"
        print(f"{word}: {column.column!r} {column.score:.4g} (threshold {column.threshold:g}, {column.method})")
    print(f"{len(seconds):,} of {rows:,} rows against {reference_rows:,}: {share:.0%} of {len(found)} columns drifted")
    measures, broken = _beside(request, job, window, reference)
    report = {
        "measures": [measure.model_dump() for measure in measures],
        "broken": [each.model_dump() for each in broken],
        "distributions": {pair.name: distribution(pair.numeric, pair.reference, pair.current) for pair in pairs},
        "window": request.window.model_dump(mode="json"),
        "rows": rows,
        "reference_rows": reference_rows,
        "share": share,
        "columns": [column.model_dump() for column in found],
        "evidently": evidence,
    }
    return DriftReport(
        window=request.window,
        rows=rows,
        reference_rows=reference_rows,
        columns=_bounded(found),
        share=share,
        report=job.artifacts.put(json.dumps(report, indent=1).encode(), "drift.json"),
        measures=tuple(measures),
        broken=tuple(broken[:MOST_BROKEN]),
    )


def _beside(
    request: DriftRequest, job: Job, window: "Sampled", reference: Columns
) -> tuple[list[Measure], list[Break]]:
    """What is looked at beside the columns' drift. Nothing, where the workflow that asks does not know of it."""
    if request.monitor is None:
        return [], []
    measures, broken = measures_of(window.signature, reference, window.columns, request.monitor)
    answers = answers_of(window.signature, window.answers, evaluation_of(job, request.evaluation))
    measures = [*([answers] if answers else []), *measures]
    for measure in measures:
        print(f"{'over' if measure.over else 'within bounds'}: {measure.why}")
    for each in broken:
        print(f"broken: {each.column!r}: {each.why}")
    return measures, broken


def word(name: str, numeric: bool, then: NDArray[Any], now: NDArray[Any]) -> ColumnDrift:
    """Evidently's word on one pair of samples."""
    return judge([Pair(name, numeric, then, now)])[0][0]


def render(request: DriftRequest, job: Job) -> Blob:
    """Evidently's HTML of the same samples. Show it only in a sandboxed frame."""
    window = _window(request, job)
    signature, current, seconds = window.signature, window.columns, window.seconds
    if not window.rows:
        raise DatasetMissing("the window has no predictions", field="window", hint="choose a window that was checked")
    reference, _ = _reference(request, job, signature)
    pairs = _pairs(signature, reference, current, seconds)
    return job.artifacts.put(render_html(pairs), "drift.html")


def _bounded(columns: Sequence[ColumnDrift]) -> tuple[ColumnDrift, ...]:
    """Drifted columns first, as many as a result that travels through Temporal may list."""
    kept, size = [], 0
    for column in sorted(columns, key=lambda each: not each.drifted):
        size += len(column.model_dump_json())
        if size > SUMMARY_BYTES:
            break
        kept.append(column)
    return tuple(kept)


# --- the two samples ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampled:
    """A window: a sample of its rows as raw columns, with their event times in seconds and the champion's answers."""

    signature: Signature
    rows: int
    """Of the window."""
    columns: Columns
    seconds: NDArray[np.float64]
    answers: Answers


def _window(request: DriftRequest, job: Job) -> Sampled:
    signature = Signature.model_validate_json(job.artifacts.get(request.champion.signature))
    folder = job.predictions_dir / request.project / request.model
    parts = request.log if request.log is not None else on_disk(folder)
    logged = Logged(folder, parts, request.window, signatures_of(parts, job.artifacts), signature)
    places = logged.sample(MOST_ROWS, request.seed)
    answers = logged.table(("version", ANSWER[signature.task]), places)
    own = answers["version"].to_numpy() == request.champion.version
    return Sampled(
        signature=signature,
        rows=logged.rows,
        columns=logged.columns(signature, places),
        seconds=logged.seconds[places],
        answers=answers[ANSWER[signature.task]].filter(own).drop_null().to_numpy(zero_copy_only=False),
    )


def _reference(request: DriftRequest, job: Job, signature: Signature) -> tuple[Columns, int]:
    blob = Blob(sha256=request.reference_sha256, size_bytes=0)
    with job.artifacts.open_local(blob) as path:
        table = pyarrow.parquet.read_table(path, memory_map=False, use_threads=False)
    names = [entry.name for entry in signature.fields if entry.name in table.column_names]
    columns = Rows(table.select(names), ()).arrays(names)
    if signature.time and signature.time in table.column_names:
        columns[EVENT] = event_seconds(Rows(table, ()), signature.time)
    return columns, int(table.num_rows)


EVENT = "everloop: event time"


def _pairs(signature: Signature, reference: Columns, current: Columns, seconds: NDArray[np.float64]) -> list[Pair]:
    pairs = []
    for entry in signature.fields:
        if entry.name == signature.time or entry.name not in reference:
            continue
        if entry.kind == "category" and not entry.known:
            continue  # free text: every row has its own
        before, now = reference[entry.name], current[entry.name]
        if entry.kind == "datetime":
            if EVENT not in reference:
                continue  # nothing to measure a date from
            before, now = (reference[EVENT] - before) / DAY, (seconds - now) / DAY
        pairs.append(_pair(entry, before, now))
    return pairs


def _pair(entry: Field, before: NDArray[Any], now: NDArray[Any]) -> Pair:
    if entry.kind == "category":
        return Pair(entry.name, numeric=False, reference=_named(before), current=_named(now))
    usual = _usual(before)
    if entry.kind == "boolean" or usual is not None:
        return Pair(entry.name, numeric=False, reference=_worded(before, usual), current=_worded(now, usual))
    return Pair(entry.name, numeric=True, reference=before, current=now)


def _named(values: NDArray[Any]) -> NDArray[Any]:
    """Not grouped into what training knew and others: what was known was chosen from the reference itself."""
    return np.array([value or MISSING for value in values.tolist()], object)


def _usual(values: NDArray[np.float64]) -> float | None:
    """The value that nearly every row has, or None."""
    filled = values[np.isfinite(values)]
    if not len(filled):
        return None
    distinct, counts = np.unique(filled, return_counts=True)
    return float(distinct[counts.argmax()]) if counts.max() >= NEARLY_CONSTANT * len(filled) else None


def _worded(values: NDArray[np.float64], usual: float | None) -> NDArray[Any]:
    words = [MISSING if np.isnan(value) else (f"{value:g}" if usual in (None, value) else "other") for value in values]
    return np.array(words, object)


# --- Evidently ----------------------------------------------------------------------------------


def judge(pairs: Sequence[Pair], job: Job | None = None) -> tuple[list[ColumnDrift], list[Any]]:
    """Evidently's word on each pair, and its JSON. A side without any value is told without Evidently.

    Of a number with missing values the share of the missing is asked too: the other methods pass them over.
    """
    found: dict[str, ColumnDrift] = {}
    asked: list[Pair] = []
    for pair in pairs:
        told = _without_values(pair)
        if told is None:
            asked.append(_cut(pair))
        else:
            found[pair.name] = told
    shares = {pair.name: Pair(pair.name, False, *_filled(pair)) for pair in asked if _has_missing(pair)}
    evidence = _ask([*asked, *shares.values()], job) if asked or shares else []
    for pair, (told, _) in zip(asked, evidence[: len(asked)], strict=True):
        found[pair.name] = told
    for name, (told, _) in zip(shares, evidence[len(asked) :], strict=True):
        if told.drifted and not found[name].drifted:
            found[name] = told.model_copy(update={"method": f"share of missing values, {told.method}"})
    return [found[pair.name] for pair in pairs], [metric for _, metric in evidence]


def _has_missing(pair: Pair) -> bool:
    return pair.numeric and not all(np.isfinite(side).all() for side in (pair.reference, pair.current))


def _filled(pair: Pair) -> list[NDArray[Any]]:
    return [np.where(np.isfinite(side), "there", MISSING).astype(object) for side in (pair.reference, pair.current)]


def _cut(pair: Pair) -> Pair:
    """Numbers beyond the reference's outer quantiles count as these.

    A distance in units of its standard deviation would else be blind where some 999999999 stand for "unknown", and
    alarmed by a single one.
    """
    if not pair.numeric or _is_small(pair):
        return pair
    low, high = np.quantile(pair.reference[np.isfinite(pair.reference)], (OUTER, 1 - OUTER))
    if low == high:
        return pair
    return Pair(pair.name, True, np.clip(pair.reference, low, high), np.clip(pair.current, low, high))


def _without_values(pair: Pair) -> ColumnDrift | None:
    if not pair.numeric:
        return None
    empty = [not np.isfinite(side).any() for side in (pair.reference, pair.current)]
    if not any(empty):
        return None
    alone = all(empty)
    method = "no values on either side" if alone else "no values on one side"
    return ColumnDrift(
        column=pair.name, method=method, score=0.0 if alone else 1.0, threshold=DISTANCE, drifted=not alone
    )


def _ask(pairs: Sequence[Pair], job: Job | None) -> list[tuple[ColumnDrift, dict[str, Any]]]:
    if job is not None:
        job.report(1, columns=len(pairs))
    with _undrawn():
        told = _told(pairs)
    return [(_word(pair, *of), of[0] | {"column": pair.name}) for pair, of in zip(pairs, told, strict=True)]


def _word(pair: Pair, metric: dict[str, Any], test: dict[str, Any]) -> ColumnDrift:
    config = metric["config"]
    return ColumnDrift(
        column=pair.name,
        method=NAMES.get(config["method"], str(config["method"])),
        score=float(metric["value"]),
        threshold=float(config["threshold"]),
        drifted=test["status"] == "FAIL",
    )


def _told(pairs: Sequence[Pair]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Metric and test of each pair.

    Evidently fails as a whole on numbers that a float cannot cut into bins (all near 1e18, say): then each column
    is asked alone, and such a one in standard units, which no method of Evidently's minds.
    """
    try:
        return _metrics(pairs)
    except Exception as error:  # Evidently's: asked alone, the column that it stumbles over is known
        if len(pairs) > 1:
            return [told for pair in pairs for told in _told([pair])]
        with naming(column=pairs[0].name):
            if not isinstance(error, ValueError):
                raise
            return _metrics([_standardized(pairs[0])])


def _metrics(pairs: Sequence[Pair]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    told = json.loads(_report(pairs, [f"c{place}" for place in range(len(pairs))]).json())
    return list(zip(told["metrics"], told["tests"], strict=True))


def _standardized(pair: Pair) -> Pair:
    if not pair.numeric:
        return pair
    filled = pair.reference[np.isfinite(pair.reference)]
    middle, width = np.median(filled), np.std(filled) or 1.0
    sides = [np.clip((side - middle) / width, -1e6, 1e6) for side in (pair.reference, pair.current)]
    return Pair(pair.name, numeric=True, reference=sides[0], current=sides[1])


@contextmanager
def _undrawn() -> Iterator[None]:
    """In the block Evidently draws no figures: three quarters of a check's time, for pictures that nobody asked for."""
    with on_demand(*GATHERED_BY_EVIDENTLY):
        from evidently.metrics.column_statistics import ValueDriftCalculation

    draw = ValueDriftCalculation._render  # noqa: SLF001
    ValueDriftCalculation._render = lambda *_: []  # noqa: SLF001
    try:
        yield
    finally:
        ValueDriftCalculation._render = draw  # noqa: SLF001


def _report(pairs: Sequence[Pair], names: Sequence[str]) -> Any:  # noqa: ANN401  # Evidently's Snapshot
    """Run `ValueDrift` on each pair under a safe name: a column's own name may mean something to Evidently."""
    with on_demand(*GATHERED_BY_EVIDENTLY):
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

    _register_contingency()
    numeric = [name for name, pair in zip(names, pairs, strict=True) if pair.numeric]
    categories = [name for name, pair in zip(names, pairs, strict=True) if not pair.numeric]
    definition = DataDefinition(numerical_columns=numeric, categorical_columns=categories)
    sides = [
        Dataset.from_pandas(_frame(names, values), data_definition=definition)
        for values in ([pair.current for pair in pairs], [pair.reference for pair in pairs])
    ]
    methods = [method_and_threshold(pair) for pair in pairs]
    asked = [
        ValueDrift(column=name, method=method, threshold=threshold)
        for name, (method, threshold) in zip(names, methods, strict=True)
    ]
    return Report(asked, include_tests=True).run(sides[0], sides[1])


def _frame(names: Sequence[str], values: Sequence[NDArray[Any]]) -> pd.DataFrame:
    """Texts as categories: Evidently looks at each value again and again, and so it looks at a number."""
    return pd.DataFrame(
        {name: pd.Categorical(side) if side.dtype == object else side for name, side in zip(names, values, strict=True)}
    )


def method_and_threshold(pair: Pair) -> tuple[str | None, float | None]:
    """Evidently's name of the test for *pair*, and from where it has drifted; None for what Evidently takes itself.

    Evidently's chi-square takes the reference for the truth and not for a sample: ours compares two samples.
    The squared Jensen-Shannon distance of two samples of the same categories is about (categories - 1) / 8 times the
    sum of 1 / rows, by chance alone: that much is allowed on top.
    """
    if pair.numeric:
        return ("ks", SIGNIFICANCE) if _is_small(pair) else (None, None)
    rows = [len(side) for side in (pair.reference, pair.current)]
    categories = len(set(pair.reference.tolist()) | set(pair.current.tolist()))
    if min(rows) <= max(SMALL, FILLED * categories):
        return CONTINGENCY, SIGNIFICANCE
    by_chance = (categories - 1) / 8 * sum(1 / size for size in rows)
    return None, math.sqrt(DISTANCE**2 + by_chance)


def _is_small(pair: Pair) -> bool:
    """Has either side of the numbers so few values that a test decides and no distance?"""
    return min(int(np.isfinite(side).sum()) for side in (pair.reference, pair.current)) <= SMALL


def _register_contingency() -> None:
    """Make our test known to Evidently by its name."""
    from evidently.legacy.calculations.stattests.registry import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    register_stattest(
        StatTest(
            name=CONTINGENCY,
            display_name=NAMES[CONTINGENCY],
            allowed_feature_types=[ColumnType.Categorical],
            default_threshold=SIGNIFICANCE,
        ),
        _contingency,
    )


def _contingency(reference: pd.Series, current: pd.Series, _: object, threshold: float) -> tuple[float, bool]:
    """The p-value of both samples having the same shares of categories, and whether it is below *threshold*."""
    from scipy.stats import chi2_contingency, fisher_exact

    table = _table(pd.concat([reference.value_counts(), current.value_counts()], axis=1).fillna(0).to_numpy().T)
    if table.shape[1] < 2:  # noqa: PLR2004
        value = 1.0
    elif table.shape[1] == 2:  # noqa: PLR2004
        value = float(fisher_exact(table).pvalue)  # exact, also for what is rare
    else:
        value = float(chi2_contingency(table, correction=False).pvalue)
    return value, value < threshold


def _table(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows of each side by category, [2, categories], the rare ones of both sides together as one."""
    expected = counts.sum(axis=0) / counts.sum() * counts.sum(axis=1).min()
    order = np.argsort(expected, kind="stable")
    counts, expected = counts[:, order], np.cumsum(expected[order])
    lump = int(np.searchsorted(expected, EXPECTED)) + 1 if expected[0] < EXPECTED else 1
    while lump < len(expected) and expected[lump] - expected[lump - 1] < EXPECTED:
        lump += 1
    if len(expected) - lump < 1:
        lump = max(len(expected) - 1, 1)  # two columns are judged exactly
    return np.column_stack([counts[:, :lump].sum(axis=1), counts[:, lump:]]).astype(np.int64)


# --- the picture --------------------------------------------------------------------------------

UNSAFE = re.compile(r"[^\w .,:;()+*/=%-]")


def render_html(pairs: Sequence[Pair]) -> bytes:
    """Evidently's HTML of the pairs, at most 100 of them.

    Evidently writes names and values into a script: `</script>` in the data would end it, and what follows would
    run. So every character that could mean something there is replaced.
    """
    shown = [_harmless(pair) for pair in pairs[:HTML_COLUMNS] if _without_values(pair) is None]
    if not shown:
        return b"<!doctype html><title>Drift</title><p>No column has values on both sides.</p>"
    names = _unique([pair.name for pair in shown])
    text: str = _report(shown, names).get_html_str(as_iframe=False)
    return text.encode("utf-8", "replace")


def _harmless(pair: Pair) -> Pair:
    if pair.numeric:
        return Pair(safe(pair.name), numeric=True, reference=pair.reference, current=pair.current)
    make: Callable[[Any], str] = lambda value: safe(str(value))  # noqa: E731
    sides = [np.array([make(value) for value in side.tolist()], object) for side in (pair.reference, pair.current)]
    return Pair(safe(pair.name), numeric=False, reference=sides[0], current=sides[1])


def safe(text: str) -> str:
    """*text* without anything that HTML, a script or a template could take for its own."""
    return UNSAFE.sub("\N{MIDDLE DOT}", text)[:100] or "(empty)"


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return made
