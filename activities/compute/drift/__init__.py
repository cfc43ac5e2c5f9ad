# ruff: noqa: T201  # what a job prints is its log
"""Has what is asked for moved away from what was learned? Evidently decides, column by column.

Traps that this file is shaped around: the preset computes everything three times (so: `ValueDrift` per column);
a column that is nearly constant gives a normed distance without bound (so: it is compared as usual or other);
a date moves on by itself (so: its distance from the event is compared, and the event time not at all);
a distance between two samples of the same thing grows as they shrink, and Evidently looks at the reference's size
only (so: where either side is small a test of two samples decides, and many categories may differ more by chance).
"""

import json
from collections.abc import Mapping, Sequence

from activities.compute import Job
from activities.compute.drift.judging import judge, word
from activities.compute.drift.methods import Pair
from activities.compute.drift.picture import render_html
from activities.compute.drift.samples import MOST_ROWS, Sampled, pairs_of, reference_of, window_of
from activities.compute.inference import Columns
from activities.compute.measures import answers_of, distribution, evaluation_of, measures_of
from activities.schema_breaks import MOST_BROKEN, schema_of, too_few, unanswered
from everloop.contracts import DriftRequest
from everloop.errors import DatasetMissing
from everloop.predictions.refusals import refused_in
from everloop.records import Blob, Break, ColumnDrift, DriftReport, Measure

__all__ = ["MOST_ROWS", "Pair", "judge", "measure", "render", "render_html", "word"]

SUMMARY_BYTES = 16 << 10
"""Columns listed in the result, which travels through Temporal; the report blob has all."""


def measure(request: DriftRequest, job: Job) -> DriftReport:
    """Compare the window's rows with the reference, up to 50,000 seeded rows of each."""
    window = window_of(request, job)
    signature, current, seconds, rows = window.signature, window.columns, window.seconds, window.rows
    refused = refused_in(job.predictions_dir / request.project / request.model, request.window)
    if rows < request.minimum_rows:
        return _too_few(request, rows, refused)
    reference, reference_rows = reference_of(request, job, signature)
    pairs = pairs_of(signature, reference, current, seconds)
    found, evidence = judge(pairs, job)
    share = sum(column.drifted for column in found) / len(found) if found else 0.0
    for column in sorted(found, key=lambda each: (not each.drifted, each.column)):
        word = "drifted" if column.drifted else "steady"
        print(f"{word}: {column.column!r} {column.score:.4g} (threshold {column.threshold:g}, {column.method})")
    print(f"{len(seconds):,} of {rows:,} rows against {reference_rows:,}: {share:.0%} of {len(found)} columns drifted")
    measures, broken = _beside(request, job, window, reference, refused)
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


def _too_few(request: DriftRequest, rows: int, refused: Mapping[str, int]) -> DriftReport:
    """What was refused may be enough to say that the data is broken."""
    reason = too_few(rows, sum(refused.values()), request.minimum_rows)
    measures, broken = unanswered(refused, rows, request.monitor)
    print("; ".join([reason, *(measure.why for measure in measures)]))
    return DriftReport(
        window=request.window, rows=rows, reference_rows=0, columns=(), share=0.0, insufficient=reason,
        measures=measures, broken=broken,
    )  # fmt: skip


def _beside(
    request: DriftRequest, job: Job, window: Sampled, reference: Columns, refused: Mapping[str, int]
) -> tuple[list[Measure], list[Break]]:
    """What is looked at beside the columns' drift. Nothing, where the workflow that asks does not know of it."""
    if request.monitor is None:
        return [], []
    measures, broken = measures_of(window.signature, reference, window.columns, request.monitor)
    told, gone = schema_of(refused, window.rows, request.monitor)
    measures, broken = [*measures, told], [*broken, *gone]
    answers = answers_of(window.signature, window.answers, evaluation_of(job, request.evaluation))
    measures = [*([answers] if answers else []), *measures]
    for measure in measures:
        print(f"{'over' if measure.over else 'within bounds'}: {measure.why}")
    for each in broken:
        print(f"broken: {each.column!r}: {each.why}")
    return measures, broken


def render(request: DriftRequest, job: Job) -> Blob:
    """Evidently's HTML of the same samples. Show it only in a sandboxed frame."""
    window = window_of(request, job)
    signature, current, seconds = window.signature, window.columns, window.seconds
    if not window.rows:
        raise DatasetMissing("the window has no predictions", field="window", hint="choose a window that was checked")
    reference, _ = reference_of(request, job, signature)
    pairs = pairs_of(signature, reference, current, seconds)
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
