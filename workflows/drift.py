"""A check of a monitor: every window that has closed, one after the other, and at most one retraining each."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import ActivityError, ApplicationError, WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

from everloop import names, signing
from everloop.contracts import (
    CheckRequest,
    DriftActivities,
    DriftComputeActivities,
    DriftRequest,
    JudgeRequest,
    LabelActivities,
    LabelComputeActivities,
    LeaseNotice,
    LifecycleAnswer,
    LifecycleRequest,
    NextWindow,
    Offer,
    PerformanceRequest,
    TriggerAnswer,
    TriggerRequest,
    Wants,
)
from everloop.events import DriftChecked, PerformanceJudged
from everloop.records import DriftReport, PerformanceReport, Window
from everloop.specs import LifecycleSpec
from workflows.job import Job
from workflows.journal import Journal, heed_a_cancel
from workflows.lease import Lease
from workflows.stage import LIGHT_TIMEOUT, RETRY

MAXIMUM_WINDOWS = 200
"""Of one check: a longer backlog goes on at the schedule's next tick, in a history of its own."""
SAMPLE_SEED = 0
JUDGED = ("performance", "verdict", "reason", "lifecycle")
SAID = {"drift": "drift since", "labels": "the labels of"}
"""Why there is a retraining."""

Q = TypeVar("Q", bound=DriftRequest | PerformanceRequest)
R = TypeVar("R", bound=DriftReport | PerformanceReport)


@workflow.defn(name=names.DRIFT_CHECK)
class DriftCheck:
    """Takes the next closed window after the model's cursor, whatever fired it, and drains all that were missed."""

    def __init__(self) -> None:
        self._journal = Journal()
        self._lease = Lease(self._journal, kind="check")
        self._job = Job(self._journal, self._lease)

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
            if workflow.patched("labels"):
                await self._look_at_labels(request)
        finally:
            await self._lease.give_back()
            await self._journal.settle()
        return checked

    @workflow.signal(name=names.LEASE_OFFERED)
    def lease_offered(self, offer: Offer) -> None:
        self._lease.offered(offer)

    @workflow.signal(name=names.LEASE_NOTICED)
    def lease_noticed(self, notice: LeaseNotice) -> None:
        self._job.noticed(notice)

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
            assert found.spec  # noqa: S101
            await self._journal.settle()
            await self._retrain(found.spec, window, answer.lifecycle, "drift")

    async def _look_at_labels(self, request: CheckRequest) -> None:
        """What the labels that have come say of windows that were decided."""
        due = await workflow.execute_activity_method(
            LabelActivities.due,
            request,
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="have labels come?",
        )
        if due.request is None or due.spec is None:
            return
        asked = due.request
        report, failed = await self._done_or_why_not(self._performed(asked))
        answer = await workflow.execute_activity_method(
            LabelActivities.judge,
            JudgeRequest(
                project=request.project,
                model=request.model,
                report=report or PerformanceReport(windows=(), labels=0, joined=0),
                labels_bytes=asked.labels_bytes,
                version=asked.champion.version,
                failed=failed,
            ),
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="one decision per window",
        )
        for judged in answer.judged:
            self._journal.record(
                PerformanceJudged(
                    project=request.project, model=request.model, **{n: getattr(judged, n) for n in JUDGED}
                )
            )
        for judged in answer.judged:
            if judged.verdict == "retrain":
                await self._journal.settle()
                await self._retrain(due.spec, judged.performance.window, judged.lifecycle, "labels")

    async def _measured_or_why_not(
        self, request: CheckRequest, found: NextWindow, window: Window, number: int
    ) -> tuple[DriftReport, str]:
        """A window that cannot be measured is said to have failed, and does not keep the next ones waiting."""
        if found.insufficient:
            nothing = _nothing(window, found.rows, found.insufficient)
            return nothing.model_copy(update={"measures": found.measures, "broken": found.broken}), ""
        report, failed = await self._done_or_why_not(self._measured(request, found, window, number))
        return report or _nothing(window, 0), failed

    async def _done_or_why_not(self, job: Awaitable[R]) -> tuple[R | None, str]:
        """The job's result, or None and why it failed."""
        try:
            return await job, ""
        except ActivityError as error:
            if workflow.cancellation_reason() is not None or not isinstance(error.cause, ApplicationError):
                raise
            return None, error.cause.message

    async def _measured(self, request: CheckRequest, found: NextWindow, window: Window, number: int) -> DriftReport:
        assert found.champion and found.monitor  # noqa: S101, PT018  # there whenever there is a window
        return await self._on_a_slot(
            DriftComputeActivities.measure,
            DriftRequest(
                project=request.project,
                model=request.model,
                champion=found.champion,
                reference_sha256=found.reference_sha256,
                window=window,
                minimum_rows=found.monitor.minimum_rows,
                seed=SAMPLE_SEED,
                evaluation=found.evaluation,
                monitor=found.monitor,
            ),
            f"drift.{number}",
            f"drift of **{request.model}** since {window.start:%Y-%m-%d %H:%M}",
            f"Measuring drift in {window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC.",
        )

    async def _performed(self, request: PerformanceRequest) -> PerformanceReport:
        summary = f"what the labels of **{request.model}** say"
        said = f"Joining the labels of {request.model} with its predictions."
        return await self._on_a_slot(LabelComputeActivities.perform, request, "labels", summary, said)

    async def _on_a_slot(
        self, method: Callable[[Any, Q], Awaitable[R]], request: Q, activity_id: str, summary: str, said: str
    ) -> R:
        self._lease.wants = Wants(model=request.model, stage="drift")
        return await self._job.run(method, request, activity_id, summary, said)

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
                measures=report.measures,
                broken=report.broken,
            ),
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="one decision per window",
        )

    async def _retrain(self, asked: LifecycleSpec, window: Window, lifecycle: str, why: str) -> None:
        spec = learning_from(asked, window)
        request = LifecycleRequest(
            spec=spec,
            body_digest=signing.digest(spec),
            submitted_by=names.MONITOR,
            trigger=f"{why}:{window.start:%Y-%m-%dT%H:%M:%SZ}",
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
                static_summary=f"{spec.model}: retraining after {SAID[why]} {window.start:%Y-%m-%d}",
                search_attributes=_attributes(spec.project, spec.model, request.trigger),
                result_type=LifecycleAnswer,
                task_timeout=timedelta(seconds=10),
            )
        except WorkflowAlreadyStartedError:
            workflow.logger.info("the retraining %s runs already", lifecycle)


def learning_from(spec: LifecycleSpec, window: Window) -> LifecycleSpec:
    """The spec of a retraining: on a trailing window it learns from the rows before the drifted window's end alone."""
    if spec.retrain.window is None:
        return spec
    return spec.model_copy(update={"since": window.end - spec.retrain.window})


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
        measures=report.measures,
        broken=report.broken,
    )
