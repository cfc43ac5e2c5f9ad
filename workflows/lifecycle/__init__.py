"""A lifecycle: one durable pass of a model from data to release. Start reading here."""

import asyncio
import contextlib

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from everloop import names
from everloop.contracts import (
    AdmitRequest,
    ApprovalAnswer,
    AttendRequest,
    ChampionRequest,
    DriftActivities,
    EvidenceAnswer,
    EvidenceRequest,
    LeaseNotice,
    LifecycleActivities,
    LifecycleAnswer,
    LifecycleRequest,
    MonitorRequest,
    Offer,
    PauseRequest,
    RegisterRequest,
    RegistryActivities,
    ReleaseAnswer,
    ReleaseRequest,
    SearchOrder,
)
from everloop.events import ChallengerCompared, LifecycleFinished, VersionRegistered
from everloop.records import Champion, Evaluation, Exported, Prepared, Refitted, Snapshot, Trained, Version
from everloop.specs import LifecycleSpec
from workflows.journal import Journal
from workflows.lease import Lease
from workflows.lifecycle.approval import Gate
from workflows.lifecycle.ended import Ended
from workflows.lifecycle.jobs import JobStages, there
from workflows.lifecycle.release import Rollout
from workflows.lifecycle.search import Searching
from workflows.stage import LIGHT_TIMEOUT, RETRY, Aborted, Reached, ReadAgain, Stages


@workflow.defn(name=names.LIFECYCLE)
class Lifecycle:
    """Carries one model from data to release: `stages` is the table of contents."""

    _request: LifecycleRequest
    _spec: LifecycleSpec
    _jobs: JobStages

    def __init__(self) -> None:
        self._journal = Journal()
        self._lease = Lease(self._journal)
        self._stages = Stages(self._journal, self._lease)
        self._search = Searching(self._stages)
        self._gate = Gate(self._journal, self._stages)
        self._rollout = Rollout(self._journal, self._stages)
        self._version: int | None = None

    @workflow.run
    async def run(self, request: LifecycleRequest) -> LifecycleAnswer:
        self._request, self._spec = request, request.spec
        self._jobs = JobStages(request, self._stages, self._search)
        self._stages.until, self._stages.fork = request.spec.until, request.fork
        try:
            await self._admitted()
            answer = await self._until_the_data_will_do()
        except Ended as end:
            answer = self._answer(end.outcome, end.reason)
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
            raise Ended("failed", error.cause.message) from None
        finally:
            self._journal.record(said.submitted())

    async def _until_the_data_will_do(self) -> LifecycleAnswer:
        while True:
            with contextlib.suppress(ReadAgain):
                return await self.stages()

    async def stages(self) -> LifecycleAnswer:
        """One line per stage."""
        snapshot = await self._jobs.snapshot()
        await self._jobs.validate(snapshot)
        champion = await self._champion()
        prepared = await self._jobs.prepare(snapshot, champion)
        trained = await self._jobs.train(snapshot, prepared, champion)
        prepared = trained.prepared or prepared  # a search may choose other features
        evaluation = await self._evaluated(snapshot, prepared, trained, champion)
        self._must_beat_the_champion(evaluation)
        refitted = await self._jobs.refit(snapshot, prepared, trained)
        exported = await self._exported(snapshot, refitted)
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
        self._gate.opened = True

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
        await self._search.order(order)
        return order.action

    @search.validator
    def check_search(self, order: SearchOrder) -> None:  # noqa: ARG002
        self._search.check()

    # --- stages ---------------------------------------------------------------------------------

    async def _champion(self) -> Champion | None:
        answer = await workflow.execute_activity_method(
            RegistryActivities.champion,
            ChampionRequest(project=self._spec.project, model=self._spec.model),
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="who answers now",
        )
        return answer.champion

    async def _evaluated(
        self, snapshot: Snapshot, prepared: Prepared, trained: Trained, champion: Champion | None
    ) -> Evaluation:
        evaluation = await self._jobs.evaluate(snapshot, prepared, trained, champion)
        self._journal.record(ChallengerCompared(comparison=evaluation.comparison))
        return evaluation

    def _must_beat_the_champion(self, evaluation: Evaluation) -> None:
        comparison = evaluation.comparison
        if comparison.verdict == "not_better":
            raise Ended("not_better", comparison.reason)
        if comparison.verdict == "no_fresh_rows" and self._request.trigger != "manual":
            raise Ended("not_better", comparison.reason)

    async def _exported(self, snapshot: Snapshot, refitted: Refitted) -> Exported:
        exported = await self._jobs.export(snapshot, refitted)
        await self._lease.give_back()
        return exported

    async def _register(
        self, snapshot: Snapshot, evaluation: Evaluation, refitted: Refitted, exported: Exported
    ) -> Version:
        assert self._lease.last is not None  # noqa: S101  # export ran under it
        version = there(
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
            approval = await self._gate.approved(evidence, self._spec.gate.deadline)
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
        return await self._rollout.released(request, champion=bool(evidence.evidence.champion_version))

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


def _pinned(spec: LifecycleSpec, snapshot: Snapshot) -> LifecycleSpec:
    if snapshot.code is None or snapshot.code.archive is None:
        return spec
    return spec.model_copy(update={"code": f"sha256:{snapshot.code.archive.sha256}"})
