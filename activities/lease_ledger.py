"""The lease ledger: requests, grants, tokens. Each function is one transaction; SQL is the authority.

A grant's token is the fence: strictly increasing in the whole deployment. Every pointer (result, version) is written
in the transaction that checks it, so a holder whose lease was taken away commits nothing.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import func
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from activities import lease_time
from activities.caller import Caller
from activities.lease_policy.first_come import Device, Grant, Policy, PoolState, Waiting, decide
from everloop import names, signing
from everloop.contracts import AcceptRequest, CommitRequest, LeaseRequest
from everloop.errors import Forbidden, LeaseLost
from everloop.records import Slot
from everloop.store import (
    LEASE_TOKENS,
    CounterRow,
    DeviceRow,
    LeaseMemberRow,
    LeaseRequestRow,
    LeaseRow,
    PoolDecisionRow,
    PoolRow,
    ResultRow,
    Store,
)

ENDED = ("done", "cancelled", "lapsed")
"""States of a request that nobody serves any more."""
OFFER_TTL = timedelta(seconds=15)
RENEWALS = 4
"""How often an offer that nobody takes is made again: its holder lives, and does not answer (75 s in all)."""
AWAY_TTL = timedelta(seconds=20)
"""How long a device may be away before the lease on it is fenced: a process that is started again takes less."""
LEASE_TTL = timedelta(seconds=60)
"""How often the pool asks Temporal whether a holder still lives, should nobody have said that it ended."""
FUEL = 10_000
LIVE = ("offered", "active")
LARGEST = 2**31 - 1
"""What a column of whole numbers holds on Postgres, which raises for more: a forged offer would be retried for ever."""


def check_token(session: Session, slot: Slot) -> None:
    """Raise `LeaseLost` unless the slot's token is its holder's last one and was not taken away.

    Call it in the transaction that writes the pointer.
    """
    row = session.exec(
        select(LeaseRow).where(LeaseRow.holder == slot.holder).order_by(col(LeaseRow.token).desc()).limit(1)
    ).first()
    if row is None or row.token != slot.token or row.state == "fenced":
        raise LeaseLost(f"token {slot.token} of {slot.holder} is fenced", hint="the stage takes a new lease by itself")


def enqueue(store: Store, request: LeaseRequest, asks: Caller) -> str:
    """Put the request in the queue. The same id again changes nothing, unless who asks still waits for it in vain.

    Returns why it had left the queue, where that is worth a word. Raises `Forbidden` for another workflow's id.
    """
    with store.write() as session:
        known = session.get(LeaseRequestRow, request.id)
        if known is None:
            session.add(_request(session, request, asks))
            return ""
        if known.workflow_id != asks.workflow_id:
            raise Forbidden(f"request {request.id} is not one of {asks.workflow_id}")
        if not request.again or (known.run_id == asks.run_id and not _in_vain(session, known)):
            return ""
        return _owned_by(session, known, asks)


def _request(session: Session, request: LeaseRequest, asks: Caller) -> LeaseRequestRow:
    last = session.exec(select(func.max(LeaseRequestRow.arrival)).where(LeaseRequestRow.pool == request.pool)).one()
    return LeaseRequestRow(
        id=request.id,
        pool=request.pool,
        arrival=(last or 0) + 1,
        kind=request.kind,
        holder=asks.holder,
        workflow_id=asks.workflow_id,
        run_id=asks.run_id,
        state="queued",
        requested_at=now(),
    )


def _in_vain(session: Session, request: LeaseRequestRow) -> bool:
    """Nobody serves the request any more: it has ended, or what was granted for it has."""
    if request.state == "granted":
        return not session.exec(_granted(request.id)).all()
    return request.state in ENDED


def _owned_by(session: Session, request: LeaseRequestRow, asks: Caller) -> str:
    """Queue *request* again, in its old place, for the run that waits now. What was granted to the other lapses."""
    reason, request.reason = request.reason, ""
    request.state, request.run_id, request.holder = "queued", asks.run_id, asks.holder
    session.add(request)
    return reason


def accept(store: Store, request: AcceptRequest, asks: Caller) -> Slot:
    """Make the offer a lease. Raises `LeaseLost` when it has lapsed or was never made to *asks* for that request."""
    with store.write() as session:
        row = _lease(session, request.token, asks.workflow_id)
        fits = row is not None and row.request_id == request.request_id and row.holder == asks.holder
        if row is None or not fits or row.state not in LIVE:
            raise LeaseLost(f"token {request.token} is no offer to {asks.holder} for request {request.request_id}")
        row.state, row.expires_at = "active", now() + LEASE_TTL
        session.add(row)
        return Slot(device=row.device, token=row.token, holder=row.holder)


def held(store: Store, request: AcceptRequest, asks: Caller) -> LeaseRow | None:
    """The live lease that *asks* gives back, or None when it has ended. Raises `Forbidden` for somebody else's.

    Its run may be an earlier one of the same workflow: a Reset replays a lease. Older workers name no request.
    """
    with store.read() as session:
        row = _lease(session, request.token, asks.workflow_id)
        if row is None and _lease(session, request.token) is not None:
            raise Forbidden(f"the lease with token {request.token} is not one of {asks.workflow_id}")
        if row is not None and request.request_id not in ("", row.request_id):
            raise Forbidden(f"the lease with token {request.token} was not granted for request {request.request_id}")
        return row if row is not None and row.state in LIVE else None


def commit(store: Store, request: CommitRequest, asks: Caller) -> None:
    """Write the pointer to a stage's result. Raises `LeaseLost` when the token is fenced."""
    if request.slot.holder.rpartition("/")[0] != asks.workflow_id:
        raise Forbidden(f"the lease of {request.slot.holder} is not one of {asks.workflow_id}")
    with store.write() as session:
        check_token(session, request.slot)
        session.merge(
            ResultRow(
                workflow_id=asks.workflow_id,
                run_id=asks.run_id,
                stage=request.stage,
                token=request.slot.token,
                digest=request.digest,
                at=now(),
            )
        )


def end(store: Store, pool: str, token: int, state: str, reason: str = "") -> bool:
    """End a live lease and, with it, its request. False when it had ended before.

    *reason*: what whoever waits with the request is told when it asks again.
    """
    with store.write() as session:
        row = session.get(LeaseRow, (pool, token))
        if row is None or row.state not in LIVE:
            return False
        _ended(session, row, state)
        _request_ends(session, row, "lapsed" if reason else "done", reason)
        return True


def end_run(store: Store, asks: Caller) -> set[str]:
    """End whatever a closed run held, was offered or waited for. Returns the pools that it was of."""
    with store.read() as session:  # most runs have left nothing, and a write would keep others waiting
        if not session.exec(_live_of(asks)).all() and not session.exec(_queued_of(asks)).all():
            return set()
    with store.write() as session:
        leases, requests = session.exec(_live_of(asks)).all(), session.exec(_queued_of(asks)).all()
        for row in leases:
            _ended(session, row, "fenced")
            _request_ends(session, row, "done")
        for request in requests:
            request.state = "cancelled"
            session.add(request)
        return {row.pool for row in leases} | {row.pool for row in requests}


def _live_of(asks: Caller) -> SelectOfScalar[LeaseRow]:
    return select(LeaseRow).where(LeaseRow.holder == asks.holder, col(LeaseRow.state).in_(LIVE))


def _queued_of(asks: Caller) -> SelectOfScalar[LeaseRequestRow]:
    return select(LeaseRequestRow).where(
        LeaseRequestRow.workflow_id == asks.workflow_id,
        LeaseRequestRow.state == "queued",
        LeaseRequestRow.run_id == asks.run_id,
    )


def cancel(store: Store, request_id: str, asks: Caller) -> str:
    """Take a request back, and whatever was granted for it. Returns its pool, or nothing when it had ended before.

    Raises `Forbidden` for another workflow's request.
    """
    with store.write() as session:
        request = session.get(LeaseRequestRow, request_id)
        if request is not None and request.workflow_id != asks.workflow_id:
            raise Forbidden(f"request {request_id} is not one of {asks.workflow_id}")
        if request is None or request.state in ENDED:
            return ""
        for row in session.exec(_granted(request_id)).all():
            _ended(session, row, "released")
        request.state = "cancelled"
        session.add(request)
        return request.pool


def renew(store: Store, pool: str, token: int) -> None:
    """The holder of a lease that has come to its time lives: give it more, where its device is there.

    An offer is renewed `RENEWALS` times, then it lapses: others wait for the slot that its holder does not take.
    """
    with store.write() as session:
        row = session.get(LeaseRow, (pool, token))
        if row is None or row.state not in LIVE:
            return
        if row.state == "offered" and row.renewals >= RENEWALS:
            _lapsed(session, row)
            return
        device = session.get(DeviceRow, (row.pool, row.device))
        if device is not None and device.present:
            row.renewals += row.state == "offered"
            row.expires_at = now() + (OFFER_TTL if row.state == "offered" else LEASE_TTL)
            session.add(row)


def _lapsed(session: Session, row: LeaseRow) -> None:
    seconds = (now() - row.granted_at).total_seconds()
    _ended(session, row, "fenced")
    _request_ends(session, row, "lapsed", f"{row.device} was offered and not taken for {seconds:.0f} s")


def _ended(session: Session, row: LeaseRow, state: str) -> None:
    """The lease lives no more: its device is free for the next grant."""
    row.state, row.expires_at, row.ended_at = state, None, now()
    session.add(row)
    members = select(LeaseMemberRow).where(LeaseMemberRow.pool == row.pool, LeaseMemberRow.token == row.token)
    for member in session.exec(members.where(col(LeaseMemberRow.live))).all():
        member.live = False
        device = session.get_one(DeviceRow, (row.pool, member.device), with_for_update=True)
        device.used_cores -= member.cores
        session.add_all((member, device))
    lease_time.members_freed(session, row)


def _request_ends(session: Session, row: LeaseRow, state: str, reason: str = "") -> None:
    """The request of a lease that has ended ends too, unless another run of its workflow waits with it now."""
    request = session.get(LeaseRequestRow, row.request_id)
    if request is not None and request.state == "granted" and request.holder == row.holder:
        request.state, request.reason = state, reason
        session.add(request)


def note_inventory(store: Store, pool: str, inventory: tuple[str, ...]) -> None:
    """Present are exactly the devices of *inventory*; others stay known, but get no new lease.

    A lease on a device that has just gone comes to its time soon: its holder then takes another one.
    """
    light = {name.removesuffix(names.LIGHT_SUFFIX): name.endswith(names.LIGHT_SUFFIX) for name in inventory}
    with store.write() as session:
        gone = []
        for row in session.exec(select(DeviceRow).where(DeviceRow.pool == pool)).all():
            gone += [row.name] if row.present and row.name not in light else []
            row.present = row.name in light
            row.light = light.pop(row.name, row.light)
            session.add(row)
        session.add_all(DeviceRow(pool=pool, name=name, light=is_light) for name, is_light in light.items())
        lease_time.devices_noted(session, pool)
        for lease in session.exec(live(pool).where(col(LeaseRow.device).in_(gone))).all():
            lease.expires_at = min(lease.expires_at or now(), now() + AWAY_TTL)
            session.add(lease)


def due(store: Store, pool: str) -> list[LeaseRow]:
    """Live leases that have come to their time: does the holder live, is its device there?"""
    with store.read() as session:
        rows = session.exec(live(pool)).all()
        return [row for row in rows if row.expires_at and row.expires_at <= now()]


def absent(store: Store, pool: str) -> set[str]:
    """Devices whose Dask worker is not there."""
    with store.read() as session:
        lost = select(DeviceRow.name).where(DeviceRow.pool == pool, col(DeviceRow.present).is_(False))
        return set(session.exec(lost).all())


def offers(store: Store, pool: str) -> list[LeaseRow]:
    """Grants that their holders have not taken yet."""
    with store.read() as session:
        return list(session.exec(select(LeaseRow).where(LeaseRow.pool == pool, LeaseRow.state == "offered")).all())


def outlook(store: Store, pool: str) -> tuple[int, float | None]:
    """How many wait, and in how many seconds the next lease comes to its time."""
    with store.read() as session:
        waiting = session.exec(
            select(func.count()).where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
        ).one()
        expiries = [row.expires_at for row in session.exec(live(pool)).all() if row.expires_at]
    return waiting, max(0.1, (min(expiries) - now()).total_seconds()) if expiries else None


def now() -> datetime:
    return datetime.now(UTC)


def _lease(session: Session, token: int, workflow_id: str = "") -> LeaseRow | None:
    """The lease with *token* (of a workflow): pools of older folders may each have given out the same one."""
    if not 0 < token <= LARGEST:
        return None
    query = select(LeaseRow).where(LeaseRow.token == token)
    if workflow_id:
        query = query.where(LeaseRow.workflow_id == workflow_id)
    return session.exec(query.order_by(col(LeaseRow.granted_at).desc())).first()


def live(pool: str) -> SelectOfScalar[LeaseRow]:
    """The pool's leases that have not ended."""
    return select(LeaseRow).where(LeaseRow.pool == pool, col(LeaseRow.state).in_(LIVE))


def queued(pool: str) -> SelectOfScalar[LeaseRequestRow]:
    """The pool's queue, in order of arrival."""
    return (
        select(LeaseRequestRow)
        .where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
        .order_by(col(LeaseRequestRow.arrival))
    )


def _granted(request_id: str) -> SelectOfScalar[LeaseRow]:
    return select(LeaseRow).where(LeaseRow.request_id == request_id, col(LeaseRow.state).in_(LIVE))


# --- the decision ---------------------------------------------------------------------------------


def grant(store: Store, pool: str) -> int:
    """Read, decide, and commit where the version is still the one that was read; else once more."""
    while True:
        with store.read() as session:
            row = session.get(PoolRow, pool)
            version = row.version if row else 0
            state = _state(session, pool)
        grants = decide(state, int(now().timestamp() * 1000), Policy(), FUEL)
        if not grants:
            return 0
        if _committed(store, pool, version, state, grants):
            return len(grants)


def _state(session: Session, pool: str) -> PoolState:
    taken = {row.device for row in session.exec(live(pool)).all()}
    devices = session.exec(select(DeviceRow).where(DeviceRow.pool == pool).order_by(DeviceRow.name)).all()
    return PoolState(
        devices=tuple(
            Device(name=row.name, light=row.light, present=row.present, taken=row.name in taken) for row in devices
        ),
        waiting=tuple(
            Waiting(id=row.id, arrival=row.arrival, kind=row.kind) for row in session.exec(queued(pool)).all()
        ),
    )


def _committed(store: Store, pool: str, version: int, state: PoolState, grants: tuple[Grant, ...]) -> bool:
    at = now()
    with store.write() as session:
        row = session.get(PoolRow, pool) or PoolRow(id=pool)
        if row.version != version or _state(session, pool) != state:
            return False
        row.version += 1
        last = session.get_one(CounterRow, LEASE_TOKENS, with_for_update=True)
        for one in grants:
            last.value += 1
            _offer(session, pool, last.value, one, at)
        session.add_all((row, last))
        session.add(
            PoolDecisionRow(
                pool=pool,
                version=row.version,
                input_digest=signing.digest(state),
                input=signing.canonical(state).decode(),
                decisions=signing.canonical([one.model_dump() for one in grants]).decode(),
                at=at,
            )
        )
    return True


def _offer(session: Session, pool: str, token: int, given: Grant, at: datetime) -> None:
    request = session.get_one(LeaseRequestRow, given.request_id)
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
            device=given.device,
            state="offered",
            granted_at=at,
            expires_at=at + OFFER_TTL,
        )
    )
    session.add(LeaseMemberRow(pool=pool, token=token, rank=0, device=given.device))
    device = session.get_one(DeviceRow, (pool, given.device), with_for_update=True)
    device.used_cores += 1
    session.add(device)
