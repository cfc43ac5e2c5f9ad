"""Windows of shuffled flights, of which none has moved: whatever is said to be over, is a false alarm.

Ten streams are of one version, which learned other rows of the same year; each is watched as the product watches, with
labels for every row.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from bench.drift.loop import Loop, Part, quiet, spec_of

WINDOWS, WINDOW_ROWS = 20, 1000
LEARNED_ROWS = 40_000
BY_LABELS = ("performance", "target")
ALARMS = ("drifted", "quarantined", "predictions", "missing", "new_categories", "out_of_range", "schema", *BY_LABELS)
"""What may be said falsely of a window: `drifted` by its share of columns, the others as the measures are called."""
START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def streams(chosen: Sequence[int], folder: Path) -> dict[str, float]:
    """Counts over the windows of these streams, by what is said to be over; each stream has rows of its own."""
    from examples.flights import FEATURES, TARGET, TIME, load

    rows = pd.concat(load(None, 0).values()).sample(frac=1, random_state=chosen[0])
    start = START - LEARNED_ROWS * timedelta(minutes=1)
    learned = Part("learned", _timed(rows[:LEARNED_ROWS], TIME, start, timedelta(minutes=1)), start, START)
    spec = spec_of(
        "flights", "binary", TARGET, TIME, "auc", features={"include": list(FEATURES)},
        monitor={"window": "day", "share": 0.4},
    )  # fmt: skip
    loop = Loop(spec, [learned], folder)
    job = loop.begin()
    with quiet():
        version = loop.version(job, None, 1)
    counted: Counter[str] = Counter(dict.fromkeys(("windows", "labelled", "asked", "columns", *ALARMS), 0))
    for place in range(len(chosen)):
        at = LEARNED_ROWS + place * WINDOWS * WINDOW_ROWS
        _watched(loop, job, version, rows[at : at + WINDOWS * WINDOW_ROWS], counted)
        shutil.rmtree(job.predictions_dir)
    return dict(counted)


def _timed(rows: pd.DataFrame, name: str, start: datetime, step: timedelta) -> pd.DataFrame:
    moments = [f"{start + place * step:%Y-%m-%dT%H:%M:%S}Z" for place in range(len(rows))]
    return rows.assign(**{name: moments}).reset_index(drop=True)


def _watched(loop: Loop, job: Any, version: dict[str, Any], rows: pd.DataFrame, counted: Counter[str]) -> None:
    from examples.flights import TIME

    for number in range(WINDOWS):
        start = START + number * DAY
        own = rows[number * WINDOW_ROWS : (number + 1) * WINDOW_ROWS]
        part = Part(f"d{number}", _timed(own, TIME, start, DAY / WINDOW_ROWS), start, start + DAY)
        loop.score(job, version, part, log=True)
        with quiet():
            report = loop.report(job, version, part)
        moved = sum(column.drifted for column in report.columns)
        counted.update(windows=1, asked=len(report.columns), columns=moved)
        counted.update(drifted=report.share >= loop.monitor.share, quarantined=bool(report.broken))
        counted.update({measure.name: int(measure.over) for measure in report.measures})
    for told, is_worse in _labelled(loop, job, version, rows):
        counted.update(labelled=1, performance=is_worse, target=bool(told.target and told.target.over))


def _labelled(loop: Loop, job: Any, version: dict[str, Any], rows: pd.DataFrame) -> list[tuple[Any, bool]]:
    """What the labels say of each window, and whether that is worse than at the evaluation."""
    from activities.compute import performance
    from activities.labels import is_worse
    from everloop.contracts import PerformanceRequest
    from everloop.labels import LabelLog, labels_of
    from everloop.records import Slot
    from everloop.store import PerformanceRow
    from examples.flights import TARGET

    labels = LabelLog(job.predictions_dir / "default" / "flights")
    items = [
        {"request_id": f"d{place // WINDOW_ROWS}-{place % WINDOW_ROWS}", "row": 0, "label": int(value)}
        for place, value in enumerate(rows[TARGET])
    ]
    for at in range(0, len(items), 10_000):
        labels.append(labels_of(items[at : at + 10_000], version["signature"], datetime.now(UTC)))
    with quiet():
        report = performance.measure(
            PerformanceRequest(
                project="default", model="flights", champion=version["record"], evaluation=version["evaluation"],
                metric="auc", size="day", until=START + WINDOWS * DAY, labels_bytes=labels.size(),
                minimum_rows=100, seed=0, slot=Slot(device="cpu0", token=1, holder="bench/run"),
            ),
            job,
        )  # fmt: skip
    found = []
    for told in report.windows:
        figures = told.model_dump(include={"version", "rows", "labelled", "metric", "value", "low", "high"})
        row = PerformanceRow(
            **figures, project="default", model="flights", window_start=told.window.start, window_end=told.window.end,
            measured_at=datetime.now(UTC), expected=version["expected"][told.metric],
        )  # fmt: skip
        found.append((told, is_worse(row, loop.monitor, version["tested"])))
    return found
