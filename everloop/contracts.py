"""What workflows ask of activities: one interface per noun, one request per call.

Workflows call these through `workflow.execute_activity_method`, so that control and API never load
the heavy parts. An implementation repeats the decorator with the same name.
"""

from abc import ABC, abstractmethod
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints
from temporalio import activity

from everloop import names
from everloop.amounts import NO_LIMIT
from everloop.events import Event, LifecycleSubmitted
from everloop.orders import PoolOrdered, SignedPoolOrder
from everloop.predictions import LogParts
from everloop.records import (
    Blob,
    Break,
    Champion,
    Code,
    Decision,
    DriftReport,
    Evaluation,
    Evidence,
    Exported,
    Lease,
    Measure,
    PerformanceReport,
    Prepared,
    Record,
    Refitted,
    Route,
    RouteChange,
    SignedRollBack,
    Slot,
    Snapshot,
    Trained,
    TriggerVerdict,
    Validation,
    Version,
    Window,
    WindowPerformance,
)
from everloop.resources import ONE, WHOLE_GPU
from everloop.scores import Chunk, Cut, Form, Joined, Opened, ScoreRequest
from everloop.specs import LifecycleSpec, Monitor, Stage
from everloop.trials import Searched, Study, Trial, Trials

Short = Annotated[str, StringConstraints(max_length=names.MOST_CHARACTERS)]
"""A name in a signal or an update: it becomes a summary, which Temporal limits."""


class Fork(Record):
    """An earlier lifecycle whose results are kept, up to but not including *stage*."""

    lifecycle: str
    run_id: str
    stage: Stage


class LifecycleRequest(Record):
    """The input of a lifecycle workflow, made by the API or by drift automation."""

    spec: LifecycleSpec
    body_digest: str
    """SHA-256 of the spec's canonical JSON: the same key with another body is refused."""
    submitted_by: str
    trigger: str = "manual"
    window: Window | None = None
    """The drifted window, when drift started this."""
    key_id: str = ""
    signature: str = ""
    """The API's, over who asks for what (everloop/starts.py). Empty where drift started this."""
    fork: Fork | None = None

    def submitted(self) -> LifecycleSubmitted:
        """The first fact of the lifecycle."""
        return LifecycleSubmitted(
            project=self.spec.project,
            model=self.spec.model,
            task=self.spec.task,
            trigger=self.trigger,
            submitted_by=self.submitted_by,
            body_digest=self.body_digest,
            spec=self.spec.model_dump_json(),
        )


class AdmitRequest(Record):
    """May the lifecycle that asks begin? All that is looked at is in its history's first event."""


class LifecycleActivities(ABC):
    @activity.defn(name="everloop.lifecycle.admit")
    @abstractmethod
    async def admit(self, request: AdmitRequest) -> None: ...


class KeptRequest(Record):
    """Which result of an earlier lifecycle is asked for, and the question that it must be the answer to."""

    lifecycle: str
    run_id: str
    stage: Stage
    question: dict[str, Any]
    """The stage's request as JSON; its slot does not count."""


class ForkActivities(ABC):
    @activity.defn(name="everloop.lifecycle.kept")
    @abstractmethod
    async def kept(self, request: KeptRequest) -> dict[str, Any]: ...


# --- compute: each is one job in a child process on the slot of a lease -------------------------


class JobRequest(Record):
    """The input of a job; `slot` is filled in when the lease is held (workflows/stage.py)."""

    slot: Slot = Slot(device="", token=0, holder="")
    lease: Lease | None = None
    """The slot and what may be used of it. None: asked by a workflow that knew slots alone."""


class SnapshotRequest(JobRequest):
    spec: LifecycleSpec


class ValidateRequest(JobRequest):
    spec: LifecycleSpec
    snapshot: Snapshot


class PrepareRequest(JobRequest):
    spec: LifecycleSpec
    snapshot: Snapshot
    champion: Champion | None


class TrainRequest(JobRequest):
    spec: LifecycleSpec
    prepared: Prepared
    snapshot: Snapshot | None = None
    """For trainers that look at raw columns. None: asked by a workflow that knew none."""
    code: Code | None = None
    """The job runs with this user's code and what it requires."""
    searched: Searched | None = None
    """What a search found: its best is learned. None: what the spec says is."""


class TrialRequest(JobRequest):
    """Ask, learn and judge, trial by trial, as many of *numbers* as there is time for."""

    study: Study
    numbers: tuple[int, ...]
    """In their order. The first is tried in any case."""
    recent: tuple[Trial, ...] = ()
    """Trials that have ended and are not in the study's blobs yet."""
    seconds: float | None = None
    """That the budget has left."""
    preload: tuple[str, ...] = ()
    """Modules of the heavy place that the warm process loads before its fork."""


class EvaluateRequest(JobRequest):
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared
    trained: Trained
    champion: Champion | None
    certainty: float = 0.0
    """How sure the challenger's gain must be, by a paired test. 0: any gain will do."""


class RefitRequest(JobRequest):
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared
    trained: Trained
    code: Code | None = None
    """As in `TrainRequest`."""


class ExportRequest(JobRequest):
    spec: LifecycleSpec
    snapshot: Snapshot
    refitted: Refitted


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


class DataActivities(ABC):
    @activity.defn(name="everloop.data.snapshot")
    @abstractmethod
    async def snapshot(self, request: SnapshotRequest) -> Snapshot: ...

    @activity.defn(name="everloop.data.validate")
    @abstractmethod
    async def validate(self, request: ValidateRequest) -> Validation: ...


class DiskActivities(ABC):
    """On compute's queue, where jobs write; no job and no slot."""

    @activity.defn(name="everloop.disk.room")
    @abstractmethod
    async def room(self) -> None: ...


class FeaturesActivities(ABC):
    @activity.defn(name="everloop.features.prepare")
    @abstractmethod
    async def prepare(self, request: PrepareRequest) -> Prepared: ...


class TrainingActivities(ABC):
    @activity.defn(name="everloop.training.train")
    @abstractmethod
    async def train(self, request: TrainRequest) -> Trained: ...

    @activity.defn(name="everloop.training.refit")
    @abstractmethod
    async def refit(self, request: RefitRequest) -> Refitted: ...


class SearchJobActivities(ABC):
    @activity.defn(name="everloop.search.try")
    @abstractmethod
    async def attempt(self, request: TrialRequest) -> Trials: ...


class EvaluationActivities(ABC):
    @activity.defn(name="everloop.evaluation.evaluate")
    @abstractmethod
    async def evaluate(self, request: EvaluateRequest) -> Evaluation: ...


class ExportActivities(ABC):
    @activity.defn(name="everloop.export.export")
    @abstractmethod
    async def export(self, request: ExportRequest) -> Exported: ...


class CutRequest(JobRequest):
    """Cut a file of rows into pieces."""

    path: str
    champion: Champion
    chunk_rows: int


class ChunkRequest(JobRequest):
    """Answer one piece."""

    champion: Champion
    chunk: str
    asked_at: datetime
    """What a row without an event time is taken to be of."""


class JoinRequest(JobRequest):
    """Put the pieces together."""

    form: Form
    scored: tuple[str, ...]
    rejects: tuple[str, ...]
    rows: int
    rejected: int


class ScoreJobActivities(ABC):
    @activity.defn(name="everloop.score.cut")
    @abstractmethod
    async def cut(self, request: CutRequest) -> Cut: ...

    @activity.defn(name="everloop.score.chunk")
    @abstractmethod
    async def chunk(self, request: ChunkRequest) -> Chunk: ...

    @activity.defn(name="everloop.score.join")
    @abstractmethod
    async def join(self, request: JoinRequest) -> Joined: ...


class ScoreActivities(ABC):
    @activity.defn(name="everloop.score.open")
    @abstractmethod
    async def open(self, request: ScoreRequest) -> Opened: ...


class DriftComputeActivities(ABC):
    @activity.defn(name="everloop.drift.measure")
    @abstractmethod
    async def measure(self, request: DriftRequest) -> DriftReport: ...


class LabelComputeActivities(ABC):
    @activity.defn(name="everloop.labels.perform")
    @abstractmethod
    async def perform(self, request: PerformanceRequest) -> PerformanceReport: ...


# --- control: light activities beside the workflows ----------------------------------------------


class AppendRequest(Record):
    """Events of one run, in order of `seq`."""

    events: tuple[Event, ...]


class JournalActivities(ABC):
    @activity.defn(name=names.JOURNAL_APPEND)
    @abstractmethod
    async def append(self, request: AppendRequest) -> None: ...


class Wants(Record):
    """What a holder asks for. All defaults: one core, as before there were amounts."""

    queue: Short = "default"
    priority: int = Field(default=50, ge=0, le=1000)
    preemptible: bool = True
    cores: int | None = Field(default=None, ge=1, le=1 << 20)
    """Of each member, as the three below. None: as many as the device gives to who does not say it."""
    memory_mib: int = Field(default=0, ge=0, le=1 << 30)
    """0: its cores' part of the device."""
    milli_gpu: int | None = Field(default=None, ge=0, le=1 << 20)
    """None: a whole GPU where the pool has any."""
    gpu_mib: int = Field(default=0, ge=0, le=1 << 30)
    members: int = Field(default=1, ge=1, le=1024)
    members_most: int = Field(default=0, ge=0, le=1024)
    """Of an elastic lease: as many more as there is room for when it is granted. 0: exactly `members`."""
    isolation: Short = ""
    """`isolation.Isolation`; empty: any."""
    max_runtime_s: int = Field(default=0, ge=0, le=1 << 40)
    """Declared by its owner; 0: not."""
    stage: Short = ""
    model: Short = ""
    budget_core_ms: int = Field(default=NO_LIMIT, ge=NO_LIMIT, le=1 << 62)
    """Of the holder, as the two below: what all its leases may spend together. -1: as much as it likes."""
    budget_gpu_ms: int = Field(default=NO_LIMIT, ge=NO_LIMIT, le=1 << 62)
    budget_micros: int = Field(default=NO_LIMIT, ge=NO_LIMIT, le=1 << 62)

    @classmethod
    def of(cls, spec: LifecycleSpec, stage: str) -> "Wants":
        """What a lifecycle's *stage* asks for."""
        amounts = spec.resources.of(stage)
        members = amounts.members or ONE
        return cls(
            queue=spec.queue,
            priority=spec.priority,
            preemptible=spec.preemptible,
            cores=amounts.cpus,
            memory_mib=amounts.memory or 0,
            milli_gpu=None if amounts.gpus is None else round(amounts.gpus * WHOLE_GPU),
            gpu_mib=amounts.gpu_memory or 0,
            isolation=amounts.isolation or "",
            members=members.min,
            members_most=members.max if members.max > members.min else 0,
            max_runtime_s=int(spec.max_runtime.total_seconds()) if spec.max_runtime else 0,
            stage=stage,
            model=spec.model,
            **(spec.budget.bounds() if spec.budget else {}),
        )

    @property
    def amounts(self) -> tuple[int | str | None, ...]:
        """What a lease must have so that it will do for this."""
        return (
            self.cores,
            self.memory_mib,
            self.milli_gpu,
            self.gpu_mib,
            self.members,
            self.members_most,
            self.isolation,
        )


class LeaseRequest(Wants):
    """What the run that asks wants to lease. `id` is the idempotency key: asked again, it waits in its old place."""

    id: str
    kind: Literal["batch", "check"] = "batch"
    """A check uses the light slot, where there is one: it is reserved for checks."""
    pool: str = names.DEFAULT_POOL
    again: bool = False
    """Asked before, and still waiting: a Reset may have left the request with the run before, or what was granted for
    it was taken for others."""


class LeaseAnswer(Record):
    """The request is in the queue. `reason`: why it had left it before, where that is worth a word."""

    reason: str = ""


class Offer(Record):
    """A grant that waits for its holder to accept. The signal `lease_offered` carries it."""

    request_id: Short
    device: Short
    token: int = Field(ge=0, lt=1 << 63)


class LeaseNotice(Record):
    """The holder is asked to write a checkpoint and let go. The signal `lease_noticed` carries it."""

    token: int = Field(ge=0, lt=1 << 63)
    reason: str = Field(default="", max_length=2000)
    """In words; empty: the notice is taken back."""
    deadline: datetime | None = None
    """Then the lease is fenced and its processes are ended."""


class AcceptRequest(Record):
    """A lease to take or to give back. Older workers give back without naming the request."""

    request_id: str
    token: int


class CommitRequest(Record):
    """A result pointer, written in the transaction that checks the token."""

    slot: Slot
    stage: str
    digest: str


class MemberOfLease(Record):
    """A part of a lease that was taken away: does anything of it still run?"""

    token: int
    rank: int
    device: str


class ProveRequest(Record):
    """Members on devices that are there."""

    members: tuple[MemberOfLease, ...]


class ProveAnswer(Record):
    """Those of which nothing runs any more."""

    dead: tuple[MemberOfLease, ...]


class ProofActivities(ABC):
    """On compute's queue: only there the devices can be asked."""

    @activity.defn(name="everloop.lease.prove")
    @abstractmethod
    async def prove(self, request: ProveRequest) -> ProveAnswer: ...


class PoolStepRequest(Record):
    pool: str
    inventory: tuple[str, ...] | None = None
    """Names of the Dask workers that are there now, when compute has reported them."""
    proven: tuple[MemberOfLease, ...] = ()
    """Members of which compute has said that nothing runs any more."""


class PoolRun(Record):
    """With what a pool continues as new while an inventory waits to be noted; else it is the pool's name alone."""

    pool: str
    inventory: tuple[str, ...]


class PoolStep(Record):
    """What a step did, and after how many seconds the pool must look again (None: only when woken)."""

    granted: int
    waiting: int
    next_wake_seconds: float | None
    unproven: tuple[MemberOfLease, ...] = ()
    """Members that are not free until compute has proven that nothing of them runs."""


class LeaseActivities(ABC):
    @activity.defn(name="everloop.lease.request")
    @abstractmethod
    async def request(self, request: LeaseRequest) -> LeaseAnswer: ...

    @activity.defn(name="everloop.lease.accept")
    @abstractmethod
    async def accept(self, request: AcceptRequest) -> Slot: ...

    @activity.defn(name="everloop.lease.adopt")
    @abstractmethod
    async def adopt(self, request: AcceptRequest) -> Slot: ...

    @activity.defn(name="everloop.lease.commit")
    @abstractmethod
    async def commit(self, request: CommitRequest) -> None: ...

    @activity.defn(name="everloop.lease.release")
    @abstractmethod
    async def release(self, request: AcceptRequest) -> None: ...

    @activity.defn(name="everloop.lease.cancel")
    @abstractmethod
    async def cancel(self, request_id: str) -> None: ...

    @activity.defn(name="everloop.lease.pool_step")
    @abstractmethod
    async def pool_step(self, request: PoolStepRequest) -> PoolStep: ...


class ChampionRequest(Record):
    project: str
    model: str


class ChampionAnswer(Record):
    champion: Champion | None


class RegisterRequest(Record):
    spec: LifecycleSpec
    slot: Slot
    """Of the lease under which the bytes were made, given back or not."""
    snapshot: Snapshot
    evaluation: Evaluation
    refitted: Refitted
    exported: Exported


class EvidenceRequest(Record):
    version: Version
    submitted_by: str
    trigger: str


class EvidenceAnswer(Record):
    """What the gate opens with: evidence, its digest, and the keys that may sign (id to base64)."""

    evidence: Evidence
    digest: str
    """SHA-256 of `text`."""
    keys: dict[str, str]
    text: str = ""
    """The evidence's JSON: the bytes that the digest is over."""


class RegistryActivities(ABC):
    @activity.defn(name="everloop.registry.champion")
    @abstractmethod
    async def champion(self, request: ChampionRequest) -> ChampionAnswer: ...

    @activity.defn(name="everloop.registry.register")
    @abstractmethod
    async def register(self, request: RegisterRequest) -> Version: ...

    @activity.defn(name="everloop.registry.evidence")
    @abstractmethod
    async def evidence(self, request: EvidenceRequest) -> EvidenceAnswer: ...


class ReleaseRequest(Record):
    version: Version
    submitted_by: str
    trigger: str
    evidence_digest: str
    champion_digest: str
    nonce: str
    gate: str
    decisions: tuple[Decision, ...]
    evidence: str = ""
    """The text of the evidence that was approved."""


class RollBackRequest(Record):
    project: str
    model: str
    release_seq: int
    """The release to undo; nothing happens when the route has moved on."""
    order: SignedRollBack | None = None
    """A person's; without one only the rollout itself may undo what it did."""


class ObserveRequest(Record):
    project: str
    model: str
    release_seq: int


class ReleaseActivities(ABC):
    @activity.defn(name="everloop.release.route")
    @abstractmethod
    async def route(self, request: ReleaseRequest) -> Route: ...

    @activity.defn(name="everloop.release.observe")
    @abstractmethod
    async def observe(self, request: ObserveRequest) -> None: ...

    @activity.defn(name="everloop.release.roll_back")
    @abstractmethod
    async def roll_back(self, request: RollBackRequest) -> RouteChange | None: ...


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
    closed_at: datetime | None = None
    """When the window was found closed: rows that are logged later are late."""
    evaluation: Blob | None = None
    """Report of the champion's evaluation."""


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
    spec: LifecycleSpec
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


class LabelActivities(ABC):
    @activity.defn(name="everloop.labels.due")
    @abstractmethod
    async def due(self, request: CheckRequest) -> LabelsDue: ...

    @activity.defn(name="everloop.labels.judge")
    @abstractmethod
    async def judge(self, request: JudgeRequest) -> JudgeAnswer: ...


class BeginRequest(Record):
    """A search begins: what its trials have in common is written down once."""

    study: str
    """Its id."""
    lifecycle: str
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared
    champion: Champion | None = None
    again: bool = False
    """A retraining: it begins from the champion's parameters, on a quarter of the budget."""


class TellRequest(Record):
    """Trials that have ended, and how the search stands."""

    study: Study
    trials: tuple[Trial, ...]
    spent: float
    """Seconds of the budget."""
    sentence: str
    """How far it is, or what it waits for."""
    ended: str = ""
    """Why it has ended, as `Searched.ended`; `paused`: it goes on later."""


class SearchActivities(ABC):
    @activity.defn(name="everloop.search.begin")
    @abstractmethod
    async def begin(self, request: BeginRequest) -> Study: ...

    @activity.defn(name="everloop.search.tell")
    @abstractmethod
    async def tell(self, request: TellRequest) -> Study: ...


class PoolActivities(ABC):
    @activity.defn(name="everloop.pool.order")
    @abstractmethod
    async def order(self, request: SignedPoolOrder) -> PoolOrdered: ...


# --- workflows' own inputs and answers -----------------------------------------------------------


class ApprovalRequest(Record):
    """The input of an Approval workflow."""

    lifecycle: str
    evidence: Evidence
    evidence_digest: str
    keys: dict[str, str]
    deadline: datetime
    evidence_text: str = ""
    """The bytes that the digest is over."""


class ApprovalAnswer(Record):
    """How a gate ended. `decisions` are signed; a row in a table proves nothing."""

    outcome: Literal["approved", "rejected", "expired"]
    nonce: str
    reason: str
    decisions: tuple[Decision, ...] = ()


class ReleaseAnswer(Record):
    """How a rollout ended. `void`: champion or evidence had changed, so people must decide again.

    `failed`: its workflow was ended from outside, or could not route.
    """

    outcome: Literal["released", "void", "rolled_back", "failed"]
    reason: str
    release_seq: int = 0


class AttendRequest(Record):
    """What a person tells a parked lifecycle to do about the stage that failed."""

    action: Literal["retry", "skip", "abort"]
    person: Short
    stage: Short = ""
    """When given, must be the stage that is parked."""
    reason: str = Field(default="", max_length=4000)


class PauseRequest(Record):
    """A person wants a lifecycle to hold still, or to go on."""

    action: Literal["pause", "resume"]
    person: Short
    reason: str = Field(default="", max_length=2000)


class SearchOrder(Record):
    """What a person tells a running search: `take_best` ends it, and its best so far goes on."""

    action: Literal["take_best"]
    person: Short
    reason: str = Field(default="", max_length=2000)


class SearchState(Record):
    """Where a search stands when it is paused, or continues as new. Nothing of it runs then."""

    study: Study
    spent: float = 0.0
    """Seconds of the budget."""
    next: int = 0
    """Number of the next trial."""
    free: tuple[int, ...] = ()
    """Numbers before it that are to be tried again."""
    ended: int = 0
    """Trials that have ended."""
    gained_at: int = 0
    """There were so many when the best got better the last time."""
    best: Trial | None = None
    seconds: float = 0.0
    """That a trial takes, about."""
    error: str = ""
    """Why the last one failed that did."""
    why: Literal["", "person"] = ""
    """Why it is to end."""
    order: str = ""
    """A person's words for it."""
    lease: AcceptRequest | None = None
    """What the next run adopts."""


class SearchRequest(Record):
    """The input of a Search workflow."""

    lifecycle: str
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared
    champion: Champion | None = None
    again: bool = False
    state: SearchState | None = None
    """It goes on from here."""


class SearchAnswer(Record):
    """How a search ended. `paused`: it goes on from *state*."""

    outcome: Literal["found", "paused"]
    searched: Searched | None = None
    state: SearchState | None = None


class LifecycleAnswer(Record):
    """How a lifecycle ended."""

    outcome: Literal["released", "done", "rejected", "expired", "not_better", "aborted", "failed"]
    """`done`: it came to the stage that the spec's `until` names."""
    reason: str
    version: int | None = None
