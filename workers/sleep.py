"""After a sleep of the machine: an attempt that timed out meanwhile is given up at once.

Temporal's core cancels it here, because no heartbeat has gone out in time, and tells the server nothing. If the
server woke a moment later it has taken that heartbeat as being in time: then it waits for the next one, from an
attempt that nobody makes any more, for a whole heartbeat timeout.
"""

import asyncio
import logging
from typing import Any

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

log = logging.getLogger(__name__)


class GivenUpAtOnce(Interceptor):
    """Fails the attempts (retryable, `WorkerLost`) that were cancelled here for being out of time."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _GivenUpAtOnce(next, self._client)


class _GivenUpAtOnce(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, client: Client) -> None:  # noqa: A002
        super().__init__(next)
        self._client = client

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002, ANN401
        try:
            return await super().execute_activity(input)
        except asyncio.CancelledError:
            details = activity.cancellation_details()
            if details is not None and details.timed_out:
                await self._give_up()
            raise

    async def _give_up(self) -> None:
        info = activity.info()
        log.warning("attempt %s of %s was out of time here: it is tried again", info.attempt, info.activity_id)
        # By its token: should the server have given it up too, this is not about the next attempt.
        handle = self._client.get_async_activity_handle(task_token=info.task_token)
        try:
            await handle.fail(ApplicationError("the attempt was out of time: the machine slept", type="WorkerLost"))
        except RPCError as error:  # the server has given it up itself, or waits for its timeout
            log.info("it was given up already: %s", error)
