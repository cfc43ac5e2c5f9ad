# ruff: noqa: T201  # what a job prints is its log
"""What do the labels say? Each prediction joined with what became of it, window by window."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from activities.compute import Job
from activities.compute.drift import word
from activities.compute.evaluation import scores
from activities.compute.features import Floats
from activities.compute.measures import evaluation_of, labels_drift
from activities.compute.predictions import Logged, signatures_of
from activities.compute.predictions.columns import FEATURE
from activities.compute.resampling import interval
from everloop.contracts import PerformanceRequest
from everloop.labels import LabelLog, Name, columns_of, names_of
from everloop.predictions import on_disk
from everloop.records import PerformanceReport, Signature, Window, WindowPerformance
from everloop.windows import window_of

MOST_WINDOWS = 60
"""Of which the labels are told: the newest."""
REPORT_BYTES = 24 << 10
"""Windows listed in the result, which travels through Temporal twice."""
ALONE = 0.9
"""Share of the labelled rows of a window that one version must have answered to be judged by them."""
EVER = datetime(1500, 1, 1, tzinfo=UTC)


@dataclass
class Known:
    """The last label of each name, and which of them a prediction has."""

    values: dict[Name, tuple[int, str | float]] = field(default_factory=dict)
    columns: set[tuple[str, ...]] = field(default_factory=set)
    """Sets of columns that labels name rows by."""
    corrected: int = 0
    joined: set[Name] = field(default_factory=set)

    def label(self, row: Mapping[str, Any]) -> str | float | None:
        """Of the names of *row* that have a label, the one that was told last."""
        found: tuple[int, str | float] | None = None
        for name in names_of(row, self.columns):
            told = self.values.get(name)
            if told is None:
                continue
            self.joined.add(name)
            if found is None or told[0] > found[0]:
                found = told
        return found[1] if found else None


@dataclass
class Rows:
    """The rows of one window so far."""

    rows: int = 0
    labels: list[str | float] = field(default_factory=list)
    answers: list[tuple[int, Any]] = field(default_factory=list)
    """Of the labelled ones: version, and value or probabilities in the order of its classes."""

    @property
    def versions(self) -> Counter[int]:
        return Counter(version for version, _ in self.answers)


def measure(request: PerformanceRequest, job: Job) -> PerformanceReport:
    """Performance of the newest windows that have labels, with an interval, and how far the labels have moved."""
    signature = Signature.model_validate_json(job.artifacts.get(request.champion.signature))
    folder = job.predictions_dir / request.project / request.model
    known = _known(LabelLog(folder), request.labels_bytes)
    parts = request.log if request.log is not None else on_disk(folder)
    signatures = signatures_of(parts, job.artifacts)
    logged = Logged(folder, parts, Window(start=EVER, end=request.until), signatures, signature)
    windows, scanned = _joined(logged, known, signature, request.size)
    evaluation = evaluation_of(job, request.evaluation)
    told: list[WindowPerformance] = []
    size = 0
    for window in sorted(windows, key=lambda each: each.start, reverse=True):
        if len(told) == MOST_WINDOWS:
            break
        found = _performance(request, signature, signatures, window, windows[window], evaluation)
        if found is None:
            continue
        size += len(found.model_dump_json())
        if size > REPORT_BYTES:
            break
        told.append(found)
    waiting = len(known.values) - len(known.joined)
    print(f"{len(known.values):,} labels; {len(known.joined):,} have their prediction, {waiting:,} wait for it")
    for each in reversed(told):
        span = f"{each.metric} {each.value:.4g} ({each.low:.4g} to {each.high:.4g})"
        print(f"{each.window.start:%Y-%m-%d %H:%M}: {span}, {each.labelled:,} of {each.rows:,} rows labelled")
    return PerformanceReport(
        windows=tuple(told[::-1]),
        labels=len(known.values),
        joined=len(known.joined),
        corrected=known.corrected,
        scanned=scanned,
    )


def _known(log: LabelLog, until: int) -> Known:
    known = Known()
    for place, label in enumerate(log.read(until)):
        known.corrected += label.name in known.values
        known.values[label.name] = (place, label.value)
        columns = columns_of(label.name)
        if columns:
            known.columns.add(columns)
    return known


def _joined(logged: Logged, known: Known, signature: Signature, size: str) -> tuple[dict[Window, Rows], int]:
    """Rows by their window, of which those with a label are kept."""
    windows: dict[Window, Rows] = {}
    answer = "value" if signature.task == "regression" else "probabilities"
    features = sorted({column for chosen in known.columns for column in chosen})
    wanted = ["request_id", "row", "key", "event_time", "version", answer, *(FEATURE + name for name in features)]
    window: Window | None = None
    for batch in logged.batches(wanted):
        for row in batch.to_pylist():
            moment = row["event_time"]
            if window is None or not window.start <= moment < window.end:
                window = window_of(moment, size)
            of = windows.setdefault(window, Rows())
            of.rows += 1
            label = known.label(row)
            if label is not None:
                of.labels.append(label)
                of.answers.append((row["version"], row[answer]))
    return windows, logged.rows


def _performance(  # noqa: PLR0917
    request: PerformanceRequest,
    signature: Signature,
    signatures: Mapping[int, Signature],
    window: Window,
    of: Rows,
    evaluation: Mapping[str, Any],
) -> WindowPerformance | None:
    """None where too few rows have a label, or an answer that can be judged by it."""
    if len(of.labels) < request.minimum_rows:
        return None
    values, answers, labels = _sides(signature, signatures, of)
    if len(values) < request.minimum_rows:
        return None
    found = scores(signature.task, values, answers)
    metric = request.metric if request.metric in found else next(iter(found))
    low, high = interval(signature.task, metric, values, answers, request.seed)
    version, answered = of.versions.most_common(1)[0]
    then = (evaluation.get("sample") or {}).get("labels") or ()
    return WindowPerformance(
        window=window,
        version=version,
        alone=answered >= ALONE * of.versions.total(),
        rows=of.rows,
        labelled=len(values),
        metric=metric,
        value=found[metric],
        low=min(low, found[metric]),
        high=max(high, found[metric]),
        target=labels_drift(signature, then, labels, word),
    )


def _sides(
    signature: Signature, signatures: Mapping[int, Signature], of: Rows
) -> tuple[Floats, Floats, Sequence[str | float]]:
    """Labels and answers that can be compared, and these labels as they were told."""
    pairs = [(label, *answer) for label, answer in zip(of.labels, of.answers, strict=True) if answer[1] is not None]
    if signature.task == "regression":
        values = np.array([float(label) for label, _, _ in pairs])
        return values, np.array([value for _, _, value in pairs], np.float64), values.tolist()
    # A class that no version knew has probability 0 in every answer.
    classes = list(dict.fromkeys([*signature.classes, *(str(label) for label, _, _ in pairs)]))
    places = {label: place for place, label in enumerate(classes)}
    values = np.array([places[str(label)] for label, _, _ in pairs], np.float64)
    answers = np.zeros((len(pairs), len(classes)))
    own = {version: [places.get(name, -1) for name in made.classes] for version, made in signatures.items()}
    usual = [places[name] for name in signature.classes]
    for row, (_, version, told) in enumerate(pairs):
        for place, probability in zip(own.get(version, usual), told, strict=False):
            if place >= 0:
                answers[row, place] = probability
    return values, answers, [str(label) for label, _, _ in pairs]
