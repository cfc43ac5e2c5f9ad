"""After a kill -9: fail what the dead were doing, so that nothing waits for a timeout."""

import asyncio
import fcntl
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import AsyncActivityHandle, Client, WorkflowExecution
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from everloop import stack
from everloop.settings import Settings
from workers import process

log = logging.getLogger(__name__)

LOCK_SECONDS = 5.0
OURS = "everloop."
STARTED = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
CANCEL_REQUESTED = PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED


async def take_over(client: Client, settings: Settings, *, jobs_too: bool = True) -> int:
    """Fail every started attempt of a worker that is gone (retryable, `WorkerLost`); how many there were.

    Gone is who is proven dead: a process of this machine that is not there any more, or one of an earlier `up` on
    this data folder, whose lock we hold now. Others (another machine, another data folder's `up` on the same Temporal)
    are left to their heartbeat timeouts.
    Call it once the old processes are dead, before the new workers start. Safe to repeat: what is failed once
    is not started any more. *jobs_too*: their jobs die with them, and are waited for.
    """
    if jobs_too:
        await _old_jobs_gone(settings)
    taken = 0
    async for run, attempt in _attempts_of_the_dead(client, settings):
        taken += await _give_up(client, run, attempt)
    return taken


async def _attempts_of_the_dead(
    client: Client, settings: Settings
) -> AsyncIterator[tuple[WorkflowExecution, PendingActivityInfo]]:
    ended = stack.ended_sessions(settings)
    async for run in client.list_workflows("ExecutionStatus = 'Running'"):
        if not run.workflow_type.startswith(OURS):
            continue
        description = await client.get_workflow_handle(run.id, run_id=run.run_id).describe()
        for attempt in description.raw_description.pending_activities:
            if attempt.state in (STARTED, CANCEL_REQUESTED) and _of_the_dead(attempt, ended):
                yield run, attempt


def _of_the_dead(attempt: PendingActivityInfo, ended: frozenset[str]) -> bool:
    worker = process.parse(attempt.last_worker_identity)
    return worker is not None and (worker.session in ended or worker.proven_dead())


async def _give_up(client: Client, run: WorkflowExecution, attempt: PendingActivityInfo) -> int:
    handle = client.get_async_activity_handle(workflow_id=run.id, run_id=run.run_id, activity_id=attempt.activity_id)
    try:
        await _report(handle, attempt)
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:  # it has ended meanwhile
            return 0
        raise
    log.info("took over %s of %s from %s", attempt.activity_id, run.id, attempt.last_worker_identity)
    return 1


async def _report(handle: AsyncActivityHandle, attempt: PendingActivityInfo) -> None:
    if attempt.state == CANCEL_REQUESTED:  # its workflow waits to hear that it has ended
        await handle.report_cancellation()
        return
    sentence = f"the process that ran this attempt is gone ({attempt.last_worker_identity})"
    await handle.fail(ApplicationError(sentence, type="WorkerLost"))


async def _old_jobs_gone(settings: Settings) -> None:
    """Until no slot's lock is held. Not longer than `LOCK_SECONDS`: the next attempt waits for the lock as well."""
    deadline = time.monotonic() + LOCK_SECONDS
    for path in sorted((settings.scratch_dir / "slots").rglob("*.lock")):
        while _held(path):
            if time.monotonic() > deadline:
                log.warning(
                    "a job of the last run still holds %s; others get its part of the device when it ends",
                    path.name,
                )
                break
            await asyncio.sleep(0.05)


def _held(path: Path) -> bool:
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
