"""The pool's decision: read the ledger at a version, decide, and commit where the version is still that one."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, update
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from activities import lease_budgets
from activities.lease_ledger import capacity, record, reservations, rows
from activities.lease_ledger.ends import ended, request_ends
from activities.lease_ledger.state import DAY_MS, policy, read
from activities.lease_policy import decide
from activities.lease_policy.state import (
    Decision,
    Explain,
    Grant,
    Kill,
    Notice,
    Part,
    Policy,
    PoolState,
    Reserve,
    Resize,
    Usage,
    Withdraw,
)
from activities.lease_timing import COMMIT, DECIDE, EXAMINED
from everloop.errors import Unavailable
from everloop.store import (
    LEASE_TOKENS,
    CounterRow,
    DeviceRow,
    LeaseMemberRow,
    LeaseRequestRow,
    LeaseRow,
    PoolRow,
    QueueRow,
    ReservationRow,
    Store,
)

FUEL = 10_000
"""Requests that are looked at in one decision."""
TRIES = 20
MOST_EXPLAINED = 500
"""Reasons that one step writes: those who wait further back learn theirs when they are nearer."""
QUIET = timedelta(seconds=60)
"""The pool looks again this soon while somebody waits, whatever happens."""
FOR_OTHERS = ("reclaim", "preempt", "shrink", "over_runtime")
"""Notices that count as preemptions."""


def grant(store: Store, pool: str) -> int:
    """Decide and commit. Returns how many leases were offered."""
    look_after_budgets(store, pool)
    for _ in range(TRIES):
        now_ms = rows.ms(rows.now())
        with store.read() as session:
            row = session.get(PoolRow, pool)
            version, state, rules = row.version if row else 0, read(session, pool, now_ms), policy(session, pool)
            reserved = reservations.standing(session, pool)
        with DECIDE.time():
            decisions = decide(state, now_ms, rules, FUEL)
        EXAMINED.observe(min(len(state.waiting), FUEL))
        acts = [one for one in decisions if not isinstance(one, Explain | Reserve)]
        made = record.Decided(state, rules, now_ms, decisions)
        if _committed(store, pool, version, made) if acts else _kept(store, pool, version, made, reserved):
            explain(store, pool, [one for one in decisions if isinstance(one, Explain)])
            return sum(isinstance(one, Grant) for one in acts)
    raise Unavailable(f"pool {pool} changes faster than it can be decided about")


def look_after_budgets(store: Store, pool: str) -> None:
    """Hold back whose budget is spent, and let go on whose was raised."""
    with store.read() as session:
        if not lease_budgets.there_are(session, pool):
            return
        grace = timedelta(seconds=policy(session, pool).grace_s)
    lease_budgets.look_after(store, pool, rows.ms(rows.now()), grace)


def look(store: Store, pool: str) -> tuple[PoolState, Policy, tuple[Decision, ...]]:
    """What would be decided now, and about what; nothing is written. For people."""
    now_ms = rows.ms(rows.now())
    with store.read() as session:
        state, rules = read(session, pool, now_ms), policy(session, pool)
    return state, rules, decide(state, now_ms, rules, FUEL)


@COMMIT.time()
def _committed(store: Store, pool: str, version: int, made: record.Decided) -> bool:
    with store.write() as session:
        row = session.get(PoolRow, pool, with_for_update=True) or PoolRow(id=pool)
        if row.version != version:
            return False
        row.version += 1
        session.add(row)
        kept = record.keep(session, pool, row.version, made)
        for one in made.decisions:
            _do(session, pool, one, made.now_ms)
            session.flush()  # in their order: what one gives back another may take
        reservations.note(session, pool, reservations.kept(made.state, made.decisions, made.now_ms), made.now_ms)
    record.remember(pool, kept)
    return True


def _kept(store: Store, pool: str, version: int, made: record.Decided, before: Sequence[ReservationRow]) -> bool:
    """Write what is reserved where that has changed and nothing else has. False: the ledger is another by now."""
    now = reservations.kept(made.state, made.decisions, made.now_ms)
    if not reservations.differ(before, now):
        return True
    with store.write() as session:
        row = session.get(PoolRow, pool, with_for_update=True)
        if row is not None and row.version != version:
            return False
        reservations.note(session, pool, now, made.now_ms)
    return True


def _do(session: Session, pool: str, one: Decision, now_ms: int) -> None:
    match one:
        case Grant():
            _offer(session, pool, one, now_ms)
        case Notice():
            _notice(session, pool, one, now_ms)
        case Withdraw():
            _withdraw(session, pool, one.token)
        case Kill():
            _kill(session, pool, one, now_ms)
        case Resize():
            _resize(session, pool, one, now_ms)
        case Usage():
            _usage(session, pool, one, now_ms)
        case Explain() | Reserve():
            return


def _offer(session: Session, pool: str, given: Grant, now_ms: int) -> None:
    request = session.get(LeaseRequestRow, given.request_id)
    if request is None or request.state != "queued":  # taken back a moment ago
        return
    request.state, request.code, request.detail, request.position = "granted", "", [], 0
    session.add(request)
    told = request.model_dump(include={"holder", "workflow_id", "run_id", "queue"})
    _offered(session, pool, given.members, now_ms, request_id=request.id, **told)


def _offered(session: Session, pool: str, members: Sequence[Part], now_ms: int, **told: Any) -> None:  # noqa: ANN401
    """A lease of *members* under a new token, which its holder has to accept."""
    row = LeaseRow(
        pool=pool,
        token=_token(session),
        device=members[0].device,
        state="offered",
        granted_at=rows.moment(now_ms),
        expires_at=rows.moment(now_ms) + rows.OFFER_TTL,
        **told,
    )
    session.add(row)
    capacity.take(session, row, members, now_ms)


def _token(session: Session) -> int:
    last = session.get_one(CounterRow, LEASE_TOKENS, with_for_update=True)
    last.value += 1
    session.add(last)
    return last.value


def _notice(session: Session, pool: str, told: Notice, now_ms: int) -> None:
    row = session.get(LeaseRow, (pool, told.token))
    if row is None or row.state not in ("offered", "active"):  # given back a moment ago
        return
    row.state, row.notice, row.beneficiary = "noticed", told.reason, told.beneficiary
    row.noticed_at, row.deadline_at = rows.moment(now_ms), rows.moment(told.deadline_ms)
    row.why = _why(session, told)
    session.add(row)
    request = session.get(LeaseRequestRow, row.request_id)
    if request is not None and told.reason in FOR_OTHERS:
        request.preempted_ms = [*(at for at in request.preempted_ms if at > now_ms - DAY_MS), now_ms]
        session.add(request)


def _why(session: Session, told: Notice) -> str:
    """In words, for the holder's journal."""
    taker = session.get(LeaseRequestRow, told.beneficiary) if told.beneficiary else None
    whom = f"{taker.workflow_id} in queue {taker.queue}" if taker else "others"
    sentences = {
        "reclaim": f"queue {taker.queue if taker else ''} takes back its share for {whom}",
        "preempt": f"{whom} has a higher priority",
        "shrink": f"{whom} needs some of it; it asks again for fewer members, at its old place",
        "over_runtime": "it runs longer than the max_runtime that was declared, and others wait",
        "drain": "its device is drained",
    }
    return sentences.get(told.reason, told.reason)


def _withdraw(session: Session, pool: str, token: int) -> None:
    row = session.get(LeaseRow, (pool, token))
    if row is None or row.state != "noticed":
        return
    request = session.get(LeaseRequestRow, row.request_id)
    if request is not None and row.notice in FOR_OTHERS:
        request.preempted_ms = request.preempted_ms[:-1]
        session.add(request)
    rows.stays(row)
    session.add(row)


def _kill(session: Session, pool: str, one: Kill, now_ms: int) -> None:
    """Fenced from now on. Its parts are free when its processes are proven dead (ends.py).

    Whom it makes way for counts on that until its new deadline, so nobody else is asked to let go meanwhile.
    """
    row = session.get(LeaseRow, (pool, one.token))
    if row is None or row.state not in rows.WORKING:
        return
    if row.state == "offered":  # nothing of it runs
        ended(session, row, "fenced", "its device was drained before it was taken")
        request_ends(session, row, "lapsed", f"{row.device} is drained")
        return
    row.state, row.expires_at, row.ended_at = "killing", None, rows.moment(now_ms)
    row.deadline_at = rows.moment(one.deadline_ms)
    session.add(row)
    request_ends(session, row, "done")


def _resize(session: Session, pool: str, one: Resize, now_ms: int) -> None:
    """Other members under a new token. The holder is offered them like any grant."""
    row = session.get(LeaseRow, (pool, one.token))
    if row is None or row.state not in rows.WORKING:
        return
    told = row.model_dump(include={"request_id", "holder", "workflow_id", "run_id", "queue", "checkpoint_at"})
    ended(session, row, "released", "it goes on with other members")
    session.flush()
    _offered(session, pool, one.members, now_ms, follows=one.token, **told)


def _usage(session: Session, pool: str, one: Usage, now_ms: int) -> None:
    row = session.get(QueueRow, (pool, one.queue)) or QueueRow(pool=pool, id=one.queue, updated_at=rows.moment(now_ms))
    row.usage_cores, row.usage_milli_gpu, row.usage_at_ms = one.usage.cores, one.usage.milli_gpu, one.at_ms
    session.add(row)


def explain(store: Store, pool: str, told: Sequence[Explain]) -> int:
    """Write why each request waits, where that is not what is written already. Returns how many have changed.

    Who is not among those near enough any more has no reason written: it is worked out when somebody asks.
    """
    near = {one.request_id: one for one in sorted(told, key=lambda one: (one.ahead, one.request_id))[:MOST_EXPLAINED]}
    explained = select(LeaseRequestRow.id).where(
        LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued", LeaseRequestRow.code != ""
    )
    with store.read() as session:
        written = set(session.exec(explained).all())  # of budgets, too: whom they hold back nobody has told here
    past = written.intersection(one.request_id for one in told) - near.keys()
    news = _news(store, near) if near else []
    if not news and not past:
        return 0
    with store.write() as session:
        session.exec(
            update(LeaseRequestRow)
            .where(col(LeaseRequestRow.id).in_(past), col(LeaseRequestRow.state) == "queued")
            .values(code="", detail=[], position=0, ahead=0)
        )
        for one in news:
            session.exec(
                update(LeaseRequestRow)
                .where(col(LeaseRequestRow.id) == one.request_id, col(LeaseRequestRow.state) == "queued")
                .values(code=one.code, detail=_pairs(one), position=one.position, ahead=one.ahead)
            )
    return len(news) + len(past)


def _news(store: Store, near: dict[str, Explain]) -> list[Explain]:
    columns = (LeaseRequestRow.id, LeaseRequestRow.code, LeaseRequestRow.position, LeaseRequestRow.ahead)
    query = select(*columns, LeaseRequestRow.detail).where(col(LeaseRequestRow.id).in_(list(near)))  # type: ignore[call-overload]
    with store.read() as session:
        known = {row.id: (row.code, row.position, row.ahead, row.detail) for row in session.exec(query)}
    return [
        one for one in near.values() if known.get(one.request_id) != (one.code, one.position, one.ahead, _pairs(one))
    ]


def _pairs(one: Explain) -> list[list[str]]:
    return [list(pair) for pair in one.detail]


# --- when to look again -----------------------------------------------------------------------------


def due(store: Store, pool: str) -> list[LeaseRow]:
    """Leases that have come to their time: does the holder live, is its device there?"""
    with store.read() as session:
        found = session.exec(rows.working(pool)).all()
        return [row for row in found if row.expires_at and row.expires_at <= rows.now()]


def offers(store: Store, pool: str) -> list[LeaseRow]:
    """Grants that their holders have not taken yet."""
    with store.read() as session:
        return list(session.exec(select(LeaseRow).where(LeaseRow.pool == pool, LeaseRow.state == "offered")).all())


def untold(store: Store, pool: str) -> list[LeaseRow]:
    """Leases whose holders have to hear of a notice, or that it is withdrawn."""
    noticed = (col(LeaseRow.state) == "noticed") & (
        col(LeaseRow.told_at).is_(None) | (col(LeaseRow.told_at) != col(LeaseRow.deadline_at))
    )
    withdrawn = (col(LeaseRow.state) == "active") & col(LeaseRow.told_at).is_not(None)
    with store.read() as session:
        return list(session.exec(select(LeaseRow).where(LeaseRow.pool == pool, noticed | withdrawn)).all())


def told(store: Store, pool: str, token: int, deadline: datetime | None) -> None:
    """Its holder knows by when it has to let go; None: that it has not to any more."""
    with store.write() as session:
        row = session.get(LeaseRow, (pool, token))
        if row is not None:
            row.told_at = deadline
            session.add(row)


def outlook(store: Store, pool: str) -> tuple[int, float | None]:
    """How many wait, and in how many seconds the pool has something to decide even without news."""
    with store.read() as session:
        waiting = session.exec(
            select(func.count()).where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
        ).one()
        leases = session.exec(rows.working(pool)).all()
        rules = policy(session, pool)
        spent_in = [lease_budgets.seconds_left(session, pool, rows.ms(rows.now()))]
        drains = [by for by in session.exec(_drains(pool)).all() if by]
    moments = [_drain_moment(by, timedelta(seconds=rules.grace_s)) for by in drains]
    moments += [rows.now() + timedelta(seconds=seconds) for seconds in spent_in if seconds is not None]
    moments += [row.expires_at for row in leases if row.expires_at] + [
        row.deadline_at for row in leases if row.deadline_at
    ]
    if waiting and leases:  # who may be preempted by then
        least = timedelta(seconds=rules.min_runtime_s)
        moments += [row.granted_at + least for row in leases if row.granted_at + least > rows.now()]
        moments.append(rows.now() + QUIET)
    return waiting, max(0.1, (min(moments) - rows.now()).total_seconds()) if moments else None


def _drains(pool: str) -> SelectOfScalar[Any]:
    """By when devices are to be empty on which somebody may still work."""
    return (
        select(DeviceRow.drain_by)
        .join(
            LeaseMemberRow,
            (col(LeaseMemberRow.pool) == DeviceRow.pool) & (col(LeaseMemberRow.device) == DeviceRow.name),
        )
        .join(LeaseRow, (col(LeaseRow.pool) == LeaseMemberRow.pool) & (col(LeaseRow.token) == LeaseMemberRow.token))
        .where(DeviceRow.pool == pool, DeviceRow.state == "draining", col(LeaseMemberRow.live))
        .where(col(LeaseRow.state).in_(rows.WORKING))
    )


def _drain_moment(by: datetime, grace: timedelta) -> datetime:
    """Of the notices, and then of the end (lease_policy/lapse.py)."""
    return by - grace if by - grace > rows.now() else by
