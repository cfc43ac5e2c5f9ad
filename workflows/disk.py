"""Waiting for room on the disk: without a slot, with a sentence, and for as long as it takes."""

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

from everloop import names
from everloop.contracts import DiskActivities
from everloop.records import Wait
from workflows.journal import Journal
from workflows.lease import Lease

LOOK_TIMEOUT = timedelta(seconds=30)
LOOK = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=15))
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=5), timedelta(minutes=10)
"""Before a job that filled the disk by itself is tried again: each try costs its time."""


class Room:
    """What one workflow knows of its waits for room."""

    def __init__(self, journal: Journal, lease: Lease) -> None:
        self._journal = journal
        self._lease = lease
        self._since: datetime | None = None
        self._times = 0

    async def wait(self, cause: ApplicationError) -> None:
        """Give the slot back and wait until there is room. *cause* is the `StorageLow` of the job."""
        self._since = self._since or workflow.now()
        wait = Wait(
            what="room on the disk",
            since=self._since,
            unblocks=f"{cause.message}; it goes on by itself when there is room",
        )
        with self._journal.waiting(wait):
            await self._lease.give_back()
            if self._times:
                pause = min(FIRST_PAUSE * 2 ** min(self._times - 1, 10), LONGEST_PAUSE)
                await workflow.sleep(pause, summary="the job itself filled the disk: a pause")
            await workflow.execute_activity_method(
                DiskActivities.room,
                task_queue=names.COMPUTE,
                start_to_close_timeout=LOOK_TIMEOUT,
                retry_policy=LOOK,
                summary="is there room on the disk?",
            )
        self._times += 1

    def found(self) -> None:
        """A job went through: the next wait is a new one."""
        self._since, self._times = None, 0
