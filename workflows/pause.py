"""A person's pause: the running job ends at a checkpoint, the slot goes to others, nothing begins until a resume."""

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from everloop import names
from everloop.contracts import PauseRequest
from everloop.records import Wait
from workflows.journal import Journal
from workflows.lease import Lease

LEAVES_THE_QUEUE = "pause-leaves-the-queue"
"""Before, a lifecycle that was paused while it waited for a slot waited on, and said so."""


class Pause:
    """Whether a lifecycle is to hold still, and the job that a pause has to end."""

    def __init__(self, journal: Journal, lease: Lease) -> None:
        self._journal = journal
        self._lease = lease
        self._by: PauseRequest | None = None
        self._ending: PauseRequest | None = None
        """The pause that has told the job to end."""
        self.job: asyncio.Task[Any] | None = None
        """The activity, or the search, that a pause cancels. It ends when what it runs is gone: the slot is free."""

    def ended(self) -> PauseRequest | None:
        """Who ended the job that has just been cancelled, if a pause did: also one that a resume has followed since."""
        ending, self._ending = self._ending, None
        return self._by or ending

    @property
    def by(self) -> PauseRequest | None:
        """Who paused it, while it is paused."""
        return self._by

    def heed(self, request: PauseRequest) -> None:
        """Do what a person says."""
        if request.action == "resume":
            self._by = None
            return
        self._by = request
        if self.job is not None:
            self._ending = request
            self.job.cancel()
        elif self._lease.asks and workflow.patched(LEAVES_THE_QUEUE):
            self._lease.withdraw()

    def check_resume(self) -> None:
        """Refuse a resume of what is not paused. Read-only."""
        if self._by is None:
            raise ApplicationError("this lifecycle is not paused", type="NotWaiting", non_retryable=True)

    async def over(self) -> None:
        """Until nobody wants a pause any more; without the slot."""
        self._ending = None
        if self._by is None:
            return
        await self._lease.give_back()
        me = workflow.info().workflow_id
        why = f": {self._by.reason}" if self._by.reason else ""
        wait = Wait(
            what=f"{names.A_RESUME} ({self._by.person} paused it{why})",
            since=workflow.now(),
            unblocks=f"`everloop resume {me}`",
        )
        with self._journal.waiting(wait):
            await workflow.wait_condition(lambda: self._by is None)
