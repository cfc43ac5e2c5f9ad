"""A job outside of a lifecycle's stages, on a lease that its workflow holds for it."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

from everloop.contracts import JobRequest, LeaseNotice
from everloop.records import Result
from workflows.disk import Room
from workflows.journal import Journal
from workflows.lease import Lease
from workflows.stage import start_job

Q = TypeVar("Q", bound=JobRequest)
R = TypeVar("R", bound=Result)


class Job:
    """One job at a time. It is begun again on another lease when others needed its own, or when that was lost."""

    def __init__(self, journal: Journal, lease: Lease) -> None:
        self._journal, self._lease = journal, lease
        self._room = Room(journal, lease)
        self._running: workflow.ActivityHandle[Any] | None = None
        self._told = False
        """A notice has ended the job."""

    def noticed(self, notice: LeaseNotice) -> None:
        """End the job at a checkpoint, if the notice is about its lease."""
        if self._lease.noticed(notice) and self._running is not None:
            self._told = True
            self._running.cancel()

    async def run(
        self, method: Callable[[Any, Q], Awaitable[R]], request: Q, activity_id: str, summary: str, said: str = ""
    ) -> R:
        """Its result, however often it is begun. *said*: what the journal says once there is a lease.

        Raises `ActivityError` for what another lease does not mend.
        """
        while True:
            try:
                slot = await self._lease.take()
                if said:
                    self._journal.say(said)
                return await self._once(start_job(method, request, slot, activity_id, summary))
            except ActivityError as error:
                if not await self._may_go_on(error.cause):
                    raise

    async def _once(self, job: workflow.ActivityHandle[R]) -> R:
        self._told, self._running = False, job
        try:
            return await job
        finally:
            self._running = None

    async def _may_go_on(self, cause: BaseException | None) -> bool:
        if self._was_told(cause):
            await self._lease.let_go()
            return True
        if workflow.cancellation_reason() is not None or not isinstance(cause, ApplicationError):
            return False
        if cause.type == "StorageLow":
            await self._room.wait(cause)
            return True
        if cause.type == "LeaseLost":
            self._lease.lost()
            return True
        return False

    def _was_told(self, cause: BaseException | None) -> bool:
        told, self._told = self._told, False
        ended = isinstance(cause, CancelledError) or self._lease.ends_unheard(cause)
        return told and ended and workflow.cancellation_reason() is None
