"""What a lifecycle looks like over HTTP."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from api.kept import Kept
from api.progress import Progress
from api.search.answers import SearchSummary

Status = Literal[
    "running",
    "waiting_approval",
    "needs_attention",
    "released",
    "done",
    "rejected",
    "expired",
    "not_better",
    "aborted",
    "cancelled",
    "terminated",
    "failed",
]
Action = Literal["retry", "skip", "abort", "cancel", "pause", "resume", "take_best"]


class Submitted(BaseModel):
    """The lifecycle that was started, or that this key started before."""

    id: str
    url: str
    temporal_url: str


class StageView(BaseModel):
    """A stage of the latest run, as often as it was started."""

    stage: str
    status: str
    started_at: datetime
    ended_at: datetime | None
    seconds: float | None
    summary: str
    metrics: dict[str, float]
    blobs: dict[str, str]
    ran: dict[str, Any]
    error: dict[str, Any]
    kept: list[Kept] = []
    """Files for people."""


class LifecycleSummary(BaseModel):
    """A lifecycle in a list."""

    id: str
    project: str
    model: str
    task: str
    trigger: str
    status: str
    reason: str
    stage: str
    version: int | None
    submitted_by: str
    submitted_at: datetime
    updated_at: datetime
    wait: str
    """One sentence: for what, since when, what unblocks it. Empty when nothing is waited for."""
    metrics: dict[str, float]
    alarm: str = ""
    """Why it cannot go on although it is open, and what helps. Empty when nothing is wrong."""


class LifecycleList(BaseModel):
    items: list[LifecycleSummary]


class LifecycleView(LifecycleSummary):
    """All there is to say about a lifecycle."""

    objective: str
    body_digest: str
    spec: dict[str, Any]
    stages: list[StageView]
    comparison: dict[str, Any]
    error: dict[str, Any]
    """Of the parked stage: stage, error, message, field, hint, log, and `log_tail`, its last lines."""
    approval: dict[str, Any] | None
    notes: list[str] = []
    """What the rules changed in the data, and how many rows have no target; once the snapshot has ended."""
    refused: str = ""
    """Why the prediction server does not answer with its release, if it is the model's latest."""
    help: str
    """The command that helps now, or empty."""
    links: dict[str, str]
    progress: Progress | None = None
    """Of the job that runs now."""
    paused: bool = False
    """A person paused it: it runs nothing until a resume."""
    search: SearchSummary | None = None
    """Of a lifecycle that searches, or has."""


class Attend(BaseModel):
    """What else to say with a retry, a skip, an abort, a cancel, a pause, a resume or a take_best."""

    model_config = ConfigDict(extra="forbid")

    stage: Annotated[str, StringConstraints(max_length=100)] = ""
    """When given, must be the stage that is parked."""
    reason: Annotated[str, StringConstraints(max_length=2000)] = ""


class Attended(BaseModel):
    id: str
    action: Action
    url: str
