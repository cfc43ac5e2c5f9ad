"""Small classes that work, for tests of what is decided: compute activities that answer at once.

Everything else in those tests is real: Temporal, control's activities, the store, the artifact store.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from temporalio import activity

from everloop.artifacts import Artifacts
from everloop.contracts import (
    ChunkRequest,
    CutRequest,
    DataActivities,
    DriftComputeActivities,
    DriftRequest,
    EvaluateRequest,
    EvaluationActivities,
    ExportActivities,
    ExportRequest,
    FeaturesActivities,
    JobRequest,
    JoinRequest,
    LabelComputeActivities,
    PerformanceRequest,
    PrepareRequest,
    ProveAnswer,
    ProveRequest,
    RefitRequest,
    ScoreJobActivities,
    SearchJobActivities,
    SnapshotRequest,
    TrainingActivities,
    TrainRequest,
    TrialRequest,
    ValidateRequest,
)
from everloop.records import (
    Break,
    Check,
    Code,
    Column,
    Comparison,
    DriftReport,
    Evaluation,
    Exported,
    Measure,
    Parity,
    PerformanceReport,
    Prepared,
    Ran,
    Refitted,
    Signature,
    Snapshot,
    Trained,
    Validation,
    WindowPerformance,
)
from everloop.scores import Chunk, Cut, Joined
from everloop.trials import Trial, Trials


class QuickCompute(
    DataActivities,
    FeaturesActivities,
    TrainingActivities,
    SearchJobActivities,
    EvaluationActivities,
    ExportActivities,
    DriftComputeActivities,
    LabelComputeActivities,
    ScoreJobActivities,
):
    """Every compute stage, answered at once. `hooks[stage]` may raise or wait; `calls` lists what was asked."""

    def __init__(self, artifacts: Artifacts) -> None:
        self.artifacts = artifacts
        self.calls: list[tuple[str, JobRequest]] = []
        self.hooks: dict[str, Callable[[], Any]] = {}
        self.verdict = "better"
        self.share = 0.0
        self.measures: tuple[Measure, ...] = ()
        self.broken: tuple[Break, ...] = ()
        self.performance: tuple[WindowPerformance, ...] = ()
        self.features: tuple[Column, ...] = ()
        self.code: Code | None = None
        self.ran: Ran | None = None
        """How the training ran."""
        self.unit = ""
        """What the trainer counts."""
        self.value: Callable[[int], float] = lambda number: 0.5 + 0.4 * number / (number + 1)
        """What a trial comes to: ever better, by less and less."""
        self.trial_seconds = 3.0
        """How long a trial says that it took."""

    @property
    def _ran(self) -> Ran:
        """How any job ran: no two alike."""
        return Ran(device="cpu0", token=1, attempt=1, seconds=float(len(self.calls)))

    async def _called(self, stage: str, request: JobRequest) -> None:
        self.calls.append((stage, request))
        hook = self.hooks.get(stage)
        if hook is not None:
            answer = hook()
            if hasattr(answer, "__await__"):
                await answer

    def stages(self) -> list[str]:
        return [stage for stage, _ in self.calls]

    @activity.defn(name="everloop.data.snapshot")
    async def snapshot(self, request: SnapshotRequest) -> Snapshot:
        await self._called("snapshot", request)
        manifest = self.artifacts.put(b'{"columns": [], "files": []}', "manifest.json")
        return Snapshot(
            manifest=manifest, rows=100, files=1, size_bytes=1000, columns=(), schema_digest="0", code=self.code,
            ran=self._ran,
        )  # fmt: skip

    @activity.defn(name="everloop.data.validate")
    async def validate(self, request: ValidateRequest) -> Validation:
        await self._called("validate", request)
        return Validation(checks=(Check(name="target", level="ok", message="two classes"),))

    @activity.defn(name="everloop.features.prepare")
    async def prepare(self, request: PrepareRequest) -> Prepared:
        await self._called("prepare", request)
        blob = self.artifacts.put(b"matrix")
        return Prepared(
            matrix=blob,
            pipeline=blob,
            train_rows=60,
            validation_rows=20,
            test_rows=20,
            fresh_rows=20,
            features=self.features,
            feature_count=len(self.features),
            ran=self._ran,
        )

    @activity.defn(name="everloop.training.train")
    async def train(self, request: TrainRequest) -> Trained:
        await self._called("train", request)
        model = self.artifacts.put(b"model")
        ran = self.ran or self._ran
        return Trained(model=model, iterations=7, metrics={"auc": 0.8}, ran=ran, code=request.code, unit=self.unit)

    @activity.defn(name="everloop.search.try")
    async def attempt(self, request: TrialRequest) -> Trials:
        await self._called("trial", request)
        recent = {trial.number for trial in request.recent} | {n for kept in request.kept for n in kept.numbers}
        knew = request.study.told
        while knew in recent:
            knew += 1
        made = [
            Trial(
                number=number,
                family="linear",
                state="complete",
                values=(self.value(number),),
                knew=knew,
                beside=tuple(sorted(each for each in recent if each > knew)),
                seconds=self.trial_seconds,
                left=request.seconds,
                device=request.slot.device,
            )
            for number in request.numbers
        ]
        ran = Ran(device=request.slot.device, token=request.slot.token, attempt=1, seconds=self.trial_seconds)
        if not request.by_reference:
            return Trials(trials=tuple(made), ran=ran)
        lines = "".join(f"{trial.model_dump_json()}\n" for trial in made)
        kept = self.artifacts.put(lines.encode(), "trials.jsonl")
        return Trials(trials=tuple(each.brief() for each in made), kept=kept, ran=ran)

    @activity.defn(name="everloop.training.refit")
    async def refit(self, request: RefitRequest) -> Refitted:
        await self._called("refit", request)
        blob = self.artifacts.put(b"refitted")
        return Refitted(model=blob, pipeline=blob, rows=100, seen=self.artifacts.put(b"seen"), code=request.code)

    @activity.defn(name="everloop.evaluation.evaluate")
    async def evaluate(self, request: EvaluateRequest) -> Evaluation:
        await self._called("evaluate", request)
        verdict = self.verdict if request.champion else "no_champion"
        comparison = Comparison.model_validate(
            {
                "verdict": verdict,
                "reason": f"{verdict}: .8 against .7",
                "champion_version": request.champion.version if request.champion else None,
            }
        )
        return Evaluation(metrics={"auc": 0.8}, rows=20, comparison=comparison, report=self.artifacts.put(b"{}"))

    @activity.defn(name="everloop.export.export")
    async def export(self, request: ExportRequest) -> Exported:
        await self._called("export", request)
        signature = Signature(task="binary", fields=(), target="y")
        return Exported(
            model=self.artifacts.put(f"onnx {len(self.calls)}".encode(), "model.onnx"),
            signature=self.artifacts.put(signature.model_dump_json().encode()),
            parity=Parity(rows=100, edge_rows=5, mismatches=0, max_difference=0.0, tolerance=1e-4),
            reference=self.artifacts.put(b"reference"),
        )

    @activity.defn(name="everloop.drift.measure")
    async def measure(self, request: DriftRequest) -> DriftReport:
        await self._called("measure", request)
        return DriftReport(
            window=request.window,
            rows=500,
            reference_rows=500,
            columns=(),
            share=self.share,
            measures=self.measures,
            broken=self.broken,
        )

    @activity.defn(name="everloop.labels.perform")
    async def perform(self, request: PerformanceRequest) -> PerformanceReport:
        await self._called("perform", request)
        return PerformanceReport(windows=self.performance, labels=9, joined=7, corrected=1)

    @activity.defn(name="everloop.score.cut")
    async def cut(self, request: CutRequest) -> Cut:
        await self._called("cut", request)
        return Cut(rows=30, chunks=("1", "2", "3"), rejected=0)

    @activity.defn(name="everloop.score.chunk")
    async def chunk(self, request: ChunkRequest) -> Chunk:
        await self._called("chunk", request)
        return Chunk(scored=request.chunk, rejects="", rows=10, rejected=0)

    @activity.defn(name="everloop.score.join")
    async def join(self, request: JoinRequest) -> Joined:
        await self._called("join", request)
        out = self.artifacts.put("".join(request.scored).encode())
        return Joined(out=out, rejects=None, rows=request.rows, rejected=0)

    @activity.defn(name="everloop.lease.prove")
    async def prove(self, request: ProveRequest) -> ProveAnswer:
        """Nothing runs after its activity here: all are dead."""
        hook = self.hooks.get("prove")
        return ProveAnswer(dead=request.members if hook is None else hook(request.members))

    @activity.defn(name="everloop.disk.room")
    async def room(self) -> None:
        hook = self.hooks.get("room")
        if hook is not None:
            hook()

    def all(self) -> list[Callable[..., Any]]:
        return [
            self.snapshot,
            self.validate,
            self.prepare,
            self.train,
            self.attempt,
            self.refit,
            self.evaluate,
            self.export,
            self.measure,
            self.perform,
            self.cut,
            self.chunk,
            self.join,
            self.room,
            self.prove,
        ]


def at(year: int, month: int, day: int) -> datetime:
    """Midnight UTC."""
    return datetime(year, month, day, tzinfo=UTC)
