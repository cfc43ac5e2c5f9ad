"""How a stage runs: lease, activity, journal, retry by error kind, and parking when it fails for good.

All timeouts and retries of stages are here; the error's class says what is retried (everloop/errors.py).
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar, get_type_hints

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError
from temporalio.workflow import ActivityCancellationType

from everloop import names, signing
from everloop.contracts import (
    AttendRequest,
    CommitRequest,
    Fork,
    ForkActivities,
    JobRequest,
    KeptRequest,
    LeaseActivities,
    LeaseNotice,
    Offer,
    PauseRequest,
    Wants,
)
from everloop.errors import InvalidData, family
from everloop.events import (
    StageFailed,
    StageFinished,
    StagePaused,
    StagePreempted,
    StageRetried,
    StageSkipped,
    StageStarted,
)
from everloop.records import Blob, Record, Result, Slot, Wait
from everloop.specs import LAST_STAGES, SKIPPABLE, STAGES, Stage
from workflows.disk import Room
from workflows.journal import Journal, heed_a_cancel
from workflows.lease import PATIENT, STEP_TIMEOUT, Lease
from workflows.pause import Pause

JOB_TIMEOUT = timedelta(days=2)
HEARTBEAT_TIMEOUT = timedelta(seconds=30)
"""Only a lost machine waits for this: on one machine a takeover fails the dead attempts at once."""
LIGHT_TIMEOUT = timedelta(seconds=60)
RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    maximum_interval=timedelta(seconds=30),
    non_retryable_error_types=["LeaseLost"],  # helps only with a new lease, which the stage takes
)
"""Transient errors are tried again for ever: a job that keeps crashing turns permanent by itself."""
JOB_RETRY = RetryPolicy(
    initial_interval=RETRY.initial_interval,
    maximum_interval=RETRY.maximum_interval,
    non_retryable_error_types=["LeaseLost", "StorageLow"],  # waits without the slot, see workflows/disk.py
)

DATA_FAULTS = frozenset(family(InvalidData))
"""Errors that the source is to blame for, not the stage."""

Q = TypeVar("Q", bound=Record)
R = TypeVar("R", bound=Record)


class Aborted(Exception):  # noqa: N818  # control flow: a person ended a parked lifecycle
    """A person ended the lifecycle at a failed stage."""


class ReadAgain(Exception):  # noqa: N818  # control flow: back to the first stage
    """A person retries a stage that could not use the data or the code: what was wrong is mended at the source."""


class Reached(Exception):  # noqa: N818  # control flow: the lifecycle was to go no further
    """The stage that the spec's `until` names is done."""


class Stages:
    """Runs a lifecycle's stages one after the other and remembers where it is."""

    def __init__(self, journal: Journal, lease: Lease) -> None:
        self._journal = journal
        self._lease = lease
        self._pause = Pause(journal, lease)
        self._now: Stage | None = None
        self.until: Stage | None = None
        """The last stage to run, if not all are."""
        self.fork: Fork | None = None
        """The lifecycle whose results are kept, if this one is a fork."""
        self._room = Room(journal, lease)
        self._starts: dict[str, int] = {}
        self._parked: Stage | None = None
        self._attention: AttendRequest | None = None
        self._preempted: LeaseNotice | None = None
        """Why the running job was told to end, where others need what it has."""

    async def run(
        self,
        stage: Stage,
        method: Callable[[Any, Q], Awaitable[R]],
        request: Q,
        summary: Callable[[R], str],
        first: Callable[[Q], Awaitable[Q]] | None = None,
    ) -> R | None:
        """The stage's result, or None when a person skipped it. *first*: what is done before its job, without a lease.

        Raises `Aborted` when a person ended it here, `ReadAgain` when one retries what the data was to blame for,
        `Reached` when it was the last one to run.
        """
        while True:
            if stage != STAGES[-1]:  # once the traffic has moved a cancel comes too late
                heed_a_cancel()
                await self._pause.over()
            self.started(stage)
            try:
                result = await self._attempt(stage, method, request, first)
            except (ActivityError, ApplicationError, CancelledError) as error:
                # Without an activity: the request is too large to be sent, or a pause came before the job began.
                cause = error.cause if isinstance(error, ActivityError) else error
                if await self._may_go_on(stage, request, cause):
                    continue
                if workflow.cancellation_reason() is not None or not isinstance(cause, ApplicationError):
                    raise
                if await self._failed(stage, cause) == "skip":
                    self._go_no_further_than(stage, "skipped")
                    return None
                if stage != STAGES[0] and _mended_at_the_source(request, cause):
                    raise ReadAgain from None
            else:
                self._room.found()
                self.finished(stage, summary(result), result)
                self._go_no_further_than(stage, summary(result))
                return result

    def _go_no_further_than(self, stage: Stage, summary: str) -> None:
        if stage == self.until:
            raise Reached(f"it was to go until {stage}: {summary}")

    def started(self, stage: Stage) -> None:
        """Say that *stage* begins: in the journal, in the search attributes, in the current details."""
        self._now = stage
        self._starts[stage] = self._starts.get(stage, 0) + 1
        workflow.upsert_search_attributes([names.STAGE.value_set(stage)])
        self._journal.record(StageStarted(stage=stage))
        self._journal.post()

    def finished(self, stage: Stage, summary: str, result: Record | None = None) -> None:
        """Say what came out of *stage*; the append runs beside what comes next."""
        ran = result.ran if isinstance(result, Result) else None
        metrics = getattr(result, "metrics", None) or {}
        self._journal.record(
            StageFinished(stage=stage, summary=summary, metrics=metrics, blobs=_blobs(result), ran=ran)
        )

    def undone(self, stage: Stage, reason: str) -> None:
        """Say that *stage* has come to nothing and an earlier one comes again by itself."""
        self._journal.record(StageFailed(stage=stage, error="EvidenceChanged", message=reason))

    async def failed_outright(self, stage: Stage, message: str, hint: str) -> str:
        """Park because of something that no activity raised. Returns `retry` or `skip`."""
        return await self._failed(stage, ApplicationError(message, "", hint, type="JobFailed"))

    def check_attend(self, request: AttendRequest) -> None:
        """Refuse what does not fit. Read-only: runs in an update's validator."""
        if self._parked is None:
            message = "no stage of this lifecycle waits for a person"
            raise ApplicationError(message, type="NotWaiting", non_retryable=True)
        if request.stage and request.stage != self._parked:
            raise ApplicationError(f"the parked stage is {self._parked}", type="NotWaiting", non_retryable=True)
        if request.action == "skip" and self._parked not in SKIPPABLE:
            raise ApplicationError(
                f"stage {self._parked} cannot be skipped: the next stage needs its result",
                "stage",
                "retry it, or abort the lifecycle",
                type="Forbidden",
                non_retryable=True,
            )

    def check_pause(self, request: PauseRequest) -> None:
        """Refuse a pause where there is nothing to hold still. Read-only: runs in an update's validator."""
        if request.action == "resume":
            self._pause.check_resume()
            return
        if self._parked is not None:
            message = f"stage {self._parked} has failed and waits for a person: it runs nothing and holds no slot"
            raise ApplicationError(message, type="NotWaiting", non_retryable=True)
        if self._now not in (None, *LAST_STAGES):
            message = f"at stage {self._now} it runs no job and holds no slot"
            raise ApplicationError(message, type="NotWaiting", non_retryable=True)

    def pause(self, request: PauseRequest) -> None:
        """What a person said about holding still."""
        self._pause.heed(request)

    def pauses(self, job: "asyncio.Task[Any] | None") -> None:
        """What a pause has to end, where that is no job of ours."""
        self._pause.job = job

    def offered(self, offer: Offer) -> None:
        """The pool offers what is waited for, or other members instead of those that are held."""
        self._lease.offered(offer)
        if self._lease.grows and self._preempted is None and self._pause.job is not None:
            self._preempted = LeaseNotice(token=offer.token, reason="more devices are free, it goes on with them too")
            self._pause.job.cancel()

    def noticed(self, notice: LeaseNotice) -> None:
        """Others need what the lease has: the running job ends at a checkpoint, and goes on with another lease."""
        if self._lease.noticed(notice) and self._pause.job is not None:
            self._preempted = notice
            self._pause.job.cancel()

    def attend(self, request: AttendRequest) -> None:
        """What a person decided about the parked stage."""
        self._attention = request

    async def _attempt(
        self,
        stage: Stage,
        method: Callable[[Any, Q], Awaitable[R]],
        request: Q,
        first: Callable[[Q], Awaitable[Q]] | None,
    ) -> R:
        if not isinstance(request, JobRequest):
            return await workflow.execute_activity_method(
                method, request, start_to_close_timeout=LIGHT_TIMEOUT, retry_policy=RETRY, summary=f"**{stage}**"
            )
        if self.fork is not None and stage in STAGES[: STAGES.index(self.fork.stage)]:
            return await self._kept(stage, method, request, self.fork)
        if first is not None:
            await self._lease.give_back()
            request = await first(request)
            assert isinstance(request, JobRequest)  # noqa: S101  # as it was
        self._lease.wants = Wants.of(request.spec, stage) if hasattr(request, "spec") else Wants()
        slot = await self._lease.take()
        self._preempted = None
        if self._pause.by is not None:  # it came while there was no slot
            raise CancelledError("paused")
        job = start_job(method, request, slot, self._activity_id(stage), f"**{stage}** on {slot.device}")
        self._pause.job = job
        try:
            result = await job
        finally:
            self._pause.job = None
        await self._commit(stage, slot, result)
        return result

    async def _kept(self, stage: Stage, method: Callable[[Any, Q], Awaitable[R]], request: Q, fork: Fork) -> R:
        """The result that the forked lifecycle has, if it was asked the same."""
        question = request.model_dump(mode="json", exclude={"slot"})
        found = await workflow.execute_activity_method(
            ForkActivities.kept,
            KeptRequest(lifecycle=fork.lifecycle, run_id=fork.run_id, stage=stage, question=question),
            activity_id=self._activity_id(stage),
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary=f"**{stage}** as in {fork.lifecycle}",
        )
        kind: type[R] = get_type_hints(method)["return"]
        return kind.model_validate(found)

    async def _may_go_on(self, stage: Stage, request: Record, cause: BaseException | None) -> bool:
        """May the stage be started again by itself? Waits for what it lacks."""
        if self._lease.ends_unheard(cause):
            cause = CancelledError("its worker does not answer")
        if self._was_paused(stage, cause) or await self._was_preempted(stage, cause):
            return True
        if workflow.cancellation_reason() is not None or not isinstance(cause, ApplicationError):
            return False
        if not isinstance(request, JobRequest):
            return False
        if cause.type == "LeaseLost":
            self._lease.lost()
            return True
        if cause.type == "StorageLow":
            await self._room.wait(cause)
            return True
        return False

    def _was_paused(self, stage: Stage, cause: BaseException | None) -> bool:
        """Did a person's pause end it? A cancel of the lifecycle ends jobs too."""
        if workflow.cancellation_reason() is not None or not isinstance(cause, CancelledError):
            return False
        by = self._pause.ended()
        if by is None:
            return False
        self._journal.record(StagePaused(stage=stage, person=by.person, reason=by.reason))
        return True

    async def _was_preempted(self, stage: Stage, cause: BaseException | None) -> bool:
        """Did a notice end it? Then its slot goes to others, and the stage goes on when there is another."""
        notice, slot = self._preempted, self._lease.slot
        ended = isinstance(cause, CancelledError) and workflow.cancellation_reason() is None
        if notice is None or slot is None or not ended:
            return False
        self._preempted = None
        self._journal.record(StagePreempted(stage=stage, device=slot.device, token=slot.token, reason=notice.reason))
        await (self._lease.resize() if self._lease.grows else self._lease.let_go())
        return True

    def _activity_id(self, stage: Stage) -> str:
        return f"{stage}.{self._starts[stage]}"

    async def _commit(self, stage: Stage, slot: Slot, result: Record) -> None:
        digest = signing.digest(result.model_copy(update={"ran": None}))
        await workflow.execute_activity_method(
            LeaseActivities.commit,
            CommitRequest(slot=slot, stage=stage, digest=digest),
            start_to_close_timeout=STEP_TIMEOUT,
            retry_policy=PATIENT,
            summary=f"the result of {stage}, if token {slot.token} still holds",
        )

    async def _failed(self, stage: Stage, cause: ApplicationError) -> str:
        await self._lease.give_back()  # nobody holds a slot while people think
        field, hint = _details(cause)
        log = f"jobs/{workflow.info().run_id}/{self._activity_id(stage)}"
        self._journal.record(
            StageFailed(
                stage=stage,
                error=cause.type or "EverloopError",
                message=cause.message,
                field=field,
                hint=hint,
                log=log,
                kept=_kept(cause),
            )
        )
        request = await self._parked_until_attended(stage)
        if request.action == "abort":
            raise Aborted(request.reason or f"aborted by {request.person} at stage {stage}: {cause.message}")
        if request.action == "skip":
            self._journal.record(StageSkipped(stage=stage, person=request.person, reason=request.reason))
        else:
            self._journal.record(StageRetried(stage=stage, person=request.person))
        return request.action

    async def _parked_until_attended(self, stage: Stage) -> AttendRequest:
        me = workflow.info().workflow_id
        skip = f", `everloop skip {me}`" if stage in SKIPPABLE else ""
        wait = Wait(
            what=f"a person to look at the failed stage {stage}",
            since=workflow.now(),
            unblocks=f"`everloop retry {me}`{skip} or `everloop abort {me}`",
        )
        self._parked, self._attention = stage, None
        workflow.upsert_search_attributes([names.NEEDS_ATTENTION.value_set(True)])
        with self._journal.waiting(wait, needs="attention"):
            await self._journal.settle()
            await workflow.wait_condition(lambda: self._attention is not None)
        workflow.upsert_search_attributes([names.NEEDS_ATTENTION.value_set(False)])
        self._parked = None
        assert self._attention is not None  # noqa: S101  # what was waited for
        return self._attention


def start_job(
    method: Callable[[Any, Q], Awaitable[R]], request: Q, slot: Slot, activity_id: str, summary: str
) -> workflow.ActivityHandle[R]:
    """Start a compute activity on the leased *slot*; a job that is cancelled has ended when its handle is done."""
    return workflow.start_activity_method(
        method,
        request.model_copy(update={"slot": slot}),
        task_queue=names.COMPUTE,
        activity_id=activity_id,
        start_to_close_timeout=JOB_TIMEOUT,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=JOB_RETRY,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=summary,
    )


def _mended_at_the_source(request: Record, cause: ApplicationError) -> bool:
    """Is it the first stage that reads what a person has mended: the data, or the user's code that was called?"""
    return cause.type in DATA_FAULTS or getattr(request, "code", None) is not None


def _details(cause: ApplicationError) -> tuple[str, str]:
    field, hint = (*[str(detail) for detail in cause.details[:2]], "", "")[:2]
    return field, hint


def _kept(cause: ApplicationError) -> tuple[Blob, ...]:
    """Files that the failed job kept for people: the third detail, where there is one."""
    told = cause.details[2] if len(cause.details) > 2 else ()  # noqa: PLR2004
    return tuple(Blob.model_validate(each) for each in told)


def _blobs(result: Record | None) -> dict[str, str]:
    if result is None:
        return {}
    fields = {name: getattr(result, name) for name in type(result).model_fields}
    return {name: value.sha256 for name, value in fields.items() if isinstance(value, Blob)}
