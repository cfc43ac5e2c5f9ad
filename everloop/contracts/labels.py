"""What the labels say, and what follows."""

from abc import ABC, abstractmethod
from datetime import datetime

from temporalio import activity

from everloop.contracts.drift import CheckRequest
from everloop.contracts.job import JobRequest
from everloop.predictions import LogParts
from everloop.records import Blob, Champion, PerformanceReport, Record, TriggerVerdict, WindowPerformance
from everloop.specs import LifecycleSpec


class PerformanceRequest(JobRequest):
    """What do the labels that have come say of the windows that were decided?"""

    project: str
    model: str
    champion: Champion
    log: LogParts | None = None
    """The files that hold the log. None: the lines that lie in the model's folder."""
    evaluation: Blob | None = None
    metric: str
    size: str
    """Of the monitor's windows."""
    until: datetime
    """The monitor's cursor: later windows are not decided yet."""
    labels_bytes: int
    """How much of the labels is looked at."""
    minimum_rows: int
    seed: int


class LabelComputeActivities(ABC):
    @activity.defn(name="everloop.labels.perform")
    @abstractmethod
    async def perform(self, request: PerformanceRequest) -> PerformanceReport: ...


class LabelsDue(Record):
    """What is asked of the labels that have come since they were last looked at; None: nothing."""

    request: PerformanceRequest | None = None
    spec: LifecycleSpec | None = None


class JudgeRequest(Record):
    """Keep what the labels say, and decide once per (model, window): is this a retraining?"""

    project: str
    model: str
    report: PerformanceReport
    labels_bytes: int
    spec: LifecycleSpec | None = None
    """Of who asked before the ledger read it by itself."""
    version: int
    """The champion's."""
    failed: str = ""


class Judged(Record):
    """A window whose performance is over."""

    performance: WindowPerformance
    verdict: TriggerVerdict
    reason: str
    lifecycle: str = ""


class JudgeAnswer(Record):
    judged: tuple[Judged, ...] = ()


class LabelActivities(ABC):
    @activity.defn(name="everloop.labels.due")
    @abstractmethod
    async def due(self, request: CheckRequest) -> LabelsDue: ...

    @activity.defn(name="everloop.labels.judge")
    @abstractmethod
    async def judge(self, request: JudgeRequest) -> JudgeAnswer: ...
