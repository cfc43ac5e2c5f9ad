"""A lifecycle: one durable pass of a model from data to release. Start reading here."""

import asyncio
import contextlib
from datetime import datetime, timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    ChildWorkflowError,
    TerminatedError,
    WorkflowAlreadyStartedError,
)
from temporalio.workflow import ParentClosePolicy

from everloop import names
from everloop.contracts import (
    AdmitRequest,
    ApprovalAnswer,
    ApprovalRequest,
    AttendRequest,
    ChampionRequest,
    DataActivities,
    DriftActivities,
    EvaluateRequest,
    EvaluationActivities,
    EvidenceAnswer,
    EvidenceRequest,
    ExportActivities,
    ExportRequest,
    FeaturesActivities,
    LeaseNotice,
    LifecycleActivities,
    LifecycleAnswer,
    LifecycleRequest,
    MonitorRequest,
    Offer,
    PauseRequest,
    PrepareRequest,
    RefitRequest,
    RegisterRequest,
    RegistryActivities,
    ReleaseAnswer,
    ReleaseRequest,
    SearchAnswer,
    SearchOrder,
    SearchRequest,
    SearchState,
    SnapshotRequest,
    TrainingActivities,
    TrainRequest,
    ValidateRequest,
)
from everloop.events import ChallengerCompared, LifecycleFinished, VersionRegistered
from everloop.records import (
    Champion,
    Evaluation,
    Exported,
    Prepared,
    Record,
    Refitted,
    Snapshot,
    Trained,
    Validation,
    Version,
    Wait,
)
from everloop.specs import LifecycleSpec
from everloop.steps import STEP, count
from everloop.trials import Searched
from workflows.approval import Approval
from workflows.journal import Journal, heed_a_cancel, until
from workflows.lease import Lease
from workflows.release import Release
from workflows.search import Search
from workflows.stage import LIGHT_TIMEOUT, RETRY, Aborted, Reached, ReadAgain, Stages

R = TypeVar("R", bound=Record)

GATE_OPENS = timedelta(seconds=10)
ROLLOUT_ATTEMPTS = 3
"""How often a rollout that somebody terminates is begun again before a person is asked."""
USUAL_ROLLOUT = timedelta(seconds=5)
"""A rollout that takes longer says what it waits for."""
ROLLOUT_RETRY = timedelta(seconds=2)
"""After how long a lifecycle looks first whether the model's other rollout has ended."""
ROLLOUT_SELDOM = timedelta(minutes=5)
"""How often it looks at last: each look is in its history, which must last until serve is back."""


class Ended(Exception):  # noqa: N818  # control flow: the lifecycle ends here, as it should
    """The lifecycle ends before its release, with an outcome and a reason."""

    def __init__(self, answer: LifecycleAnswer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


@workflow.defn(name=names.LIFECYCLE)
class Lifecycle:
    """Carries one model from data to release: `stages` is the table of contents."""

    _request: LifecycleRequest
    _spec: LifecycleSpec

    def __init__(self) -> None:
        self._journal = Journal()
        self._lease = Lease(self._journal)
        self._stages = Stages(self._journal, self._lease)
        self._version: int | None = None
        self._gate_open = False
        self._rolling = False
        """A rollout of ours runs, and the traffic may have moved."""
        self._search: workflow.ChildWorkflowHandle[Search, SearchAnswer] | None = None
        """The search that runs."""
        self._searched: Searched | None = None
        self._search_state: SearchState | None = None
        """Where a search stands that was paused."""

    @workflow.run
    async def run(self, request: LifecycleRequest) -> LifecycleAnswer:
        self._request, self._spec = request, request.spec
        self._stages.until, self._stages.fork = request.spec.until, request.fork
        try:
            await self._admitted()
            answer = await self._until_the_data_will_do()
        except Ended as end:
            answer = end.answer
        except Reached as end:
            answer = self._answer("done", str(end))
        except Aborted as end:
            answer = self._answer("aborted", str(end))
        except (asyncio.CancelledError, Exception):  # not GeneratorExit: the worker drops the workflow, nothing ended
            if workflow.cancellation_reason() is None:
                raise
            await self._close("cancelled", workflow.cancellation_reason() or "cancelled by a person")
            raise
        await self._close(answer.outcome, answer.reason)
        return answer

    async def _admitted(self) -> None:
        """Go on only when the API signed the start, person and all, or a drift check of ours made it."""
        said = self._request
        try:
            if workflow.patched("signed-start"):
                await workflow.execute_activity_method(
                    LifecycleActivities.admit,
                    AdmitRequest(),
                    start_to_close_timeout=LIGHT_TIMEOUT,
                    retry_policy=RETRY,
                    summary="who started it",
                )
        except ActivityError as error:
            if not isinstance(error.cause, ApplicationError) or error.cause.type != "BadSignature":
                raise
            said = said.model_copy(update={"submitted_by": ""})
            raise Ended(self._answer("failed", error.cause.message)) from None
        finally:
            self._journal.record(said.submitted())

    async def _until_the_data_will_do(self) -> LifecycleAnswer:
        while True:
            with contextlib.suppress(ReadAgain):
                return await self.stages()

    async def stages(self) -> LifecycleAnswer:
        """One line per stage."""
        snapshot = await self._snapshot()
        await self._validate(snapshot)
        champion = await self._champion()
        prepared = await self._prepare(snapshot, champion)
        trained = await self._train(snapshot, prepared, champion)
        prepared = trained.prepared or prepared  # a search may choose other features
        evaluation = await self._evaluate(snapshot, prepared, trained, champion)
        self._must_beat_the_champion(evaluation)
        refitted = await self._refit(snapshot, prepared, trained)
        exported = await self._export(snapshot, refitted)
        version = await self._register(snapshot, evaluation, refitted, exported)
        released = await self._approved_and_released(version)
        await self._monitor(snapshot, released.release_seq)
        return self._answer("released", released.reason)

    @workflow.signal(name=names.LEASE_OFFERED, description="The pool's offer of a slot")
    def lease_offered(self, offer: Offer) -> None:
        self._stages.offered(offer)

    @workflow.signal(name=names.LEASE_NOTICED, description="Others need the slot: let go at the next checkpoint")
    def lease_noticed(self, notice: LeaseNotice) -> None:
        self._stages.noticed(notice)

    @workflow.signal(name=names.GATE_OPENED, description="The approval can be decided now")
    def gate_opened(self) -> None:
        self._gate_open = True

    @workflow.update(name=names.ATTEND, description="Retry, skip or abort the stage that failed")
    async def attend(self, request: AttendRequest) -> str:
        self._stages.attend(request)
        return request.action

    @attend.validator
    def check_attend(self, request: AttendRequest) -> None:
        self._stages.check_attend(request)

    @workflow.update(name=names.PAUSE, description="Hold still at the next checkpoint, or go on")
    async def pause(self, request: PauseRequest) -> str:
        self._stages.pause(request)
        return request.action

    @pause.validator
    def check_pause(self, request: PauseRequest) -> None:
        self._stages.check_pause(request)

    @workflow.update(name=names.SEARCH_ORDER, description="Take the best that the search has found so far")
    async def search(self, order: SearchOrder) -> str:
        assert self._search is not None  # noqa: S101  # looked at by the validator
        await self._search.signal(Search.order, order)
        return order.action

    @search.validator
    def check_search(self, order: SearchOrder) -> None:  # noqa: ARG002
        if self._search is None:
            raise ApplicationError("no search of this lifecycle runs", type="NotWaiting", non_retryable=True)

    # --- stages ---------------------------------------------------------------------------------

    async def _snapshot(self) -> Snapshot:
        return _there(
            await self._stages.run(
                "snapshot",
                DataActivities.snapshot,
                SnapshotRequest(spec=self._spec),
                lambda made: f"{made.rows:,} rows; files: {made.files}; {made.size_bytes:,} bytes",
            )
        )

    async def _validate(self, snapshot: Snapshot) -> Validation | None:
        return await self._stages.run(
            "validate",
            DataActivities.validate,
            ValidateRequest(spec=self._spec, snapshot=snapshot),
            _checks,
        )

    async def _champion(self) -> Champion | None:
        answer = await workflow.execute_activity_method(
            RegistryActivities.champion,
            ChampionRequest(project=self._spec.project, model=self._spec.model),
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="who answers now",
        )
        return answer.champion

    async def _prepare(self, snapshot: Snapshot, champion: Champion | None) -> Prepared:
        since = f", of rows since {self._spec.since:%Y-%m-%d %H:%M} UTC alone" if self._spec.since else ""
        return _there(
            await self._stages.run(
                "prepare",
                FeaturesActivities.prepare,
                PrepareRequest(spec=self._spec, snapshot=snapshot, champion=champion),
                lambda made: (
                    f"{made.feature_count} features; {made.train_rows:,} train, {made.validation_rows:,} validation, "
                    f"{made.test_rows:,} test rows" + since + (f"; {made.selection}" if made.selection else "")
                ),
            )
        )

    async def _train(self, snapshot: Snapshot, prepared: Prepared, champion: Champion | None) -> Trained:
        async def searched(request: TrainRequest) -> TrainRequest:
            if self._searched is None:
                self._searched = await self._found(snapshot, prepared, champion)
            return request.model_copy(update={"searched": self._searched})

        return _there(
            await self._stages.run(
                "train",
                TrainingActivities.train,
                TrainRequest(spec=self._spec, prepared=prepared, snapshot=snapshot, code=snapshot.code),
                self._learned,
                searched if self._spec.search is not None else None,
            )
        )

    def _learned(self, made: Trained) -> str:
        learned = count(made.iterations, _unit(made)) + _again(made)
        if self._searched is None:
            return learned
        members = made.parameters.get("members", ()) if made.family == "ensemble" else ()
        chosen = f"an ensemble of {len(members)}" if members else f"{made.family}, {learned}"
        return f"{chosen}; {self._searched.sentence}"

    async def _found(self, snapshot: Snapshot, prepared: Prepared, champion: Champion | None) -> Searched:
        """What the search comes to. Raises `CancelledError` where a pause ends it: it goes on from there."""
        lifecycle = workflow.info().workflow_id
        self._search = await workflow.start_child_workflow(
            Search.run,
            SearchRequest(
                lifecycle=lifecycle,
                spec=self._spec,
                snapshot=snapshot,
                prepared=prepared,
                champion=champion,
                again=champion is not None and self._request.trigger != "manual",
                state=self._search_state,
            ),
            id=names.search_id(lifecycle),
            id_reuse_policy=WorkflowIDReusePolicy.TERMINATE_IF_RUNNING,
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            static_summary=f"Search for {self._spec.model}",
        )
        self._stages.pauses(self._search)
        try:
            answer = await self._search
        except ChildWorkflowError as error:
            if workflow.cancellation_reason() is not None or isinstance(error.cause, CancelledError):
                raise CancelledError("the search was cancelled") from None
            raise _of_the_search(error) from None
        finally:
            self._search = None
            self._stages.pauses(None)
        self._search_state = answer.state
        if answer.searched is None:
            raise CancelledError("the search is paused")
        return answer.searched

    async def _evaluate(
        self, snapshot: Snapshot, prepared: Prepared, trained: Trained, champion: Champion | None
    ) -> Evaluation:
        evaluation = _there(
            await self._stages.run(
                "evaluate",
                EvaluationActivities.evaluate,
                EvaluateRequest(
                    spec=self._spec,
                    snapshot=snapshot,
                    prepared=prepared,
                    trained=trained,
                    champion=champion,
                    certainty=0.0 if self._request.trigger == "manual" else self._spec.retrain.certainty,
                ),
                lambda made: made.comparison.reason,
            )
        )
        self._journal.record(ChallengerCompared(comparison=evaluation.comparison))
        return evaluation

    def _must_beat_the_champion(self, evaluation: Evaluation) -> None:
        comparison = evaluation.comparison
        if comparison.verdict == "not_better":
            raise Ended(self._answer("not_better", comparison.reason))
        if comparison.verdict == "no_fresh_rows" and self._request.trigger != "manual":
            raise Ended(self._answer("not_better", comparison.reason))

    async def _refit(self, snapshot: Snapshot, prepared: Prepared, trained: Trained) -> Refitted:
        spec = _with_features(self._spec, trained)
        return _there(
            await self._stages.run(
                "refit",
                TrainingActivities.refit,
                RefitRequest(spec=spec, snapshot=snapshot, prepared=prepared, trained=trained, code=trained.code),
                lambda made: f"fitted again on all {made.rows:,} labelled rows" + _again(made),
            )
        )

    async def _export(self, snapshot: Snapshot, refitted: Refitted) -> Exported:
        exported = _there(
            await self._stages.run(
                "export",
                ExportActivities.export,
                ExportRequest(spec=self._spec, snapshot=snapshot, refitted=refitted),
                lambda made: (
                    f"ONNX {made.model.sha256[:12]}, equal to the trained model on "
                    f"{made.parity.rows + made.parity.edge_rows:,} rows "
                    f"(max difference {made.parity.max_difference:.1e})"
                    + (
                        f"; {made.model.size_bytes / 2**20:.2f} MiB, one row takes {made.latency_ms:.3f} ms"
                        if made.latency_ms is not None
                        else ""
                    )
                ),
            )
        )
        await self._lease.give_back()
        return exported

    async def _register(
        self, snapshot: Snapshot, evaluation: Evaluation, refitted: Refitted, exported: Exported
    ) -> Version:
        assert self._lease.last is not None  # noqa: S101  # export ran under it
        version = _there(
            await self._stages.run(
                "register",
                RegistryActivities.register,
                RegisterRequest(
                    spec=self._spec,
                    slot=self._lease.last,
                    snapshot=snapshot,
                    evaluation=evaluation,
                    refitted=refitted,
                    exported=exported,
                ),
                lambda made: f"version {made.number}",
            )
        )
        self._version = version.number
        workflow.upsert_search_attributes([names.VERSION.value_set(f"{version.model}/{version.number}")])
        self._journal.record(VersionRegistered(version=version.number, model_digest=version.model_digest))
        return version

    async def _approved_and_released(self, version: Version) -> ReleaseAnswer:
        """Ask people until an approval is still about the present champion when the route changes."""
        while True:
            evidence = await self._evidence(version)
            approval = await self._approved(evidence)
            released = await self._released(version, evidence, approval)
            if released.outcome == "released":
                return released

    async def _evidence(self, version: Version) -> EvidenceAnswer:
        return await workflow.execute_activity_method(
            RegistryActivities.evidence,
            EvidenceRequest(version=version, submitted_by=self._request.submitted_by, trigger=self._request.trigger),
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="what the approvers are shown",
        )

    async def _approved(self, evidence: EvidenceAnswer) -> ApprovalAnswer:
        self._stages.started("approve")
        deadline = workflow.now() + self._spec.gate.deadline
        workflow.upsert_search_attributes([names.NEEDS_APPROVAL.value_set(True), names.DEADLINE.value_set(deadline)])
        await self._journal.settle()
        answer = await self._gate(evidence, deadline)
        workflow.upsert_search_attributes([names.NEEDS_APPROVAL.value_set(False)])
        if answer.outcome != "approved":
            raise Ended(self._answer(answer.outcome, answer.reason))
        self._stages.finished("approve", answer.reason)
        return answer

    async def _gate(self, evidence: EvidenceAnswer, deadline: datetime) -> ApprovalAnswer:
        """The gate's answer. One that is cancelled or terminated under us (a Reset does that) is opened again."""
        while True:
            try:
                return await self._asked(evidence, deadline)
            except ChildWorkflowError as error:
                ended_by_others = isinstance(error.cause, CancelledError | TerminatedError)
                if workflow.cancellation_reason() is not None or not ended_by_others:
                    raise

    async def _asked(self, evidence: EvidenceAnswer, deadline: datetime) -> ApprovalAnswer:
        lifecycle = workflow.info().workflow_id
        self._gate_open = False
        gate = await workflow.start_child_workflow(
            Approval.run,
            ApprovalRequest(
                lifecycle=lifecycle,
                evidence=evidence.evidence,
                evidence_digest=evidence.digest,
                evidence_text=evidence.text,
                keys=evidence.keys,
                deadline=deadline,
            ),
            id=names.approval_id(lifecycle),
            id_reuse_policy=WorkflowIDReusePolicy.TERMINATE_IF_RUNNING,
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            static_summary=f"Release version {self._version} of {self._spec.model}?",
        )
        # A Reset can lose the signal: then the wait is said all the same.
        await until(lambda: self._gate_open, GATE_OPENS, "the gate opens")
        with self._journal.waiting(self._gate_wait(), needs="approval"):
            return await gate

    async def _released(self, version: Version, evidence: EvidenceAnswer, approval: ApprovalAnswer) -> ReleaseAnswer:
        request = ReleaseRequest(
            version=version,
            submitted_by=self._request.submitted_by,
            trigger=self._request.trigger,
            evidence_digest=evidence.digest,
            champion_digest=evidence.evidence.champion_digest,
            nonce=approval.nonce,
            gate=names.approval_id(workflow.info().workflow_id),
            decisions=approval.decisions,
            evidence=evidence.text,
        )
        answers = "the version before answers" if evidence.evidence.champion_version else "nothing answers"
        hint = f"see serve's log (logs/serve.log); {answers} until a retry succeeds"
        while True:
            self._stages.started("release")
            await self._journal.settle()
            answer = await self._rollout(request)
            if answer.outcome == "rolled_back":
                await self._stages.failed_outright("release", answer.reason, hint)
            elif answer.outcome == "failed":
                await self._stages.failed_outright("release", answer.reason, "retry goes on with the rollout")
            elif answer.outcome == "void":
                self._stages.undone("release", answer.reason)
                return answer
            else:
                self._stages.finished("release", answer.reason)
                return answer

    async def _rollout(self, request: ReleaseRequest) -> ReleaseAnswer:
        """The rollout goes to its end even when this lifecycle is cancelled: half a release is worse than a whole."""
        heed_a_cancel()
        rollout = asyncio.create_task(self._one_rollout(request))
        try:
            if await until(rollout.done, USUAL_ROLLOUT, "the rollout"):
                return await rollout
            with self._journal.waiting(self._serve_wait()) if self._rolling else contextlib.nullcontext():
                return await asyncio.shield(rollout)
        except asyncio.CancelledError:
            if not self._rolling:
                rollout.cancel()
                raise
            with self._journal.waiting(self._late_wait()):
                answer = await rollout
            if answer.outcome != "released":
                raise
            return answer.model_copy(update={"reason": f"{answer.reason}; a cancel came too late"})

    async def _one_rollout(self, request: ReleaseRequest) -> ReleaseAnswer:
        """The model's one rollout at a time; a second waits. What ends it from outside is an answer, not our end."""
        ended_by_others, pause = 0, ROLLOUT_RETRY
        while True:
            self._rolling = True
            try:
                return await workflow.execute_child_workflow(
                    Release.run,
                    request,
                    id=names.release_id(self._spec.project, self._spec.model),
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                    parent_close_policy=ParentClosePolicy.ABANDON,
                    static_summary=f"{self._spec.model}: version {request.version.number}",
                )
            except WorkflowAlreadyStartedError:
                self._rolling = False
                await self._other_rollout(pause)
                pause = min(pause * 2, ROLLOUT_SELDOM)
            except ChildWorkflowError as error:
                ended_by_others += isinstance(error.cause, TerminatedError)
                if 0 < ended_by_others < ROLLOUT_ATTEMPTS:
                    continue  # it may have moved the traffic: only a rollout that ends says where it is
                return ReleaseAnswer(outcome="failed", reason=f"the rollout did not end well: {_innermost(error)}")

    def _late_wait(self) -> Wait:
        return Wait(
            what=f"the rollout of version {self._version} to end: a cancel came during it",
            since=workflow.now(),
            unblocks="it ends by itself once the prediction server answers; logs/serve.log says why it does not",
        )

    def _serve_wait(self) -> Wait:
        return Wait(
            what=f"the prediction server to answer with version {self._version} of {self._spec.model}",
            since=workflow.now(),
            unblocks="it does so by itself once it runs; logs/serve.log says why it does not",
        )

    async def _other_rollout(self, pause: timedelta) -> None:
        wait = Wait(
            what=f"another rollout of {self._spec.model} to end",
            since=workflow.now(),
            unblocks="it goes on by itself",
        )
        with self._journal.waiting(wait):
            await workflow.sleep(pause, summary="another rollout of this model")

    async def _monitor(self, snapshot: Snapshot, release_seq: int) -> None:
        """Watch the model. What learns after a drift is the code that was approved, whatever its folder holds then."""
        await self._stages.run(
            "monitor",
            DriftActivities.watch,
            MonitorRequest(spec=_pinned(self._spec, snapshot), release_seq=release_seq),
            lambda watched: watched.sentence,
        )

    # --- the end --------------------------------------------------------------------------------

    async def _close(self, outcome: str, reason: str) -> None:
        await self._lease.give_back()
        self._journal.record(LifecycleFinished(outcome=outcome, reason=reason))
        self._journal.say(f"**{outcome}**: {reason}")
        await self._journal.settle()

    def _answer(self, outcome: str, reason: str) -> LifecycleAnswer:
        return LifecycleAnswer(outcome=outcome, reason=reason, version=self._version)

    def _gate_wait(self) -> Wait:
        me = workflow.info().workflow_id
        return Wait(
            what=f"a decision on version {self._version} of {self._spec.model}",
            since=workflow.now(),
            unblocks=f"`everloop approve {me}` or `everloop reject {me}`, or the approval page",
        )


def _checks(made: Validation) -> str:
    warnings = [check for check in made.checks if check.level == "warning"]
    if not warnings:
        return f"{len(made.checks)} checks passed"
    said = "; ".join(check.message for check in warnings[:3])
    return f"{len(made.checks)} checks, {len(warnings)} warning{'s' if len(warnings) > 1 else ''}: {said}"


def _pinned(spec: LifecycleSpec, snapshot: Snapshot) -> LifecycleSpec:
    if snapshot.code is None or snapshot.code.archive is None:
        return spec
    return spec.model_copy(update={"code": f"sha256:{snapshot.code.archive.sha256}"})


def _unit(made: Trained | Refitted) -> str:
    return made.unit or {"lightgbm": "round", "torch": "epoch"}.get(made.family, STEP)


def _again(made: Trained | Refitted) -> str:
    """What a training kept and did again when its job was ended, and where it was."""
    resumed = made.ran.resumed if made.ran else None
    ranks = made.ran.members if made.ran else ()
    together = f"; {len(ranks)} processes together ({', '.join(each.device for each in ranks)})" if ranks else ""
    return together + (f"; {resumed.sentence(_unit(made))}" if resumed else "")


def _with_features(spec: LifecycleSpec, trained: Trained) -> LifecycleSpec:
    """The spec with the features that a search chose: so are the rows of a refit made."""
    return spec if trained.features is None else spec.model_copy(update={"features": trained.features})


def _of_the_search(error: ChildWorkflowError) -> ApplicationError:
    """Why a search has ended without an answer, as a stage's failure."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return cause
    hint = "a retry begins it anew"
    return ApplicationError(f"the search did not end well: {_innermost(error)}", "search", hint, type="JobFailed")


def _there(result: R | None) -> R:
    assert result is not None  # noqa: S101  # only skippable stages can be missing, see specs.SKIPPABLE
    return result


def _innermost(error: BaseException) -> str:
    if isinstance(error.__cause__, TerminatedError):
        return "it was terminated in Temporal"
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
