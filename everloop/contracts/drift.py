"""The watch over a model's traffic: windows, measures, decisions."""

from abc import ABC, abstractmethod
from datetime import datetime

from temporalio import activity

from everloop.contracts.job import JobRequest
from everloop.predictions import LogParts
from everloop.records import Blob, Break, Champion, DriftReport, Measure, Record, TriggerVerdict, Window
from everloop.specs import LifecycleSpec, Monitor


class DriftRequest(JobRequest):
    project: str
    model: str
    champion: Champion
    reference_sha256: str
    window: Window
    minimum_rows: int
    seed: int
    log: LogParts | None = None
    """The files that hold the window. None: the lines that lie in the model's folder."""
    evaluation: Blob | None = None
    """Report of the champion's evaluation: how its answers and the labels were spread then."""
    monitor: Monitor | None = None
    """What counts as over. None: asked by a workflow that watched columns alone."""


class DriftComputeActivities(ABC):
    @activity.defn(name="everloop.drift.measure")
    @abstractmethod
    async def measure(self, request: DriftRequest) -> DriftReport: ...


class MonitorRequest(Record):
    """What the schedule of a model's monitor is made from; the same request again changes nothing."""

    spec: LifecycleSpec
    release_seq: int


class Watched(Record):
    """What watches the model now, as one sentence."""

    sentence: str


class CheckRequest(Record):
    """The input of a `DriftCheck` workflow, as the schedule holds it."""

    project: str
    model: str


class NextWindow(Record):
    """The next closed window after the model's cursor, or None while none has closed."""

    window: Window | None
    champion: Champion | None = None
    reference_sha256: str = ""
    monitor: Monitor | None = None
    spec: LifecycleSpec | None = None
    rows: int = 0
    """In the window, counted up to the monitor's `minimum_rows`."""
    insufficient: str = ""
    """Why the window is not worth a job, or empty."""
    measures: tuple[Measure, ...] = ()
    """Of a window that is not worth a job: what its refused rows say."""
    broken: tuple[Break, ...] = ()
    closed_at: datetime | None = None
    """When the window was found closed: rows that are logged later are late."""
    evaluation: Blob | None = None
    """Report of the champion's evaluation."""


class TriggerRequest(Record):
    """Decide once per (model, window), in the ledger: is this a retraining?"""

    project: str
    model: str
    version: int
    window: Window
    share: float | None
    threshold: float
    insufficient: str = ""
    failed: str = ""
    """Why the window could not be measured; the cursor moves on all the same."""
    closed_at: datetime | None = None
    spec: LifecycleSpec
    measures: tuple[Measure, ...] = ()
    broken: tuple[Break, ...] = ()


class TriggerAnswer(Record):
    verdict: TriggerVerdict
    reason: str
    lifecycle: str = ""
    """Id of the retraining to start, when the verdict is retrain."""


class DriftActivities(ABC):
    @activity.defn(name="everloop.drift.watch")
    @abstractmethod
    async def watch(self, request: MonitorRequest) -> Watched: ...

    @activity.defn(name="everloop.drift.next_window")
    @abstractmethod
    async def next_window(self, request: CheckRequest) -> NextWindow: ...

    @activity.defn(name="everloop.drift.trigger")
    @abstractmethod
    async def trigger(self, request: TriggerRequest) -> TriggerAnswer: ...
