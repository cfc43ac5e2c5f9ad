"""How a training goes: its learning curves, how far it is, and how long the rest may take.

All of it is read from the steps that jobs report (`Context.report`). What they do not say is not guessed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel
from sqlmodel import Session, col, func, select

from api import journal, pages
from everloop.specs import JOB_STAGES
from everloop.store import LifecycleRow, MetricRow, StageRow

TRAIN, VALIDATION = "train_", "validation_"
"""How a trainer names the values of its curves: `validation_binary_logloss`."""
MOST = ("most", "of")
"""Values in which a job says how many steps there will be, at most."""
UNITS = {"rounds": "round", "epochs": "epoch", "files": "file"}
"""A value that counts steps, and what one of them is called."""
RISING = frozenset({"auc", "accuracy", "r2", "precision", "recall", "ndcg", "map", "f1"})
"""Words in the names of metrics of which more is better; of all others less is."""
MOST_STEPS = 10**12
"""More is no number of steps that anybody waits for."""
MOST_POINTS = 200
MOST_ROWS = 2000
"""Steps that are looked at: of more, every second, third and so on."""
PACE_SECONDS = 60.0
"""The pace is that of the last minute."""
LEAST_SECONDS = 2.0
"""Steps are written down once a second: of a shorter time no pace can be told."""
SILENT_SECONDS = 15.0
"""A job that reports nothing for longer is said to."""


class Curve(BaseModel):
    """A metric of a training, step by step; None where a step did not report it."""

    metric: str
    higher_is_better: bool
    steps: list[int]
    train: list[float | None]
    validation: list[float | None]
    best_step: int | None
    """Of the reported steps the one with the best value on the validation rows."""


class Progress(BaseModel):
    """How far the running stage is."""

    stage: str
    sentence: str
    step: int | None = None
    most: int | None = None
    seconds_left: float | None = None
    """At the pace of the last minute, if it goes to the end. None: cannot be told."""


@dataclass(frozen=True)
class Chart:
    """A curve as a picture of 640 by 220."""

    train: str
    """Points of a polyline."""
    validation: str
    best: tuple[float, float] | None
    low: float
    high: float


# --- curves ---------------------------------------------------------------------------------------


def curves_of(session: Session, row: LifecycleRow) -> list[Curve]:
    """The curves of the lifecycle's last training."""
    job = job_of(session, row, "train")
    return [] if job is None else _curves(_steps(session, job))


def job_of(session: Session, row: LifecycleRow, stage: str) -> str | None:
    """The key of the steps of a stage's last start: `<run id>/<activity id>`."""
    rows = [each for each in journal.stage_rows(session, row.id) if each.stage == stage]
    if not rows:
        return None
    named = str(rows[-1].ran.get("log") or "").split("/")
    return "/".join(named[1:3]) if len(named) == 4 else f"{row.run_id}/{stage}.{len(rows)}"  # noqa: PLR2004  # jobs/run/activity/attempt


def _steps(session: Session, job: str) -> list[MetricRow]:
    """The steps of a job in order, thinned out where there are very many."""
    mine = MetricRow.job == job
    stride = 1 + session.exec(select(func.count()).select_from(MetricRow).where(mine)).one() // MOST_ROWS
    place = func.row_number().over(order_by=col(MetricRow.step).desc()).label("place")
    numbered = select(col(MetricRow.step), place).where(mine).subquery()
    kept = select(numbered.c.step).where(numbered.c.place % stride == 1 % stride)  # the last step is among them
    return list(
        session.exec(select(MetricRow).where(mine, col(MetricRow.step).in_(kept)).order_by(col(MetricRow.step)))
    )


def _curves(rows: Sequence[MetricRow]) -> list[Curve]:
    names = sorted({name for row in rows for name in row.values})
    metrics = dict.fromkeys(name.partition("_")[2] for name in names if name.startswith((TRAIN, VALIDATION)))
    return [_curve(metric, rows) for metric in metrics]


def _curve(metric: str, rows: Sequence[MetricRow]) -> Curve:
    train, validation = TRAIN + metric, VALIDATION + metric
    told = [row for row in rows if train in row.values or validation in row.values]
    rising = not RISING.isdisjoint(metric.lower().split("_"))
    judged = [row for row in told if validation in row.values]
    best = min(judged, key=lambda row: (-1 if rising else 1) * row.values[validation], default=None)
    thinned = _thinned(told, best)
    return Curve(
        metric=metric,
        higher_is_better=rising,
        steps=[row.step for row in thinned],
        train=[row.values.get(train) for row in thinned],
        validation=[row.values.get(validation) for row in thinned],
        best_step=best.step if best else None,
    )


def _thinned(rows: Sequence[MetricRow], best: MetricRow | None) -> list[MetricRow]:
    """At most `MOST_POINTS` and the best one, the first and the last among them."""
    if len(rows) <= MOST_POINTS:
        return list(rows)
    places = {round(index * (len(rows) - 1) / (MOST_POINTS - 1)) for index in range(MOST_POINTS)}
    return [row for place, row in enumerate(rows) if place in places or row is best]


def drawn(curve: Curve) -> Chart | None:
    """The picture of a curve, or None with fewer than two points."""
    values = [value for value in (*curve.train, *curve.validation) if value is not None]
    if len(curve.steps) < 2 or not values:  # noqa: PLR2004
        return None
    low, high = min(values), max(values)
    first, last = curve.steps[0], curve.steps[-1]
    scale = 1.0 if math.isfinite(high - low) else 4.0  # a loss that has exploded, both ways

    def point(step: int, value: float) -> tuple[float, float]:
        across = 640 * (step - first) / max(1, last - first)
        up = 0.5 if high == low else (value / scale - low / scale) / (high / scale - low / scale)
        return round(across, 1), round(212 - 204 * up, 1)

    def line(series: list[float | None]) -> str:
        points = [point(step, value) for step, value in zip(curve.steps, series, strict=True) if value is not None]
        return " ".join(f"{x},{y}" for x, y in points)

    judged = dict(zip(curve.steps, curve.validation, strict=True))
    best = judged.get(curve.best_step) if curve.best_step is not None else None
    return Chart(
        train=line(curve.train),
        validation=line(curve.validation),
        best=None if best is None or curve.best_step is None else point(curve.best_step, best),
        low=low,
        high=high,
    )


def told_in_rows(curve: Curve, most: int = 9) -> list[tuple[int, float | None, float | None]]:
    """A few steps for a table: the first, the best, the last, and some between them."""
    places = {round(index * (len(curve.steps) - 1) / (most - 1)) for index in range(most)}
    every = list(zip(curve.steps, curve.train, curve.validation, strict=True))
    return [each for place, each in enumerate(every) if place in places or each[0] == curve.best_step]


# --- progress -------------------------------------------------------------------------------------


def progress_of(session: Session, row: LifecycleRow, now: datetime | None = None) -> Progress | None:
    """How far the stage is that runs, or None where nothing runs as a job or it waits for something."""
    stages = journal.stage_rows(session, row.id)
    running = stages[-1] if stages and stages[-1].status == "running" else None
    if row.status != "running" or row.wait_what or running is None or running.stage not in JOB_STAGES:
        return None
    now = now or datetime.now(UTC)
    job = job_of(session, row, running.stage)
    steps = _of_this_attempt(session, job or "")
    return _by_steps(running.stage, steps, now) if steps else _by_the_last_time(session, row, running, now)


def _of_this_attempt(session: Session, job: str) -> list[MetricRow]:
    """The steps of the running attempt, newest first. One that began again lower down has not reached older ones."""
    query = select(MetricRow).where(MetricRow.job == job)
    rows = session.exec(query.order_by(col(MetricRow.at).desc(), col(MetricRow.step).desc()).limit(MOST_ROWS)).all()
    found: list[MetricRow] = []
    for row in rows:
        if found and row.step > found[-1].step:
            break
        found.append(row)
    return found


def _by_steps(stage: str, steps: list[MetricRow], now: datetime) -> Progress:
    newest = steps[0]
    known = {name: value for row in reversed(steps) for name, value in row.values.items()}
    unit = next((word for name, word in UNITS.items() if name in known), "step")
    told = next((known[name] for name in MOST if name in known), 0)
    most = int(told) if newest.step <= told <= MOST_STEPS else None
    may_stop = any(name.startswith(VALIDATION) for name in known)
    pace = _pace(steps)
    left = None if pace is None or most is None else max(0.0, (most - newest.step) / pace)
    sentence = f"{unit} {newest.step:,}"
    if most is not None:
        sentence += f" of {'at most ' if may_stop else ''}{most:,}"
    if left is not None:
        sentence += f", about {pages.span(left)} left"
        sentence += " if it goes to the end; early stopping may end it sooner" if may_stop else ""
    silent = (now - newest.at).total_seconds()
    if silent > SILENT_SECONDS:
        sentence += f"; the last one was reported {pages.span(silent)} ago"
    return Progress(stage=stage, sentence=sentence, step=newest.step, most=most, seconds_left=left)


def _pace(steps: list[MetricRow]) -> float | None:
    """Steps a second over the last minute of reports, or None where that cannot be told yet."""
    newest = steps[0]
    recent = [row for row in steps if newest.at - row.at <= timedelta(seconds=PACE_SECONDS)]
    # Of the steps that were written down at one moment the last one had come by then.
    oldest = next(row for row in recent if row.at == recent[-1].at)
    seconds, done = (newest.at - oldest.at).total_seconds(), newest.step - oldest.step
    return done / seconds if seconds >= LEAST_SECONDS and done > 0 else None


def _by_the_last_time(session: Session, row: LifecycleRow, running: StageRow, now: datetime) -> Progress:
    sentence = f"for {pages.span(max(0.0, (now - running.started_at).total_seconds()))}"
    before = (
        select(StageRow)
        .join(LifecycleRow, col(LifecycleRow.id) == StageRow.lifecycle)
        .where(LifecycleRow.project == row.project, LifecycleRow.model == row.model, LifecycleRow.id != row.id)
        .where(StageRow.stage == running.stage, StageRow.status == "done")
        .order_by(col(StageRow.ended_at).desc())
        .limit(1)
    )
    last = session.exec(before).first()
    if last is not None and last.ran.get("seconds"):
        sentence += (
            f"; the last time for this model it took {pages.span(float(last.ran['seconds']))} ({last.lifecycle})"
        )
    return Progress(stage=running.stage, sentence=sentence)
