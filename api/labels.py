"""Labels: what people know later of what was predicted."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from api.bodies import body_schema, json_body
from api.dependencies import Here, Parts, Person
from api.drift import Project
from everloop.errors import NotFound
from everloop.labels import LabelLog, labels_of
from everloop.records import Signature, Version
from everloop.store import LabelsRow, PerformanceRow, RouteRow, VersionRow

MOST_LABELS = 10_000
LABEL_BYTES = 16 << 20

router = APIRouter(tags=["models"])


class LabelsRequest(BaseModel):
    """Rows such as `{"key": "A-17", "label": 1}`.

    A row is named by `request_id` (with `row`, its place in that request), else by `key` or the key column's own name,
    else by columns of the model. Names are compared as texts: 7 is not 7.0.
    """

    model_config = ConfigDict(extra="forbid")

    labels: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_LABELS)]


class Labelled(BaseModel):
    """What was kept."""

    model: str
    project: str
    kept: int
    message: str


MOST_WINDOWS = 1_000
"""Whose performance one answer tells."""


class PerformanceView(BaseModel):
    """How well a window was answered, as far as its labels have come."""

    window_start: datetime
    window_end: datetime
    version: int
    rows: int
    labelled: int
    metric: str
    value: float
    low: float
    high: float
    """The interval at 95 %."""
    expected: float | None
    """At the version's evaluation."""
    over: bool
    """The whole interval is worse."""
    target: dict[str, Any]
    """How far the labels lie from those of the evaluation; empty where that is not known."""
    verdict: str
    reason: str
    lifecycle: str


class LabelsView(BaseModel):
    """What is known of a model's labels."""

    model: str
    project: str
    labels: int
    """Rows that have one."""
    joined: int
    """Of them, whose prediction is in the log."""
    waiting: int
    """Of them, whose prediction has not come yet."""
    corrected: int
    """That came after another of the same row."""
    unread_bytes: int
    """Of labels that came since."""
    measured_at: datetime | None
    failed: str
    performance: list[PerformanceView]
    """By window, the oldest first."""


EXAMPLE = {"labels": [{"key": "A-17", "label": 1}, {"request_id": "5f1c0a", "row": 0, "label": 0}]}


@router.post("/models/{model}/labels", openapi_extra=body_schema(LabelsRequest, EXAMPLE))
def post(
    model: str,
    here: Here,
    _person: Person,
    body: Annotated[LabelsRequest, Depends(json_body(LabelsRequest, LABEL_BYTES))],
    project: Project = "default",
) -> Labelled:
    """Keep labels, all of them or none. The last one of a row counts; a label may come before its prediction does.

    Raises `Invalid` that names the row and the column.
    """
    labels = labels_of(body.labels, _signature(here, project, model), datetime.now(UTC))
    LabelLog(here.settings.predictions_dir / project / model).append(labels)
    said = f"{len(labels):,} labels are kept; they are joined when the model's monitor looks next"
    return Labelled(model=model, project=project, kept=len(labels), message=said)


@router.get("/models/{model}/labels")
def shown(model: str, here: Here, project: Project = "default") -> LabelsView:
    """How many labels there are, and what they say of each window. Raises `NotFound`."""
    _signature(here, project, model)
    with here.store.read() as session:
        return view(session, here, project, model)


def view(session: Session, here: Parts, project: str, model: str) -> LabelsView:
    """What is known of a model's labels; of one that has none, zeros."""
    row = session.get(LabelsRow, (project, model))
    size = LabelLog(here.settings.predictions_dir / project / model).size()
    return LabelsView(
        model=model,
        project=project,
        labels=row.labels if row else 0,
        joined=row.joined if row else 0,
        waiting=row.labels - row.joined if row else 0,
        corrected=row.corrected if row else 0,
        unread_bytes=max(0, size - (row.seen_bytes if row else 0)),
        measured_at=row.measured_at if row else None,
        failed=row.failed if row else "",
        performance=performance(session, project, model),
    )


def performance(session: Session, project: str, model: str) -> list[PerformanceView]:
    """Of the newest `MOST_WINDOWS`, in the order of their time."""
    query = select(PerformanceRow).where(PerformanceRow.project == project, PerformanceRow.model == model)
    newest = query.order_by(col(PerformanceRow.window_start).desc(), col(PerformanceRow.window_end).desc())
    rows = session.exec(newest.limit(MOST_WINDOWS)).all()
    return [PerformanceView(**row.model_dump(include=set(PerformanceView.model_fields))) for row in reversed(rows)]


def _signature(here: Parts, project: str, model: str) -> Signature:
    """Of the version that answers. Raises `NotFound`."""
    with here.store.read() as session:
        route = session.get(RouteRow, (project, model))
        row = session.get(VersionRow, (project, model, route.version)) if route else None
    if row is None:
        raise NotFound(
            f"nothing is released as {model[:63]} in project {project[:63]}",
            field="model",
            hint="`everloop models` shows what is; labels are for what a released version has answered",
        )
    return Signature.model_validate_json(here.artifacts.get(Version.model_validate_json(row.record).exported.signature))
