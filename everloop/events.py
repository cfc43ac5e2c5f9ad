"""What happened, one class per fact, in the past tense.

An event is the input of the activity `journal.append`, so it is in Temporal's history before it is in SQL.
`seq` counts from 0 within one run of one workflow.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from everloop.records import (
    Blob,
    Break,
    Claim,
    Comparison,
    Evidence,
    Measure,
    Ran,
    Record,
    TriggerVerdict,
    Wait,
    Window,
    WindowPerformance,
)
from everloop.specs import Stage

UNSET = datetime.min.replace(tzinfo=UTC)


class Fact(Record):
    """What every event has. `seq` and `at` are set by the workflow's journal."""

    seq: int = -1
    at: datetime = UNSET


class LifecycleSubmitted(Fact):
    type: Literal["LifecycleSubmitted"] = "LifecycleSubmitted"
    project: str
    model: str
    task: str
    trigger: str
    """`manual`, or `drift:<window start>`."""
    submitted_by: str
    body_digest: str
    spec: str
    """The spec as JSON, exactly as accepted."""


class StageStarted(Fact):
    type: Literal["StageStarted"] = "StageStarted"
    stage: Stage


class StageFinished(Fact):
    type: Literal["StageFinished"] = "StageFinished"
    stage: Stage
    summary: str
    """One sentence of what came out."""
    metrics: dict[str, float] = Field(default_factory=dict)
    blobs: dict[str, str] = Field(default_factory=dict)
    """Name to SHA-256 of what the stage stored."""
    ran: Ran | None = None


class StageFailed(Fact):
    type: Literal["StageFailed"] = "StageFailed"
    stage: Stage
    error: str
    """Class name from `everloop.errors`."""
    message: str
    field: str = ""
    hint: str = ""
    log: str = ""
    kept: tuple[Blob, ...] = ()
    """Files that its job kept for people before it failed."""


class StageSkipped(Fact):
    type: Literal["StageSkipped"] = "StageSkipped"
    stage: Stage
    person: str
    reason: str = ""


class StagePaused(Fact):
    type: Literal["StagePaused"] = "StagePaused"
    stage: Stage
    person: str
    reason: str = ""


class StagePreempted(Fact):
    """Its lease was taken for others: it goes on by itself, from its last checkpoint, with the next one."""

    type: Literal["StagePreempted"] = "StagePreempted"
    stage: Stage
    device: str
    token: int
    reason: str


class StageRetried(Fact):
    type: Literal["StageRetried"] = "StageRetried"
    stage: Stage
    person: str


class WaitBegan(Fact):
    type: Literal["WaitBegan"] = "WaitBegan"
    wait: Wait
    needs: Literal["", "approval", "attention"] = ""


class WaitEnded(Fact):
    type: Literal["WaitEnded"] = "WaitEnded"


class LeaseGranted(Fact):
    type: Literal["LeaseGranted"] = "LeaseGranted"
    device: str
    token: int
    waited_seconds: float


class LeaseReturned(Fact):
    type: Literal["LeaseReturned"] = "LeaseReturned"
    device: str
    token: int


class VersionRegistered(Fact):
    type: Literal["VersionRegistered"] = "VersionRegistered"
    version: int
    model_digest: str


class ChallengerCompared(Fact):
    type: Literal["ChallengerCompared"] = "ChallengerCompared"
    comparison: Comparison


class LifecycleFinished(Fact):
    type: Literal["LifecycleFinished"] = "LifecycleFinished"
    outcome: Literal[
        "released", "done", "rejected", "expired", "not_better", "aborted", "cancelled", "terminated", "failed"
    ]
    reason: str


class ApprovalOpened(Fact):
    type: Literal["ApprovalOpened"] = "ApprovalOpened"
    lifecycle: str
    nonce: str
    evidence: Evidence
    evidence_digest: str
    deadline: datetime
    evidence_text: str = ""
    """The bytes that the digest is over."""


class ApprovalDecided(Fact):
    type: Literal["ApprovalDecided"] = "ApprovalDecided"
    claim: Claim
    key_id: str


class ApprovalClosed(Fact):
    type: Literal["ApprovalClosed"] = "ApprovalClosed"
    outcome: Literal["approved", "rejected", "expired", "cancelled", "terminated", "failed"]
    reason: str


class ModelReleased(Fact):
    type: Literal["ModelReleased"] = "ModelReleased"
    project: str
    model: str
    lifecycle: str
    version: int
    release_seq: int
    model_digest: str
    approved_by: tuple[str, ...]


class ReleaseRolledBack(Fact):
    type: Literal["ReleaseRolledBack"] = "ReleaseRolledBack"
    project: str
    model: str
    version: int = 0
    """The one that was undone, where the rollout itself undid it."""
    reason: str
    undone_seq: int = 0
    """The release that was undone; 0 in journals of before: the one that the same run made."""
    release_seq: int = 0
    """The route's number after the roll back."""
    back_to: int | None = None
    """The version that answers again, 0 when nothing does."""
    person: str = ""
    """Who ordered it; empty when the rollout undid itself."""


class DriftChecked(Fact):
    type: Literal["DriftChecked"] = "DriftChecked"
    project: str
    model: str
    version: int
    window: Window
    rows: int
    share: float | None
    drifted: tuple[str, ...] = ()
    report: str = ""
    """SHA-256 of Evidently's JSON."""
    verdict: TriggerVerdict
    reason: str
    lifecycle: str = ""
    """The retraining that this window started."""
    measures: tuple[Measure, ...] = ()
    broken: tuple[Break, ...] = ()


class PerformanceJudged(Fact):
    """The labels of a window say that it was answered worse than it should be."""

    type: Literal["PerformanceJudged"] = "PerformanceJudged"
    project: str
    model: str
    performance: WindowPerformance
    verdict: TriggerVerdict
    reason: str
    lifecycle: str = ""


Event = Annotated[
    LifecycleSubmitted
    | StageStarted
    | StageFinished
    | StageFailed
    | StageSkipped
    | StagePaused
    | StagePreempted
    | StageRetried
    | WaitBegan
    | WaitEnded
    | LeaseGranted
    | LeaseReturned
    | VersionRegistered
    | ChallengerCompared
    | LifecycleFinished
    | ApprovalOpened
    | ApprovalDecided
    | ApprovalClosed
    | ModelReleased
    | ReleaseRolledBack
    | DriftChecked
    | PerformanceJudged,
    Field(discriminator="type"),
]
