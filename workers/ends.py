"""Runs that were ended from outside: within seconds their rows say so, and their slots are free.

One question to Temporal's visibility each time, whatever the number of holders: which runs have closed since?
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus

from activities.journal import CLOSED, JournalOnControl
from activities.lease import LeaseOnControl

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
AT_START = timedelta(minutes=10)
"""How far back the first look goes; older leases the pool finds dead when they come to their time."""
OVERLAP = timedelta(seconds=30)
"""Visibility is a little late, and the clocks of two machines differ."""
UNSAID = (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.TIMED_OUT, WorkflowExecutionStatus.FAILED)
"""Ends that a workflow could not write itself."""


class Ends:
    """Looks again and again for runs that have closed."""

    def __init__(
        self, client: Client, journal: JournalOnControl, lease: LeaseOnControl, *, back: timedelta = AT_START
    ) -> None:
        """*back*: how far the first look goes back."""
        self._client = client
        self._journal = journal
        self._lease = lease
        self._since = datetime.now(UTC) - back
        self._known: dict[str, datetime] = {}

    async def watch(self) -> None:
        """For ever."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("closed runs could not be looked up; it is tried again")
            await asyncio.sleep(EVERY_SECONDS)

    async def look(self) -> int:
        """Note what has closed since the last look. Returns how many runs that were."""
        began = datetime.now(UTC)
        found = 0
        async for execution in self._client.list_workflows(f"{CLOSED} AND CloseTime > '{self._since.isoformat()}'"):
            if execution.run_id not in self._known:
                await self._note(execution)
                self._known[execution.run_id] = execution.close_time or began
                found += 1
        self._since = max(self._since, began - OVERLAP)
        self._known = {run: closed for run, closed in self._known.items() if closed > self._since - OVERLAP}
        return found

    async def _note(self, execution: WorkflowExecution) -> None:
        if execution.status is not WorkflowExecutionStatus.CONTINUED_AS_NEW:  # its next run adopts what it holds
            await self._lease.ended(execution.id, execution.run_id)
        if execution.status in UNSAID:
            await self._journal.archive(execution)
