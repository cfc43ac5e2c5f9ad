"""Leases: what holders ask of the ledger, and the pool's step. `pool_step` is the ledger's only decision maker.

Only workflows that hold leases are served, each for its own requests (activities/caller.py).
"""

import asyncio
import contextlib
import logging
from datetime import timedelta

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from activities import lease_ledger as ledger
from activities.caller import Caller, caller
from activities.lease_ledger import check_token
from everloop import names
from everloop.contracts import (
    AcceptRequest,
    CommitRequest,
    LeaseActivities,
    LeaseAnswer,
    LeaseNotice,
    LeaseRequest,
    MemberOfLease,
    Offer,
    PoolStep,
    PoolStepRequest,
)
from everloop.errors import Forbidden
from everloop.records import Slot
from everloop.settings import AWAY_SECONDS
from everloop.store import LeaseRow, Store

log = logging.getLogger(__name__)

HOLDERS = (names.LIFECYCLE, names.DRIFT_CHECK, names.SEARCH, names.SCORE)
"""Workflows that hold leases."""


class LeaseOnControl(LeaseActivities):
    """What holders ask of the ledger, and the pool's step."""

    def __init__(self, store: Store, client: Client, away_seconds: float = AWAY_SECONDS) -> None:
        """*away_seconds*: `Settings.away_seconds`."""
        self._store = store
        self._client = client
        self._away = timedelta(seconds=away_seconds)

    @activity.defn(name="everloop.lease.request")
    async def request(self, request: LeaseRequest) -> LeaseAnswer:
        """Put the request in the inbox and wake the pool. The same id again changes nothing."""
        asks = caller(*HOLDERS)
        reason = await asyncio.to_thread(ledger.enqueue, self._store, request, asks)
        await self.wake(request.pool)
        return LeaseAnswer(reason=reason)

    @activity.defn(name="everloop.lease.accept")
    async def accept(self, request: AcceptRequest) -> Slot:
        """Make the offer a lease. Raises `LeaseLost` when it has lapsed, or was not made to this run."""
        return await asyncio.to_thread(ledger.accept, self._store, request, caller(*HOLDERS))

    @activity.defn(name="everloop.lease.adopt")
    async def adopt(self, request: AcceptRequest) -> Slot:
        """The lease of this workflow's earlier run, which has closed, under a new token for the run that asks."""
        asks = caller(*HOLDERS)
        row = await asyncio.to_thread(ledger.held, self._store, request, asks)
        if row is not None and row.run_id != asks.run_id and await self._lives(row.workflow_id, row.run_id):
            raise Forbidden(f"the lease with token {row.token} is held by another run, which is open")
        return await asyncio.to_thread(ledger.adopt, self._store, request, asks)

    @activity.defn(name="everloop.lease.commit")
    async def commit(self, request: CommitRequest) -> None:
        """Write the pointer to a stage's result. Raises `LeaseLost` when the token is fenced."""
        await asyncio.to_thread(ledger.commit, self._store, request, caller(*HOLDERS))

    @activity.defn(name="everloop.lease.release")
    async def release(self, request: AcceptRequest) -> None:
        """Give the slot back. Safe to repeat. After a Reset the new run gives back what it has replayed."""
        asks = caller(*HOLDERS)
        row = await asyncio.to_thread(ledger.held, self._store, request, asks)
        if row is None:
            return
        if row.run_id != asks.run_id and await self._lives(row.workflow_id, row.run_id):
            raise Forbidden(f"the lease with token {row.token} is held by another run, which is open")
        await asyncio.to_thread(ledger.end, self._store, row.pool, row.token, "released")
        await self.wake(row.pool)

    @activity.defn(name="everloop.lease.cancel")
    async def cancel(self, request_id: str) -> None:
        """Take the request back, and whatever was offered for it."""
        pool = await asyncio.to_thread(ledger.cancel, self._store, request_id, caller(*HOLDERS))
        if pool:
            await self.wake(pool)

    @activity.defn(name="everloop.lease.pool_step")
    async def pool_step(self, request: PoolStepRequest) -> PoolStep:
        """One look at the ledger: note the inventory, look after leases that are due, grant, and signal offers."""
        asks = caller(names.GPU_POOL)
        if asks.workflow_id != names.pool_id(request.pool):
            raise Forbidden(f"{asks.workflow_id} does not decide for pool {request.pool}")
        if request.inventory is not None:
            await asyncio.to_thread(ledger.note_inventory, self._store, request.pool, request.inventory, self._away)
        dead = [(member.token, member.rank) for member in request.proven]
        await asyncio.to_thread(ledger.proven, self._store, request.pool, dead)
        await asyncio.to_thread(ledger.quarantine, self._store, request.pool)
        await self._look_after_the_due(request.pool)
        granted = await asyncio.to_thread(ledger.grant, self._store, request.pool)
        await self._signal_notices(request.pool)
        granted += await self._signal_offers(request.pool)
        waiting, wake = await asyncio.to_thread(ledger.outlook, self._store, request.pool)
        left = await asyncio.to_thread(ledger.unproven, self._store, request.pool)
        members = tuple(MemberOfLease(token=one.token, rank=one.rank, device=one.device) for one in left)
        return PoolStep(granted=granted, waiting=waiting, next_wake_seconds=wake, unproven=members)

    async def ended(self, workflow_id: str, run_id: str) -> None:
        """A run has closed: what it held or waited for is free for others (a terminate gives nothing back)."""
        gone = Caller(workflow_id, run_id, "")
        for pool in await asyncio.to_thread(ledger.end_run, self._store, gone):
            log.warning("%s has ended and gave nothing back: its lease or request in pool %s ends", workflow_id, pool)
            await self.wake(pool)

    async def wake(self, pool: str) -> None:
        """Let the pool look at the ledger now; start it where it does not run."""
        await self._client.start_workflow(
            names.GPU_POOL,
            pool,
            id=names.pool_id(pool),
            task_queue=names.CONTROL,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            start_signal=names.POOL_WAKE,
            static_summary="Grants slots to lifecycles and checks",
        )

    async def replace_pool(self, pool: str, run_id: str, why: str) -> None:
        """End the pool's run *run_id*, which cannot go on, and start another: the ledger is all that it knows."""
        handle = self._client.get_workflow_handle(names.pool_id(pool), run_id=run_id)
        with contextlib.suppress(RPCError):  # it has ended by itself
            await handle.terminate(reason=f"replaced: its workflow task failed ({why})")
        await self.wake(pool)
        log.warning("pool %s is replaced: the workflow task of run %s failed (%s)", pool, run_id, why)

    async def _look_after_the_due(self, pool: str) -> None:
        """Renew leases that have come to their time, or end those whose holder is gone or whose device stays away."""
        due = await asyncio.to_thread(ledger.due, self._store, pool)
        away = await asyncio.to_thread(ledger.absent, self._store, pool) if due else {}
        for row in due:
            if row.token in away:
                await self._fence(row, f"its device {away[row.token]} is gone")
            elif await self._lives(row.workflow_id, row.run_id):
                await asyncio.to_thread(ledger.renew, self._store, pool, row.token)
            else:
                await self._fence(row, f"its holder {row.workflow_id} is gone")

    async def _fence(self, row: LeaseRow, why: str) -> None:
        log.warning("lease %s is fenced: %s", row.token, why)
        await asyncio.to_thread(ledger.end, self._store, row.pool, row.token, "fenced", why=why)

    async def _lives(self, workflow_id: str, run_id: str) -> bool:
        try:
            described = await self._client.get_workflow_handle(workflow_id, run_id=run_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return described.status is WorkflowExecutionStatus.RUNNING

    async def _signal_offers(self, pool: str) -> int:
        """Tell holders of their offers. The slot of one that is gone goes to the next at once: how many did."""
        told: set[int] = set()
        granted = 0
        while True:
            fresh = [row for row in await asyncio.to_thread(ledger.offers, self._store, pool) if row.token not in told]
            told |= {row.token for row in fresh}
            gone = [row for row in fresh if not await self._told(row)]
            if not gone:
                return granted
            granted += await asyncio.to_thread(ledger.grant, self._store, pool)

    async def _signal_notices(self, pool: str) -> None:
        """Ask holders to let go, and tell those whose notice was withdrawn. What each was told stands in the ledger."""
        for row in await asyncio.to_thread(ledger.untold, self._store, pool):
            deadline = row.deadline_at if row.state == "noticed" else None
            reason = (row.why or row.notice) if deadline else ""
            notice = LeaseNotice(token=row.token, reason=reason, deadline=deadline)
            await self._notice(row.workflow_id, row.run_id, notice)
            await asyncio.to_thread(ledger.told, self._store, pool, row.token, deadline)

    async def _notice(self, workflow_id: str, run_id: str, notice: LeaseNotice) -> None:
        """A holder that is gone, or that Temporal takes no signal for, loses its lease when the deadline has passed."""
        handle = self._client.get_workflow_handle(workflow_id, run_id=run_id)
        try:
            await handle.signal(names.LEASE_NOTICED, notice)
        except RPCError as error:
            if error.status not in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
                raise
            log.warning("%s cannot be told to let go of lease %s: %s", workflow_id, notice.token, error)

    async def _told(self, row: LeaseRow) -> bool:
        """False, and the offer is taken back, when its holder is gone or can never be told: others wait behind it."""
        offer = Offer(request_id=row.request_id, device=row.device, token=row.token)
        handle = self._client.get_workflow_handle(row.workflow_id, run_id=row.run_id)
        try:
            await handle.signal(names.LEASE_OFFERED, offer)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                await self._fence(row, f"its holder {row.workflow_id} is gone")
                return False
            if error.status is not RPCStatusCode.INVALID_ARGUMENT:
                raise
            # Temporal takes 10,000 signals for a run and then no more, whoever sent them.
            reason = f"Temporal takes no offer for it: {error.message}; cancel it and submit it again"
            log.warning("lease %s is fenced: its holder %s cannot be told (%s)", row.token, row.workflow_id, error)
            await asyncio.to_thread(ledger.end, self._store, row.pool, row.token, "fenced", reason=reason)
            return False
        return True


__all__ = ["LeaseOnControl", "check_token"]
