"""The two samples of a check: rows of the window, and of the reference, column by column ready to compare."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from activities.compute import Job
from activities.compute.data import Table as Rows
from activities.compute.data import event_seconds
from activities.compute.drift.methods import MISSING, Pair
from activities.compute.features import DAY
from activities.compute.inference import Columns
from activities.compute.measures import ANSWER, Answers
from activities.compute.predictions import Logged, signatures_of
from everloop.contracts import DriftRequest
from everloop.predictions import on_disk
from everloop.records import Blob, Field, Signature

MOST_ROWS = 50_000
NEARLY_CONSTANT = 0.99
"""Share of one value in the reference from which a number is compared as usual or other."""
EVENT = "everloop: event time"


@dataclass(frozen=True)
class Sampled:
    """A window: a sample of its rows as raw columns, with their event times in seconds and the champion's answers."""

    signature: Signature
    rows: int
    """Of the window."""
    columns: Columns
    seconds: NDArray[np.float64]
    answers: Answers


def window_of(request: DriftRequest, job: Job) -> Sampled:
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


def reference_of(request: DriftRequest, job: Job, signature: Signature) -> tuple[Columns, int]:
    blob = Blob(sha256=request.reference_sha256, size_bytes=0)
    with job.artifacts.open_local(blob) as path:
        table = pyarrow.parquet.read_table(path, memory_map=False, use_threads=False)
    names = [entry.name for entry in signature.fields if entry.name in table.column_names]
    columns = Rows(table.select(names), ()).arrays(names)
    if signature.time and signature.time in table.column_names:
        columns[EVENT] = event_seconds(Rows(table, ()), signature.time)
    return columns, int(table.num_rows)


def pairs_of(signature: Signature, reference: Columns, current: Columns, seconds: NDArray[np.float64]) -> list[Pair]:
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
        pairs.append(pair_of(entry, before, now))
    return pairs


def pair_of(entry: Field, before: NDArray[Any], now: NDArray[Any]) -> Pair:
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
