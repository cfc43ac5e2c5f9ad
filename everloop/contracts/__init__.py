"""What workflows ask of activities: one interface per noun, one request per call. Workflows' own inputs and answers.

Workflows call these through `workflow.execute_activity_method`, so that control and API never load
the heavy parts. An implementation repeats the decorator with the same name.
What is asked of compute (`JobRequest`) is one job in a child process on the slot of a lease; the rest are light
activities beside the workflows, on control.
"""

from everloop.contracts.approval import ApprovalAnswer, ApprovalRequest
from everloop.contracts.data import DataActivities, SnapshotRequest, ValidateRequest
from everloop.contracts.disk import DiskActivities
from everloop.contracts.drift import (
    CheckRequest,
    DriftActivities,
    DriftComputeActivities,
    DriftRequest,
    MonitorRequest,
    NextWindow,
    TriggerAnswer,
    TriggerRequest,
    Watched,
)
from everloop.contracts.evaluation import EvaluateRequest, EvaluationActivities
from everloop.contracts.export import ExportActivities, ExportRequest
from everloop.contracts.features import FeaturesActivities, PrepareRequest
from everloop.contracts.fork import Fork, ForkActivities, KeptRequest
from everloop.contracts.job import JobRequest
from everloop.contracts.journal import AppendRequest, JournalActivities
from everloop.contracts.labels import (
    JudgeAnswer,
    Judged,
    JudgeRequest,
    LabelActivities,
    LabelComputeActivities,
    LabelsDue,
    PerformanceRequest,
)
from everloop.contracts.lease import (
    AcceptRequest,
    CommitRequest,
    LeaseActivities,
    LeaseAnswer,
    LeaseNotice,
    LeaseRequest,
    Offer,
    Wants,
)
from everloop.contracts.lifecycle import (
    AdmitRequest,
    AttendRequest,
    LifecycleActivities,
    LifecycleAnswer,
    LifecycleRequest,
)
from everloop.contracts.pause import PauseRequest
from everloop.contracts.pool import PoolActivities, PoolRun, PoolStep, PoolStepRequest
from everloop.contracts.proof import MemberOfLease, ProofActivities, ProveAnswer, ProveRequest
from everloop.contracts.registry import (
    ChampionAnswer,
    ChampionRequest,
    EvidenceAnswer,
    EvidenceRequest,
    RegisterRequest,
    RegistryActivities,
)
from everloop.contracts.release import ObserveRequest, ReleaseActivities, ReleaseAnswer, ReleaseRequest, RollBackRequest
from everloop.contracts.score import ChunkRequest, CutRequest, JoinRequest, ScoreActivities, ScoreJobActivities
from everloop.contracts.search import (
    BeginRequest,
    SearchActivities,
    SearchAnswer,
    SearchJobActivities,
    SearchOrder,
    SearchRequest,
    SearchState,
    TellRequest,
    TrialRequest,
)
from everloop.contracts.short import Short
from everloop.contracts.training import RefitRequest, TrainingActivities, TrainRequest

__all__ = [
    "AcceptRequest",
    "AdmitRequest",
    "AppendRequest",
    "ApprovalAnswer",
    "ApprovalRequest",
    "AttendRequest",
    "BeginRequest",
    "ChampionAnswer",
    "ChampionRequest",
    "CheckRequest",
    "ChunkRequest",
    "CommitRequest",
    "CutRequest",
    "DataActivities",
    "DiskActivities",
    "DriftActivities",
    "DriftComputeActivities",
    "DriftRequest",
    "EvaluateRequest",
    "EvaluationActivities",
    "EvidenceAnswer",
    "EvidenceRequest",
    "ExportActivities",
    "ExportRequest",
    "FeaturesActivities",
    "Fork",
    "ForkActivities",
    "JobRequest",
    "JoinRequest",
    "JournalActivities",
    "JudgeAnswer",
    "JudgeRequest",
    "Judged",
    "KeptRequest",
    "LabelActivities",
    "LabelComputeActivities",
    "LabelsDue",
    "LeaseActivities",
    "LeaseAnswer",
    "LeaseNotice",
    "LeaseRequest",
    "LifecycleActivities",
    "LifecycleAnswer",
    "LifecycleRequest",
    "MemberOfLease",
    "MonitorRequest",
    "NextWindow",
    "ObserveRequest",
    "Offer",
    "PauseRequest",
    "PerformanceRequest",
    "PoolActivities",
    "PoolRun",
    "PoolStep",
    "PoolStepRequest",
    "PrepareRequest",
    "ProofActivities",
    "ProveAnswer",
    "ProveRequest",
    "RefitRequest",
    "RegisterRequest",
    "RegistryActivities",
    "ReleaseActivities",
    "ReleaseAnswer",
    "ReleaseRequest",
    "RollBackRequest",
    "ScoreActivities",
    "ScoreJobActivities",
    "SearchActivities",
    "SearchAnswer",
    "SearchJobActivities",
    "SearchOrder",
    "SearchRequest",
    "SearchState",
    "Short",
    "SnapshotRequest",
    "TellRequest",
    "TrainRequest",
    "TrainingActivities",
    "TrialRequest",
    "TriggerAnswer",
    "TriggerRequest",
    "ValidateRequest",
    "Wants",
    "Watched",
]
