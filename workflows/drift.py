"""A check of a monitor: every window that has closed, one after the other, and at most one retraining each."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

from everloop import names, signing
from everloop.contracts import (
    CheckRequest,
    DriftActivities,
    DriftComputeActivities,
    DriftRequest,
    LeaseNotice,
    LifecycleAnswer,
    LifecycleRequest,
    NextWindow,
    Offer,
    TriggerAnswer,
    TriggerRequest,
    Wants,
)
from everloop.events import DriftChecked
from everloop.records import DriftReport, Window
from workflows.disk import Room
from workflows.journal import Journal, heed_a_cancel
from workflows.lease import Lease
from workflows.stage import LIGHT_TIMEOUT, RETRY, start_job

MAXIMUM_WINDOWS = 200
"""Of one check: a longer backlog goes on at the schedule's next tick, in a history of its own."""
SAMPLE_SEED = 0


@workflow.defn(name=names.DRIFT_CHECK)
class DriftCheck:
    """Takes the next closed window after the model's cursor, whatever fired it, and drains all that were missed."""

    def __init__(self) -> None:
        self._journal = Journal()
        self._lease = Lease(self._journal, kind="check")
        self._room = Room(self._journal, self._lease)
        self._job: workflow.ActivityHandle[DriftReport] | None = None
        self._told = False
        """A notice has ended the job: it is begun again with another lease."""

    @workflow.run
    async def run(self, request: CheckRequest) -> int:
        """Returns how many windows were checked."""
        checked = 0
        try:
            while checked < MAXIMUM_WINDOWS:
                heed_a_cancel()
                found = await self._next(request)
                if found.window is None:
                    break
                await self._check(request, found, found.window, checked)
                await self._lease.give_back()  # after each window: other models' checks wait for the same slot
                checked += 1
        finally:
            await self._lease.give_back()
            await self._journal.settle()
        return checked

    @workflow.signal(name=names.LEASE_OFFERED)
    def lease_offered(self, offer: Offer) -> None:
        self._lease.offered(offer)

    @workflow.signal(name=names.LEASE_NOTICED)
    def lease_noticed(self, notice: LeaseNotice) -> None:
        if self._lease.noticed(notice) and self._job is not None:
            self._told = True
            self._job.cancel()

    async def _next(self, request: CheckRequest) -> NextWindow:
        return await workflow.execute_activity_method(
            DriftActivities.next_window,
            request,
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="has a window closed?",
        )

    async def _check(self, request: CheckRequest, found: NextWindow, window: Window, number: int) -> None:
        report, failed = await self._measured_or_why_not(request, found, window, number)
        answer = await self._triggered(found, window, report, failed)
        self._journal.record(_checked(request, found, report, answer))
        self._journal.post()
        workflow.upsert_search_attributes([names.DRIFT_SHARE.value_set(report.share)])
        if answer.verdict == "retrain":
            await self._journal.settle()
            await self._retrain(found, window, answer.lifecycle)

    async def _measured_or_why_not(
        self, request: CheckRequest, found: NextWindow, window: Window, number: int
    ) -> tuple[DriftReport, str]:
        """A window that cannot be measured is said to have failed, and does not keep the next ones waiting."""
        if found.insufficient:
            return _nothing(window, found.rows, found.insufficient), ""
        while True:
            try:
                return await self._measured(request, found, window, number), ""
            except ActivityError as error:
                if self._was_told(error.cause):
                    await self._lease.let_go()
                    continue
                if workflow.cancellation_reason() is not None or not isinstance(error.cause, ApplicationError):
                    raise
                if error.cause.type == "StorageLow":
                    await self._room.wait(error.cause)
                    continue
                if error.cause.type != "LeaseLost":
                    return _nothing(window, 0), error.cause.message
                self._lease.lost()

    def _was_told(self, cause: BaseException | None) -> bool:
        told, self._told = self._told, False
        ended = isinstance(cause, CancelledError) or self._lease.ends_unheard(cause)
        return told and ended and workflow.cancellation_reason() is None

    async def _measured(self, request: CheckRequest, found: NextWindow, window: Window, number: int) -> DriftReport:
        assert found.champion and found.monitor  # noqa: S101, PT018  # there whenever there is a window
        self._lease.wants = Wants(model=request.model, stage="drift")
        slot = await self._lease.take()
        self._journal.say(f"Measuring drift in {window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC.")
        self._told = False
        self._job = start_job(
            DriftComputeActivities.measure,
            DriftRequest(
                project=request.project,
                model=request.model,
                champion=found.champion,
                reference_sha256=found.reference_sha256,
                window=window,
                minimum_rows=found.monitor.minimum_rows,
                seed=SAMPLE_SEED,
            ),
            slot,
            f"drift.{number}",
            f"drift of **{request.model}** since {window.start:%Y-%m-%d %H:%M}",
        )
        try:
            return await self._job
        finally:
            self._job = None

    async def _triggered(self, found: NextWindow, window: Window, report: DriftReport, failed: str) -> TriggerAnswer:
        assert found.champion and found.monitor and found.spec  # noqa: S101, PT018
        return await workflow.execute_activity_method(
            DriftActivities.trigger,
            TriggerRequest(
                project=found.spec.project,
                model=found.spec.model,
                version=found.champion.version,
                window=window,
                share=None if report.insufficient or failed else report.share,
                threshold=found.monitor.share,
                insufficient=report.insufficient,
                failed=failed,
                closed_at=found.closed_at,
                spec=found.spec,
            ),
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="one decision per window",
        )

    async def _retrain(self, found: NextWindow, window: Window, lifecycle: str) -> None:
        assert found.spec  # noqa: S101
        spec = found.spec
        request = LifecycleRequest(
            spec=spec,
            body_digest=signing.digest(spec),
            submitted_by=names.MONITOR,
            trigger=f"drift:{window.start:%Y-%m-%dT%H:%M:%SZ}",
            window=window,
        )
        try:
            await workflow.start_child_workflow(
                names.LIFECYCLE,
                request,
                id=lifecycle,
                task_queue=names.CONTROL,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                parent_close_policy=ParentClosePolicy.ABANDON,
                memo={"body_digest": request.body_digest},
                static_summary=f"{spec.model}: retraining after drift since {window.start:%Y-%m-%d}",
                search_attributes=_attributes(spec.project, spec.model, request.trigger),
                result_type=LifecycleAnswer,
                task_timeout=timedelta(seconds=10),
            )
        except WorkflowAlreadyStartedError:
            workflow.logger.info("the retraining %s runs already", lifecycle)


def _attributes(project: str, model: str, trigger: str) -> TypedSearchAttributes:

    return TypedSearchAttributes(
        [
            SearchAttributePair(names.PROJECT, project),
            SearchAttributePair(names.MODEL, model),
            SearchAttributePair(names.TRIGGER, trigger),
        ]
    )


def _nothing(window: Window, rows: int, insufficient: str = "") -> DriftReport:
    return DriftReport(window=window, rows=rows, reference_rows=0, columns=(), share=0, insufficient=insufficient)


def _checked(request: CheckRequest, found: NextWindow, report: DriftReport, answer: TriggerAnswer) -> DriftChecked:
    return DriftChecked(
        project=request.project,
        model=request.model,
        version=found.champion.version if found.champion else 0,
        window=report.window,
        rows=report.rows,
        share=None if report.insufficient or answer.verdict == "failed" else report.share,
        drifted=tuple(column.column for column in report.columns if column.drifted),
        report=report.report.sha256 if report.report else "",
        verdict=answer.verdict,
        reason=answer.reason,
        lifecycle=answer.lifecycle,
    )
