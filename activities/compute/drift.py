# ruff: noqa: T201  # what a job prints is its log
"""Has what is asked for moved away from what was learned? Evidently decides, column by column.

Traps that this file is shaped around: the preset computes everything three times (so: `ValueDrift` per column);
a column that is nearly constant gives a normed distance without bound (so: it is compared as usual or other);
a date moves on by itself (so: its distance from the event is compared, and the event time not at all);
a distance between two samples of the same thing grows as they shrink, and Evidently looks at the reference's size
only (so: where either side is small, or the categories are many, a test of two samples decides; see `method_of`).
"""

import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
from numpy.typing import NDArray

from activities.compute import GATHERED_BY_EVIDENTLY, Job, on_demand
from activities.compute.data import Table as Rows
from activities.compute.data import array_of, event_seconds
from activities.compute.features import DAY
from activities.compute.inference import Columns, read_loosely
from everloop.contracts import DriftRequest
from everloop.errors import DatasetMissing
from everloop.predictions import PredictionLog
from everloop.records import Blob, ColumnDrift, DriftReport, Field, Signature

MOST_ROWS = 50_000
NEARLY_CONSTANT = 0.99
"""Share of one value in the reference from which a number is compared as usual or other."""
SUMMARY_BYTES = 16 << 10
"""Columns listed in the result, which travels through Temporal; the report blob has all."""
HTML_COLUMNS = 100
MISSING = "missing"
SMALL = 1000
"""Rows up to which Evidently too prefers a test over a distance; here of the smaller side."""
SIGNIFICANCE = 0.01
"""Of those tests. At Evidently's 0.05 a model of one column would be trained again every twentieth quiet window."""
NOISE = 0.05
"""Jensen-Shannon distance, half the threshold: what two samples of the same categories may have by chance alone."""
CONTINGENCY = "two_sample_chisquare"
NAMES = {"ks": "K-S p_value", CONTINGENCY: "two-sample chi-square p_value"}
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
    signature, current, seconds = _window(request, job)
    rows = len(seconds)
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
    print(f"{rows:,} rows against {reference_rows:,}: {share:.0%} of {len(found)} columns drifted")
    report = {
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
    )


def render(request: DriftRequest, job: Job) -> Blob:
    """Evidently's HTML of the same samples. Show it only in a sandboxed frame."""
    signature, current, seconds = _window(request, job)
    if not len(seconds):
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


def _window(request: DriftRequest, job: Job) -> tuple[Signature, Columns, NDArray[np.float64]]:
    """The signature, the window's raw columns and each row's event time in seconds."""
    signature = Signature.model_validate_json(job.artifacts.get(request.champion.signature))
    log = PredictionLog(job.predictions_dir / request.project / request.model)
    rows = sample(log.read(request.window), MOST_ROWS, request.seed)
    features: list[Mapping[str, object]] = [row["features"] for row in rows]
    columns = {entry.name: _logged(entry, features) for entry in signature.fields}
    seconds = np.array([datetime.fromisoformat(row["event_time"]).timestamp() for row in rows], np.float64)
    return signature, columns, seconds


def sample(rows: Iterable[dict[str, Any]], most: int, seed: int) -> list[dict[str, Any]]:
    """At most *most* of the rows, each as likely as the other; the same rows in the same order for the same seed."""
    chosen: list[dict[str, Any]] = []
    draw = random.Random(seed)  # noqa: S311  # a sample, not a secret
    for place, row in enumerate(rows):
        if place < most:
            chosen.append(row)
            continue
        other = draw.randrange(place + 1)
        if other < most:
            chosen[other] = row
    return chosen


def _logged(entry: Field, features: Sequence[Mapping[str, object]]) -> NDArray[Any]:
    """A field's logged values. A row of an earlier version may lack it, or have it as another kind: missing."""
    values = [read_loosely(entry, row.get(entry.name)) for row in features]
    return np.array(values, object if entry.kind == "category" else np.float64)


def _reference(request: DriftRequest, job: Job, signature: Signature) -> tuple[Columns, int]:
    blob = Blob(sha256=request.reference_sha256, size_bytes=0)
    with job.artifacts.open_local(blob) as path:
        table = pyarrow.parquet.read_table(path, memory_map=False, use_threads=False)
    names = [entry.name for entry in signature.fields if entry.name in table.column_names]
    columns = {name: array_of(table[name]) for name in names}
    if signature.time and signature.time in table.column_names:
        columns[EVENT] = event_seconds(Rows(table, ()), signature.time)
    return columns, int(table.num_rows)


EVENT = "everloop: event time"


def _pairs(signature: Signature, reference: Columns, current: Columns, seconds: NDArray[np.float64]) -> list[Pair]:
    pairs = []
    for entry in signature.fields:
        if entry.name == signature.time or entry.name not in reference:
            continue
        before, now = reference[entry.name], current[entry.name]
        if entry.kind == "datetime":
            if EVENT not in reference:
                continue  # nothing to measure a date from
            before, now = (reference[EVENT] - before) / DAY, (seconds - now) / DAY
        pairs.append(_pair(entry, before, now))
    return pairs


def _pair(entry: Field, before: NDArray[Any], now: NDArray[Any]) -> Pair:
    if entry.kind == "category":
        known = frozenset(entry.known)
        return Pair(entry.name, numeric=False, reference=_named(before, known), current=_named(now, known))
    usual = _usual(before)
    if entry.kind == "boolean" or usual is not None:
        return Pair(entry.name, numeric=False, reference=_worded(before, usual), current=_worded(now, usual))
    return Pair(entry.name, numeric=True, reference=before, current=now)


def _named(values: NDArray[Any], known: frozenset[str]) -> NDArray[Any]:
    """Values that training gave a code of their own; the model cannot tell the others apart, so neither do we."""
    said = [value if value in known else (MISSING if value == "" else "other") for value in values.tolist()]
    return np.array(said, object)


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
    """Evidently's word on each pair, and its JSON. A side without any value is told without Evidently."""
    found: dict[str, ColumnDrift] = {}
    asked: list[Pair] = []
    for pair in pairs:
        told = _without_values(pair)
        if told is None:
            asked.append(pair)
        else:
            found[pair.name] = told
    evidence = _ask(asked, found, job) if asked else []
    return [found[pair.name] for pair in pairs], evidence


def _without_values(pair: Pair) -> ColumnDrift | None:
    if not pair.numeric:
        return None
    empty = [not np.isfinite(side).any() for side in (pair.reference, pair.current)]
    if not any(empty):
        return None
    alone = all(empty)
    method = "no values on either side" if alone else "no values on one side"
    return ColumnDrift(column=pair.name, method=method, score=0.0 if alone else 1.0, threshold=0.1, drifted=not alone)


def _ask(pairs: Sequence[Pair], found: dict[str, ColumnDrift], job: Job | None) -> list[Any]:
    if job is not None:
        job.report(1, columns=len(pairs))
    with _undrawn():
        told = _told(pairs)
    for pair, (metric, test) in zip(pairs, told, strict=True):
        config = metric["config"]
        found[pair.name] = ColumnDrift(
            column=pair.name,
            method=NAMES.get(config["method"], str(config["method"])),
            score=float(metric["value"]),
            threshold=float(config["threshold"]),
            drifted=test["status"] == "FAIL",
        )
    return [metric | {"column": pair.name} for pair, (metric, _) in zip(pairs, told, strict=True)]


def _told(pairs: Sequence[Pair]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Metric and test of each pair.

    Evidently fails as a whole on numbers that a float cannot cut into bins (all near 1e18, say): then each column
    is asked alone, and such a one in standard units, which no method of Evidently's minds.
    """
    try:
        return _metrics(pairs)
    except ValueError:
        if len(pairs) > 1:
            return [told for pair in pairs for told in _told([pair])]
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
        Dataset.from_pandas(pd.DataFrame(dict(zip(names, values, strict=True))), data_definition=definition)
        for values in ([pair.current for pair in pairs], [pair.reference for pair in pairs])
    ]
    asked = [
        ValueDrift(column=name, method=method, threshold=SIGNIFICANCE if method else None)
        for name, method in zip(names, map(method_of, pairs), strict=True)
    ]
    return Report(asked, include_tests=True).run(sides[0], sides[1])


def method_of(pair: Pair) -> str | None:
    """Evidently's name of the test for *pair*, or None for the distance that it takes by itself.

    Evidently's chi-square takes the reference for the truth and not for a sample: ours compares two samples.
    """
    if pair.numeric:
        smaller = min(int(np.isfinite(side).sum()) for side in (pair.reference, pair.current))
        return "ks" if smaller <= SMALL else None
    sizes = [len(side) for side in (pair.reference, pair.current)]
    categories = len(set(pair.reference.tolist()) | set(pair.current.tolist()))
    by_chance = math.sqrt((categories - 1) / 8 * sum(1 / size for size in sizes))
    return CONTINGENCY if min(sizes) <= SMALL or by_chance > NOISE else None


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
    from scipy.stats import chi2_contingency

    counts = pd.concat([reference.value_counts(), current.value_counts()], axis=1).fillna(0).to_numpy().T
    shares = counts.sum(axis=0) / counts.sum()
    often = shares * counts.sum(axis=1).min() >= EXPECTED
    table = np.column_stack([counts[:, often], counts[:, ~often].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    value = float(chi2_contingency(table, correction=False).pvalue) if table.shape[1] > 1 else 1.0
    return value, value < threshold


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
