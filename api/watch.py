"""What a model's page draws of its watch: drift, performance, traffic, columns then and now, and what came of it.

Geometry alone: what is drawn stands in a table beside it, with the same figures.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
from sqlmodel import Session, col, select

from api.identity import CLIENT_KEY
from everloop.artifacts import Artifacts
from everloop.errors import EverloopError
from everloop.settings import Settings
from everloop.store import LifecycleRow

if TYPE_CHECKING:
    from api.drift import DriftView
    from api.labels import PerformanceView

log = logging.getLogger(__name__)

WIDTH, HEIGHT = 640.0, 150.0
"""Of a picture, in its own units; labels of the axes stand outside."""
MOST_WINDOWS = 40
MOST_COLUMNS = 12
DATES = 6
ANSWER_SECONDS = 1.0


@dataclass(frozen=True)
class Bar:
    """One window of a picture."""

    x: float
    width: float
    y: float
    height: float
    kind: str
    """Class of the style sheet."""
    says: str


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Bars:
    """Windows side by side."""

    bars: list[Bar]
    dates: list[Tick]
    levels: list[Tick]
    threshold: float | None = None


@dataclass(frozen=True)
class Point:
    """A figure with its interval."""

    x: float
    y: float
    low: float
    high: float
    over: bool
    expected: float | None
    says: str


@dataclass(frozen=True)
class Points:
    """Figures of windows side by side."""

    points: list[Point]
    dates: list[Tick]
    levels: list[Tick]
    step: float


@dataclass(frozen=True)
class Distribution:
    """A column then and now."""

    column: str
    drifted: bool
    method: str
    score: float
    threshold: float
    rows: list[tuple[str, float, float]]
    """What, and the shares of rows then and now."""
    bars: list[tuple[float, float, float, float]]
    """Place of each pair, its width, and both heights."""


@dataclass(frozen=True)
class Trigger:
    """A window that caused, or would have caused, a retraining."""

    window_start: datetime
    why: str
    verdict: str
    lifecycle: str
    outcome: str
    reason: str
    """Of the outcome."""


def _dates(starts: Sequence[datetime], step: float) -> list[Tick]:
    """A few dates below the windows, far enough apart to be read."""
    every = -(-len(starts) // DATES) if starts else 1
    form = "%b %d" if len({start.year for start in starts}) <= 1 else "%b %Y"
    if len({start.date() for start in starts}) < len(starts):
        form = "%d %H:%M"
    return [Tick((place + 0.5) * step, f"{start:{form}}") for place, start in enumerate(starts) if place % every == 0]


def drift_bars(checks: "Sequence[DriftView]", threshold: float | None) -> Bars:
    """The share of drifted columns of the latest windows."""
    shown = checks[-MOST_WINDOWS:]
    step = WIDTH / max(len(shown), 12)
    bars = []
    for place, check in enumerate(shown):
        share = check.share or 0.0
        over = threshold is not None and check.share is not None and check.share >= threshold
        kind = "over" if over else "under" if check.share is not None else "unknown"
        kind = "broken" if check.verdict == "quarantined" else kind
        height = max(HEIGHT * share, 2.0)
        told = f"{share:.0%} of the columns drifted" if check.share is not None else "not measured"
        says = f"{check.window_start:%Y-%m-%d %H:%M}: {told}, {check.verdict.replace('_', ' ')}"
        bars.append(Bar(place * step + step * 0.14, step * 0.72, HEIGHT - height, height, kind, says))
    levels = [Tick(HEIGHT * (1 - share), f"{share:.0%}") for share in (0.0, 0.5, 1.0)]
    line = None if threshold is None else HEIGHT * (1 - threshold)
    return Bars(bars, _dates([check.window_start for check in shown], step), levels, line)


def volume_bars(checks: "Sequence[DriftView]") -> Bars:
    """How many predictions the latest windows hold; what came late stands on top."""
    shown = checks[-MOST_WINDOWS:]
    step = WIDTH / max(len(shown), 12)
    most = max((check.rows + check.late_rows for check in shown), default=0) or 1
    bars = []
    for place, check in enumerate(shown):
        x, width = place * step + step * 0.14, step * 0.72
        height = HEIGHT * check.rows / most
        late = HEIGHT * check.late_rows / most
        refused = next((each["why"] for each in check.measures if each["name"] == "schema" and each["over"]), "")
        says = f"{check.window_start:%Y-%m-%d %H:%M}: {check.rows:,} predictions{refused and f'; {refused}'}"
        bars.append(Bar(x, width, HEIGHT - height, height, "under", says))
        if late:
            bars.append(Bar(x, width, HEIGHT - height - late, late, "late", f"{says}, {check.late_rows:,} came late"))
    levels = [Tick(HEIGHT, "0"), Tick(HEIGHT / 2, f"{most / 2:,.0f}"), Tick(0.0, f"{most:,}")]
    return Bars(bars, _dates([check.window_start for check in shown], step), levels)


def performance_points(rows: "Sequence[PerformanceView]") -> Points | None:
    """The metric of the latest labelled windows, with intervals and what it was at the evaluation."""
    shown = [row for row in rows if row.metric == rows[-1].metric][-MOST_WINDOWS:] if rows else []
    if not shown:
        return None
    values = [value for row in shown for value in (row.low, row.high, row.expected) if value is not None]
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 0.05
    low, high = low - margin, high + margin
    step = WIDTH / max(len(shown), 12)

    def up(value: float) -> float:
        return round(HEIGHT * (high - value) / (high - low), 2)

    points = []
    for place, row in enumerate(shown):
        says = f"{row.window_start:%Y-%m-%d %H:%M}: {row.metric} {row.value:.4g} ({row.low:.4g} to {row.high:.4g})"
        expected = None if row.expected is None else up(row.expected)
        points.append(Point((place + 0.5) * step, up(row.value), up(row.low), up(row.high), row.over, expected, says))
    middle = (low + high) / 2
    levels = [Tick(up(value), f"{value:.3g}") for value in (low + margin, middle, high - margin)]
    return Points(points, _dates([row.window_start for row in shown], step), levels, step)


# --- columns ----------------------------------------------------------------------------------------


def distributions(artifacts: Artifacts, report: str) -> list[Distribution]:
    """The columns of a check's report then and now, what drifted first. None where it does not say them."""
    if not report:
        return []
    try:
        told = json.loads(artifacts.get(report))
    except EverloopError as error:
        log.warning("the report %s of a drift check cannot be read: %s", report[:12], error)
        return []
    columns = {column["column"]: column for column in told.get("columns", ())}
    order = sorted(columns, key=lambda name: (not columns[name]["drifted"], name))
    shown = [name for name in order if name in told.get("distributions", {})][:MOST_COLUMNS]
    return [_distribution(columns[name], told["distributions"][name]) for name in shown]


def _distribution(column: dict[str, Any], made: dict[str, Any]) -> Distribution:
    sides = zip(made["labels"], made["then"], made["now"], strict=True)
    rows = [(str(label), float(before), float(after)) for label, before, after in sides]
    rows = [row for row in rows if row[0] not in ("missing", "others") or row[1] or row[2]]
    most = max((max(row[1:]) for row in rows), default=0.0) or 1.0
    step = 240.0 / max(len(rows), 1)
    bars = [
        (round(place * step + step * 0.08, 1), round(step * 0.42, 1), round(90 * row[1] / most, 1),
         round(90 * row[2] / most, 1))
        for place, row in enumerate(rows)
    ]  # fmt: skip
    return Distribution(
        column=str(column["column"]),
        drifted=bool(column["drifted"]),
        method=str(column["method"]),
        score=float(str(column["score"])),
        threshold=float(str(column["threshold"])),
        rows=rows,
        bars=bars,
    )


# --- what came of it --------------------------------------------------------------------------------


def triggers(session: Session, checks: "Sequence[DriftView]", labels: "Sequence[PerformanceView]") -> list[Trigger]:
    """Every window that was over a threshold, the latest first, and how its retraining ended."""
    found = [
        (check.window_start, check.reason, check.verdict, check.lifecycle)
        for check in checks
        if check.verdict not in ("quiet", "insufficient_data", "failed")
    ]
    found += [(row.window_start, row.reason, row.verdict, row.lifecycle) for row in labels if row.verdict]
    ids = {lifecycle for *_, lifecycle in found if lifecycle}
    ended = select(LifecycleRow).where(col(LifecycleRow.id).in_(ids))
    known = {row.id: row for row in session.exec(ended)}
    made = []
    for start, why, verdict, lifecycle in sorted(found, reverse=True, key=lambda each: each[0]):
        row = known.get(lifecycle) if verdict == "retrain" else None
        made.append(Trigger(start, why, verdict, lifecycle, row.status if row else "", row.reason if row else ""))
    return made


# --- latency ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """How fast predict requests were answered since the prediction server began."""

    requests: int
    mean_ms: float
    bounds_ms: list[tuple[str, float]]
    """Share of requests, and the time within which they were answered."""
    rows: list[tuple[str, float]]
    """Time, and the share that took so long at most."""
    refused: int = 0
    """Requests that were not as the model takes them (422): none of their rows is in the log."""


REFUSED = re.compile(r"^everloop_predict_requests_total\{(.*)\} (\S+)$")
BUCKET = re.compile(r"^everloop_predict_seconds_(bucket|sum)\{(.*)\} (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def latency(settings: Settings, project: str, model: str) -> Latency | None:
    """As the prediction server counts it. None where it does not answer, or has met no request."""
    try:
        key = (settings.keys_dir / CLIENT_KEY).read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.get(f"{settings.serve_url}/metrics", headers=headers, timeout=ANSWER_SECONDS, trust_env=False)
        text = answer.raise_for_status().text
    except (httpx.HTTPError, OSError):
        return None
    return latency_of(text, project, model)


def latency_of(text: str, project: str, model: str) -> Latency | None:
    """From the text format of Prometheus."""
    buckets: dict[float, int] = {}
    seconds, refused = 0.0, 0
    for line in text.splitlines():
        counted = REFUSED.match(line)
        said = dict(LABEL.findall(counted[1])) if counted else {}
        if counted and (said.get("project"), said.get("model"), said.get("status")) == (project, model, "422"):
            refused += int(float(counted[2]))
        found = BUCKET.match(line)
        labels = dict(LABEL.findall(found[2])) if found else {}
        if not found or (labels.get("project"), labels.get("model")) != (project, model):
            continue
        if found[1] == "sum":
            seconds += float(found[3])
        else:
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0) + int(float(found[3]))
    total = buckets.get(float("inf"), 0)
    if not total:
        return Latency(0, 0.0, [], [], refused) if refused else None
    told = []
    for share in (0.5, 0.95, 0.99):
        bound = next(bound for bound, count in sorted(buckets.items()) if count >= share * total)
        told.append((f"{share:.0%}", bound * 1000))
    rows = [(_time(bound), count / total) for bound, count in sorted(buckets.items())]
    first = next((place for place, row in enumerate(rows) if row[1] > 0), 0)
    last = next((place for place, row in enumerate(rows) if row[1] >= 1), len(rows) - 1)
    return Latency(total, 1000 * seconds / total, told, rows[first : last + 1], refused)


def _time(seconds: float) -> str:
    if seconds == float("inf"):
        return "longer"
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"
