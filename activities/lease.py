"""The lease ledger: requests, grants, tokens. SQL is the authority; `pool_step` is its only decision maker.

A grant's token is the fence: strictly increasing per pool. Every pointer (result, version) is written in the
transaction that checks it, so a holder whose lease was taken away commits nothing.
"""

import asyncio
import contextlib
import logging
from datetime import UTC, datetime, timedelta

from sqlalchemy import func
from sqlmodel import Session, col, select
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from activities.lease_policy import Device, Grant, Policy, PoolState, Waiting, decide
from everloop import names, signing
from everloop.contracts import (
    AcceptRequest,
    CommitRequest,
    LeaseActivities,
    LeaseRequest,
    Offer,
    PoolStep,
    PoolStepRequest,
)
from everloop.errors import LeaseLost
from everloop.records import Slot
from everloop.store import DeviceRow, LeaseRequestRow, LeaseRow, PoolDecisionRow, PoolRow, ResultRow, Store

log = logging.getLogger(__name__)

ENDED = ("done", "cancelled")
"""States of a request that nobody serves any more."""
OFFER_TTL = timedelta(seconds=15)
LEASE_TTL = timedelta(seconds=60)
"""How often the pool asks Temporal whether a holder still lives: a terminated one keeps its slot this long at most."""
FUEL = 10_000
WAITED_FOR = timedelta(seconds=5)
"""How often it asks while somebody waits for a slot."""
LIVE = ("offered", "active")


class LeaseOnControl(LeaseActivities):
    """What holders ask of the ledger, and the pool's step."""

    def __init__(self, store: Store, client: Client) -> None:
        self._store = store
        self._client = client

    @activity.defn(name="everloop.lease.request")
    async def request(self, request: LeaseRequest) -> None:
        """Put the request in the inbox and wake the pool. The same id again changes nothing."""
        await asyncio.to_thread(_enqueue, self._store, request, *_run())
        await self._wake(request.pool)

    @activity.defn(name="everloop.lease.accept")
    async def accept(self, request: AcceptRequest) -> Slot:
        """Make the offer a lease. Raises `LeaseLost` when it has lapsed."""
        return await asyncio.to_thread(_accept, self._store, request)

    @activity.defn(name="everloop.lease.commit")
    async def commit(self, request: CommitRequest) -> None:
        """Write the pointer to a stage's result. Raises `LeaseLost` when the token is fenced."""
        await asyncio.to_thread(_commit, self._store, request, *_run())

    @activity.defn(name="everloop.lease.release")
    async def release(self, request: AcceptRequest) -> None:
        """Give the slot back. Safe to repeat."""
        pool = await asyncio.to_thread(_end, self._store, request.token, "released")
        if pool:
            await self._wake(pool)

    @activity.defn(name="everloop.lease.cancel")
    async def cancel(self, request_id: str) -> None:
        """Take the request back, and whatever was offered for it."""
        pool = await asyncio.to_thread(_cancel, self._store, request_id)
        if pool:
            await self._wake(pool)

    @activity.defn(name="everloop.lease.pool_step")
    async def pool_step(self, request: PoolStepRequest) -> PoolStep:
        """One look at the ledger: note the inventory, end dead holders' leases, grant, and signal offers."""
        if request.inventory is not None:
            await asyncio.to_thread(_note_inventory, self._store, request.pool, request.inventory)
        await self._bury_the_dead(request.pool)
        granted = await asyncio.to_thread(_grant, self._store, request.pool)
        await self._signal_offers(request.pool)
        waiting, wake = await asyncio.to_thread(_outlook, self._store, request.pool)
        return PoolStep(granted=granted, waiting=waiting, next_wake_seconds=wake)

    async def _wake(self, pool: str) -> None:
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
        await self._wake(pool)
        log.warning("pool %s is replaced: the workflow task of run %s failed (%s)", pool, run_id, why)

    async def _bury_the_dead(self, pool: str) -> None:
        """End leases whose holder's run is closed (a terminate gives nothing back) or whose device stays away."""
        for token in await asyncio.to_thread(_on_lost_devices, self._store, pool):
            log.warning("the device of lease %s is gone: the lease is fenced", token)
            await asyncio.to_thread(_end, self._store, token, "fenced")
        for token, workflow_id, run_id in await asyncio.to_thread(_suspects, self._store, pool):
            if await self._lives(workflow_id, run_id):
                await asyncio.to_thread(_extend, self._store, token)  # where its device is there
            else:
                log.warning("the holder %s of lease %s is gone: the lease is fenced", workflow_id, token)
                await asyncio.to_thread(_end, self._store, token, "fenced")
        for request_id, workflow_id, run_id in await asyncio.to_thread(_queued, self._store, pool):
            if not await self._lives(workflow_id, run_id):
                await asyncio.to_thread(_cancel, self._store, request_id)

    async def _lives(self, workflow_id: str, run_id: str) -> bool:
        try:
            described = await self._client.get_workflow_handle(workflow_id, run_id=run_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return described.status is WorkflowExecutionStatus.RUNNING

    async def _signal_offers(self, pool: str) -> None:
        for row in await asyncio.to_thread(_offers, self._store, pool):
            offer = Offer(request_id=row.request_id, device=row.device, token=row.token)
            handle = self._client.get_workflow_handle(row.workflow_id, run_id=row.run_id)
            try:
                await handle.signal(names.LEASE_OFFERED, offer)
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
                await asyncio.to_thread(_end, self._store, row.token, "fenced")


def check_token(session: Session, slot: Slot) -> None:
    """Raise `LeaseLost` unless the slot's token is its holder's last one and was not taken away.

    Call it in the transaction that writes the pointer.
    """
    row = session.exec(
        select(LeaseRow).where(LeaseRow.holder == slot.holder).order_by(col(LeaseRow.token).desc()).limit(1)
    ).first()
    if row is None or row.token != slot.token or row.state == "fenced":
        raise LeaseLost(f"token {slot.token} of {slot.holder} is fenced", hint="the stage takes a new lease by itself")


def _run() -> tuple[str, str]:
    """The workflow run that asks."""
    info = activity.info()
    assert info.workflow_id and info.workflow_run_id  # noqa: S101, PT018  # only workflows hold leases
    return info.workflow_id, info.workflow_run_id


def _now() -> datetime:
    return datetime.now(UTC)


def _enqueue(store: Store, request: LeaseRequest, workflow_id: str, run_id: str) -> None:
    with store.write() as session:
        known = session.get(LeaseRequestRow, request.id)
        if known is not None:
            if request.again and (known.run_id != run_id or known.state in ENDED):
                _owned_by(session, known, workflow_id, run_id)
            return
        last = session.exec(select(func.max(LeaseRequestRow.arrival)).where(LeaseRequestRow.pool == request.pool)).one()
        session.add(
            LeaseRequestRow(
                id=request.id,
                pool=request.pool,
                arrival=(last or 0) + 1,
                kind=request.kind,
                holder=f"{workflow_id}/{run_id}",
                workflow_id=workflow_id,
                run_id=run_id,
                state="queued",
                requested_at=_now(),
            )
        )


def _owned_by(session: Session, request: LeaseRequestRow, workflow_id: str, run_id: str) -> None:
    """Queue *request* again, in its old place, for the run that waits now. What was granted to the other lapses."""
    request.state, request.run_id, request.holder = "queued", run_id, f"{workflow_id}/{run_id}"
    session.add(request)


def _lease(session: Session, token: int) -> LeaseRow | None:
    return session.exec(select(LeaseRow).where(LeaseRow.token == token)).first()


def _accept(store: Store, request: AcceptRequest) -> Slot:
    with store.write() as session:
        row = _lease(session, request.token)
        if row is None or row.state not in LIVE:
            raise LeaseLost(f"the offer with token {request.token} has lapsed")
        row.state, row.expires_at = "active", _now() + LEASE_TTL
        session.add(row)
        return Slot(device=row.device, token=row.token, holder=row.holder)


def _commit(store: Store, request: CommitRequest, workflow_id: str, run_id: str) -> None:
    with store.write() as session:
        check_token(session, request.slot)
        session.merge(
            ResultRow(
                workflow_id=workflow_id,
                run_id=run_id,
                stage=request.stage,
                token=request.slot.token,
                digest=request.digest,
                at=_now(),
            )
        )


def _end(store: Store, token: int, state: str) -> str:
    """End a live lease. Returns its pool, or nothing when it had ended before."""
    with store.write() as session:
        row = _lease(session, token)
        if row is None or row.state not in LIVE:
            return ""
        _ended(session, row, state)
        request = session.get(LeaseRequestRow, row.request_id)
        if request is not None:
            request.state = "done"
            session.add(request)
        return row.pool


def _ended(session: Session, row: LeaseRow, state: str) -> None:
    """The lease lives no more: its device is free for the next grant."""
    row.state, row.live_device, row.expires_at, row.ended_at = state, None, None, _now()
    session.add(row)


def _cancel(store: Store, request_id: str) -> str:
    with store.write() as session:
        request = session.get(LeaseRequestRow, request_id)
        if request is None or request.state in ENDED:
            return ""
        granted = session.exec(
            select(LeaseRow).where(LeaseRow.request_id == request_id, col(LeaseRow.state).in_(LIVE))
        ).all()
        for row in granted:
            _ended(session, row, "released")
        request.state = "cancelled"
        session.add(request)
        return request.pool


def _note_inventory(store: Store, pool: str, inventory: tuple[str, ...]) -> None:
    """Present are exactly the devices of *inventory*; others stay known, but get no new lease."""
    light = {name.removesuffix(names.LIGHT_SUFFIX): name.endswith(names.LIGHT_SUFFIX) for name in inventory}
    with store.write() as session:
        for row in session.exec(select(DeviceRow).where(DeviceRow.pool == pool)).all():
            row.present = row.name in light
            row.light = light.pop(row.name, row.light)
            session.add(row)
        session.add_all(DeviceRow(pool=pool, name=name, light=is_light) for name, is_light in light.items())


def _suspects(store: Store, pool: str) -> list[tuple[int, str, str]]:
    """Leases past their time; all of them while somebody waits."""
    with store.read() as session:
        live = session.exec(select(LeaseRow).where(LeaseRow.pool == pool, col(LeaseRow.state).in_(LIVE))).all()
        now, waited_for = _now(), _waiting(session, pool) > 0
        return [
            (row.token, row.workflow_id, row.run_id)
            for row in live
            if waited_for or (row.expires_at and row.expires_at <= now)
        ]


def _on_lost_devices(store: Store, pool: str) -> list[int]:
    """Leases past their time whose Dask worker is not there: it may be away for a moment, not for a whole lease."""
    with store.read() as session:
        lost = select(DeviceRow.name).where(DeviceRow.pool == pool, col(DeviceRow.present).is_(False))
        rows = session.exec(
            select(LeaseRow).where(LeaseRow.pool == pool, col(LeaseRow.state).in_(LIVE), col(LeaseRow.device).in_(lost))
        ).all()
        now = _now()
        return [row.token for row in rows if row.expires_at and row.expires_at <= now]


def _waiting(session: Session, pool: str) -> int:
    return session.exec(
        select(func.count()).where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
    ).one()


def _extend(store: Store, token: int) -> None:
    with store.write() as session:
        row = _lease(session, token)
        device = session.get(DeviceRow, (row.pool, row.device)) if row else None
        if row is not None and row.state in LIVE and device is not None and device.present:
            row.expires_at = _now() + (OFFER_TTL if row.state == "offered" else LEASE_TTL)
            session.add(row)


def _queued(store: Store, pool: str) -> list[tuple[str, str, str]]:
    with store.read() as session:
        rows = session.exec(
            select(LeaseRequestRow)
            .where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
            .order_by(col(LeaseRequestRow.arrival))
            .limit(100)
        ).all()
        return [(row.id, row.workflow_id, row.run_id) for row in rows]


def _state(session: Session, pool: str) -> PoolState:
    live = session.exec(select(LeaseRow.device).where(LeaseRow.pool == pool, col(LeaseRow.state).in_(LIVE))).all()
    devices = session.exec(select(DeviceRow).where(DeviceRow.pool == pool).order_by(DeviceRow.name)).all()
    waiting = session.exec(
        select(LeaseRequestRow)
        .where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
        .order_by(col(LeaseRequestRow.arrival))
    ).all()
    return PoolState(
        devices=tuple(
            Device(name=row.name, light=row.light, present=row.present, taken=row.name in live) for row in devices
        ),
        waiting=tuple(Waiting(id=row.id, arrival=row.arrival, kind=row.kind) for row in waiting),
    )


def _grant(store: Store, pool: str) -> int:
    """Read, decide, and commit where the version is still the one that was read; else once more."""
    while True:
        with store.read() as session:
            row = session.get(PoolRow, pool)
            version = row.version if row else 0
            state = _state(session, pool)
        grants = decide(state, int(_now().timestamp() * 1000), Policy(), FUEL)
        if not grants:
            return 0
        if _committed(store, pool, version, state, grants):
            return len(grants)


def _committed(store: Store, pool: str, version: int, state: PoolState, grants: tuple[Grant, ...]) -> bool:
    now = _now()
    with store.write() as session:
        row = session.get(PoolRow, pool) or PoolRow(id=pool)
        if row.version != version or _state(session, pool) != state:
            return False
        row.version += 1
        for grant in grants:
            row.token += 1
            _offer(session, pool, row.token, grant, now)
        session.add(row)
        session.add(
            PoolDecisionRow(
                pool=pool,
                version=row.version,
                input_digest=signing.digest(state),
                input=signing.canonical(state).decode(),
                decisions=signing.canonical([grant.model_dump() for grant in grants]).decode(),
                at=now,
            )
        )
    return True


def _offer(session: Session, pool: str, token: int, grant: Grant, now: datetime) -> None:
    request = session.get_one(LeaseRequestRow, grant.request_id)
    request.state = "granted"
    session.add(request)
    session.add(
        LeaseRow(
            pool=pool,
            token=token,
            request_id=request.id,
            holder=request.holder,
            workflow_id=request.workflow_id,
            run_id=request.run_id,
            device=grant.device,
            live_device=grant.device,
            state="offered",
            granted_at=now,
            expires_at=now + OFFER_TTL,
        )
    )


def _offers(store: Store, pool: str) -> list[LeaseRow]:
    with store.read() as session:
        return list(session.exec(select(LeaseRow).where(LeaseRow.pool == pool, LeaseRow.state == "offered")).all())


def _outlook(store: Store, pool: str) -> tuple[int, float | None]:
    """How many wait, and in how many seconds the next lease is to be looked at."""
    with store.read() as session:
        waiting = _waiting(session, pool)
        expiries = session.exec(
            select(LeaseRow.expires_at).where(LeaseRow.pool == pool, col(LeaseRow.state).in_(LIVE))
        ).all()
    due = [expiry for expiry in expiries if expiry is not None]
    if not due:
        return waiting, None
    seconds = max(0.1, (min(due) - _now()).total_seconds())
    return waiting, min(seconds, WAITED_FOR.total_seconds()) if waiting else seconds
