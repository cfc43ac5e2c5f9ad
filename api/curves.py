"""Learning curves: what the jobs of a lifecycle's last training have reported, step by step (`Context.report`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session, col, func, select

from api import journal
from api.dependencies import Here
from everloop import names, steps
from everloop.steps import TRAIN, VALIDATION
from everloop.store import LifecycleRow, MetricRow

router = APIRouter(tags=["lifecycles"])

RISING = frozenset({"auc", "accuracy", "r2", "precision", "recall", "ndcg", "map", "f1"})
"""Words in the names of metrics of which more is better; of all others less is."""
MOST_POINTS = 200
MOST_ROWS = 2000
"""Steps that are looked at: of more, every second, third and so on."""


class Curve(BaseModel):
    """A metric of a training, step by step; None where a step did not report it. Of a gang, of one rank."""

    metric: str
    higher_is_better: bool
    part: int = 0
    """Which of several trainings of one job, folds or an ensemble's members, from 1; 0: the only one."""
    unit: str
    """What its trainer calls a step: `round`, `epoch`."""
    steps: list[int]
    train: list[float | None]
    validation: list[float | None]
    best_step: int | None
    """Of the reported steps the one with the best value on the validation rows."""


class CurveList(BaseModel):
    items: list[Curve]
    ranks: int = 1
    """How many processes have learned together; `?rank=1` asks for another one's curves."""


@dataclass(frozen=True)
class Chart:
    """A curve as a picture of 640 by 220."""

    train: str
    """Points of a polyline."""
    validation: str
    best: tuple[float, float] | None
    low: float
    high: float


@router.get("/lifecycles/{id:path}/curves")
def curves(id: str, here: Here, rank: Annotated[int, Query(ge=0, le=10_000)] = 0) -> CurveList:  # noqa: A002
    """The learning curves of the lifecycle's last training, each thinned out to 200 steps; none before it reports."""
    with here.store.read() as session:
        row = journal.lifecycle_row(session, id)
        return CurveList(items=curves_of(session, row, rank), ranks=ranks_of(session, row))


def curves_of(session: Session, row: LifecycleRow, rank: int = 0) -> list[Curve]:
    """The curves of the lifecycle's last training, of one of its ranks."""
    job = journal.job_of(session, row, "train")
    return [] if job is None else _curves(_steps(session, names.metrics_of(job, rank)))


def ranks_of(session: Session, row: LifecycleRow) -> int:
    """How many processes of the lifecycle's last training have reported something; 1 before they do."""
    job = journal.job_of(session, row, "train")
    others = select(MetricRow.job).where(col(MetricRow.job).startswith(f"{job}#", autoescape=True)).distinct()
    return 1 + len(session.exec(others).all()) if job is not None else 1


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
    parts: dict[int, list[MetricRow]] = {}
    for row in rows:
        parts.setdefault(steps.in_part(row.step, row.values)[0], []).append(row)
    # A step of all parts together is their end, and no curve.
    return [curve for part, own in sorted(parts.items()) if part or len(parts) == 1 for curve in _of_part(part, own)]


def _of_part(part: int, rows: Sequence[MetricRow]) -> list[Curve]:
    names = sorted({name for row in rows for name in row.values})
    metrics = dict.fromkeys(name.partition("_")[2] for name in names if name.startswith((TRAIN, VALIDATION)))
    unit = steps.unit_of(dict.fromkeys(names, 0.0))
    return [_curve(metric, part, unit, rows) for metric in metrics]


def _curve(metric: str, part: int, unit: str, rows: Sequence[MetricRow]) -> Curve:
    train, validation = TRAIN + metric, VALIDATION + metric
    told = [row for row in rows if train in row.values or validation in row.values]
    rising = not RISING.isdisjoint(metric.lower().split("_"))
    judged = [row for row in told if validation in row.values]
    best = min(judged, key=lambda row: (-1 if rising else 1) * row.values[validation], default=None)
    thinned = _thinned(told, best)
    return Curve(
        metric=metric,
        higher_is_better=rising,
        part=part,
        unit=unit,
        steps=[_number(row) for row in thinned],
        train=[row.values.get(train) for row in thinned],
        validation=[row.values.get(validation) for row in thinned],
        best_step=_number(best) if best else None,
    )


def _number(row: MetricRow) -> int:
    return steps.in_part(row.step, row.values)[1]


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
