"""A pool's rows as people read them: devices, queues, leases, and why each request waits."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from sqlmodel import Session, col, func, select

from activities import lease_ledger as ledger
from activities import lease_queues, lease_rules, lease_time
from activities.lease_budgets import CODE as OVER_BUDGET
from activities.lease_ledger.state import policy as policy_of
from activities.lease_ledger.state import read
from activities.lease_policy import sentence, standing, unblocks
from activities.lease_policy.state import Explain, Standing
from api.pool.answers import (
    Amounts,
    Counted,
    DeviceView,
    Explained,
    LeaseView,
    MemberView,
    NodeView,
    Notice,
    PolicyView,
    PoolView,
    QueueList,
    QueueView,
    RuleView,
    WaitingView,
)
from api.pool.reserved import reservations
from everloop import isolation, names, orders, pool_rules
from everloop.amounts import NO_LIMIT
from everloop.errors import NotFound
from everloop.queues import Queue, document
from everloop.store import (
    DeviceRow,
    LeaseMemberRow,
    LeaseRequestRow,
    LeaseRow,
    LifecycleRow,
    PoolPolicyRow,
    PoolRow,
    Store,
)

WORKING = ("offered", "active", "noticed")
"""States of a lease whose holder may work."""
NOT_LOOKED_AT = "not_looked_at"
HINDRANCE = ("away", "quarantined", "draining", "cordoned", "ready")
"""States of a device: the one that hinders most first."""


def pool(session: Session, name: str, limit: int) -> PoolView:
    """The pool as it is now. Raises `NotFound`."""
    must_be_there(session, name)
    waiting, views = _queued(session, name, limit), queue_views(session, name)
    return PoolView(
        pool=name,
        devices=devices(session, name),
        queues=views,
        leases=leases(session, name, 0, views),
        waiting=[waiting_view(row) for row in waiting],
        waiting_in_all=sum(_pending(session, name).values()),
        reservations=reservations(session, name),
        links={"self": f"/api/v1/pools/{quote(name)}", "page": f"/pool?pool={quote(name)}"},
    )


def must_be_there(session: Session, name: str) -> None:
    if name == names.DEFAULT_POOL or session.get(PoolRow, name) is not None:
        return
    known = select(DeviceRow.name).where(DeviceRow.pool == name).limit(1)
    if session.exec(known).first() is None:
        raise NotFound(f"there is no pool {name[:63]}", field="pool", hint=f"the usual one is {names.DEFAULT_POOL}")


def policy(session: Session, pool: str) -> PolicyView:
    """Its rules as they are. Raises `NotFound`."""
    must_be_there(session, pool)
    values, row = lease_rules.current(session, pool), session.get(PoolPolicyRow, pool)
    rules = [
        RuleView(
            name=name,
            value=values[rule.field],
            default=lease_rules.DEFAULTS[rule.field],
            words=pool_rules.words(name, values[rule.field]),
            usual=pool_rules.words(name, lease_rules.DEFAULTS[rule.field]),
            about=rule.about,
        )
        for name, rule in pool_rules.RULES.items()
    ]
    return PolicyView(pool=pool, rules=rules, person=row.person if row else "", at=row.at if row else None)


# --- devices and nodes


def devices(session: Session, pool: str) -> list[DeviceView]:
    rows = session.exec(select(DeviceRow).where(DeviceRow.pool == pool).order_by(col(DeviceRow.name))).all()
    return [_device(row) for row in rows]


def _device(row: DeviceRow) -> DeviceView:
    return DeviceView(
        name=row.name,
        node=row.node or "-",
        state=row.state if row.present else "away",
        why=row.why,
        light=row.light,
        whole=Amounts(cores=row.cores, memory_mib=row.memory_mib, milli_gpu=row.milli_gpu, gpu_mib=row.gpu_mib),
        used=Amounts(
            cores=row.used_cores,
            memory_mib=row.used_memory_mib,
            milli_gpu=row.used_milli_gpu,
            gpu_mib=row.used_gpu_mib,
        ),
    )


def nodes(session: Session, pool: str) -> list[NodeView]:
    must_be_there(session, pool)
    by_node: dict[str, list[DeviceView]] = defaultdict(list)
    for device in devices(session, pool):
        by_node[device.node].append(device)
    live = select(LeaseMemberRow.token, LeaseMemberRow.device).where(
        LeaseMemberRow.pool == pool, col(LeaseMemberRow.live).is_(True)
    )
    on_device: dict[str, set[int]] = defaultdict(set)
    for token, device_name in session.exec(live).all():
        on_device[device_name].add(token)
    found = []
    for node, mine in sorted(by_node.items()):
        tokens = set().union(*(on_device[device.name] for device in mine))
        found.append(NodeView(node=node, state=_state_of(mine, on_device), devices=mine, leases=len(tokens)))
    return found


def _state_of(mine: Sequence[DeviceView], tokens: Mapping[str, set[int]]) -> str:
    """What hinders most; `partly`: not on all devices of the node."""
    state = min((device.state for device in mine), key=HINDRANCE.index)
    those = [device.name for device in mine if device.state == state]
    if state == "draining" and not any(tokens[name] for name in those):
        state = "drained"
    return state if len(those) == len(mine) else f"partly {state}"


# --- queues


def queues(session: Session, pool: str) -> QueueList:
    must_be_there(session, pool)
    tree = lease_queues.tree(session, pool)
    return QueueList(items=queue_views(session, pool), tree=document(tree), digest=orders.tree_digest(tree))


def queue_views(session: Session, pool: str) -> list[QueueView]:
    tree = lease_queues.tree(session, pool)
    standings = {each.queue: each for each in _standings(session, pool)}
    pending = _pending(session, pool)
    depths: dict[str, int] = {"": -1}
    found = []
    for queue in tree:
        depths[queue.id] = depths[queue.parent] + 1
        below = lease_queues.below(tree, queue.id)
        found.append(
            _queue(queue, depths[queue.id], standings.get(queue.id), sum(pending.get(one, 0) for one in below))
        )
    return found


def _standings(session: Session, pool: str) -> Sequence[Standing]:
    now_ms = lease_time.in_ms(datetime.now(UTC))
    return standing(read(session, pool, now_ms), now_ms, policy_of(session, pool))


def _queue(queue: Queue, depth: int, standing: Standing | None, pending: int) -> QueueView:
    use = standing.allocated if standing else (0, 0)
    over = any(used > 0 and (quota == NO_LIMIT or used > quota) for used, quota in zip(use, queue.quota, strict=True))
    return QueueView(
        id=queue.id,
        parent=queue.parent,
        depth=depth,
        quota=_counted(queue.quota),
        limit=_counted(queue.limit),
        weight=queue.weight,
        priority=queue.priority,
        share=_counted(standing.share) if standing else None,
        use=_counted(use),
        usage=_counted(standing.usage if standing else (0, 0)),
        pending=pending,
        over_quota=over and queue.quota != (NO_LIMIT, NO_LIMIT),
        scaled=standing.scaled if standing else False,
    )


def _counted(values: Sequence[int]) -> Counted:
    return Counted(cores=values[0], milli_gpu=values[1])


def _pending(session: Session, pool: str) -> dict[str, int]:
    query = select(LeaseRequestRow.queue, func.count()).where(
        LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued"
    )
    return dict(session.exec(query.group_by(LeaseRequestRow.queue)).all())


# --- leases


def lease_row(session: Session, token: int) -> LeaseRow:
    """The latest lease with *token*. Raises `NotFound`."""
    query = select(LeaseRow).where(LeaseRow.token == token).order_by(col(LeaseRow.granted_at).desc())
    row = session.exec(query).first()
    if row is None:
        raise NotFound(f"there is no lease {token}", field="token", hint="`everloop lease list` shows who holds what")
    return row


def leases(session: Session, pool: str, ended: int, queues: Sequence[QueueView] | None = None) -> list[LeaseView]:
    """Live ones by token, then the latest *ended* ones. *queues*: the pool's, where they are known."""
    must_be_there(session, pool)
    rows = lease_time.held(session, pool)
    if ended:
        past = select(LeaseRow).where(LeaseRow.pool == pool, col(LeaseRow.token).not_in([row.token for row in rows]))
        rows += session.exec(past.order_by(col(LeaseRow.token).desc()).limit(ended)).all()
    known = queue_views(session, pool) if queues is None else queues
    over = {queue.id for queue in known if queue.over_quota}
    return [lease_view(session, row, over) for row in rows]


def lease_view(session: Session, row: LeaseRow, over: Iterable[str] = ()) -> LeaseView:
    request = session.get(LeaseRequestRow, row.request_id)
    holder = names.lifecycle_of(row.workflow_id)
    lifecycle = session.get(LifecycleRow, holder)
    members = session.exec(
        select(LeaseMemberRow)
        .where(LeaseMemberRow.pool == row.pool, LeaseMemberRow.token == row.token)
        .order_by(col(LeaseMemberRow.rank))
    ).all()
    preemptible = request.preemptible if request else False
    working = row.state in WORKING
    return LeaseView(
        token=row.token,
        request=row.request_id,
        lifecycle=holder,
        model=(lifecycle.model if lifecycle else "") or (request.model if request else ""),
        stage=lifecycle.stage if lifecycle and working else request.stage if request else "",
        queue=row.queue,
        priority=request.priority if request else 0,
        preemptible=preemptible,
        state="killing" if not working and any(each.live for each in members) else row.state,
        members=[_member(session, each) for each in members],
        granted_at=row.granted_at,
        ended_at=row.ended_at,
        notice=_notice(session, row),
        reclaimable=preemptible and row.queue in over and working,
        max_runtime_seconds=request.max_runtime_ms / 1000 if request else 0,
        over_runtime_seconds=_over_runtime(row, request) if working else 0,
    )


def _over_runtime(row: LeaseRow, request: LeaseRequestRow | None) -> float:
    declared = request.max_runtime_ms / 1000 if request else 0
    ran = (datetime.now(UTC) - row.granted_at).total_seconds()
    return round(ran - declared, 1) if 0 < declared < ran else 0


def _member(session: Session, row: LeaseMemberRow) -> MemberView:
    amounts = Amounts(cores=row.cores, memory_mib=row.memory_mib, milli_gpu=row.milli_gpu, gpu_mib=row.gpu_mib)
    device = session.get(DeviceRow, (row.pool, row.device)) if row.milli_gpu else None
    level, words = isolation.granted(row.device, row.milli_gpu, device.milli_gpu if device else isolation.WHOLE_GPU)
    return MemberView(rank=row.rank, device=row.device, amounts=amounts, isolation=level, fenced=words)


def _notice(session: Session, row: LeaseRow) -> Notice | None:
    if row.noticed_at is None:
        return None
    other = session.get(LeaseRequestRow, row.beneficiary) if row.beneficiary else None
    by = f"{other.workflow_id} in queue {other.queue}" if other else ""
    return Notice(reason=row.notice, why=row.why, by=by, deadline=row.deadline_at)


# --- who waits


def _queued(session: Session, pool: str, limit: int) -> Sequence[LeaseRequestRow]:
    query = select(LeaseRequestRow).where(LeaseRequestRow.pool == pool, LeaseRequestRow.state == "queued")
    order = (col(LeaseRequestRow.queue), col(LeaseRequestRow.position), col(LeaseRequestRow.arrival))
    return session.exec(query.order_by(*order).limit(limit)).all()


NO_PLACE = ("infeasible", "unknown_queue", "has_lease")
"""Who waits for these reasons stands in no line."""


def waiting_view(row: LeaseRequestRow) -> WaitingView:
    told = explained_by(row)
    return WaitingView(
        request=row.id,
        lifecycle=names.lifecycle_of(row.workflow_id),
        queue=row.queue,
        priority=row.priority,
        since=row.requested_at,
        needs=Amounts(cores=row.cores, memory_mib=row.memory_mib, milli_gpu=row.milli_gpu, gpu_mib=row.gpu_mib),
        members=row.members_min,
        position=0 if row.code in NO_PLACE else row.position,
        ahead=row.ahead,
        code=row.code or NOT_LOOKED_AT,
        sentence=told[0],
        unblocks=told[1],
    )


def explained_by(row: LeaseRequestRow) -> tuple[str, str]:
    """Why it waits, and what unblocks it, as of the pool's last step."""
    if not row.code:
        return "waits for the pool to look at it", "it does so within seconds"
    if row.code == OVER_BUDGET:
        facts = {pair[0]: pair[1] for pair in row.detail}
        return (
            f"waits for more budget in queue {row.queue}: {facts['why']}",
            f"somebody raises it: {raise_budget(facts)}",
        )
    said = Explain(row.id, row.code, row.position, row.ahead, tuple((name, value) for name, value in row.detail))
    return sentence(said, row.queue), unblocks(said)


def raise_budget(facts: Mapping[str, str]) -> str:
    which = f"--lifecycle {facts['of']}" if facts["scope"] == "lifecycle" else facts["of"]
    return f"`everloop budget set {which}`"


def explained(store: Store, of: str) -> Explained:
    """Of a lifecycle, a request or a token. Raises `NotFound`.

    A step writes the reasons of those who are near their turn; of who is further back it is worked out here.
    """
    with store.read() as session:
        found = _explained(session, of)
        if found.waiting is None or found.waiting.code != NOT_LOOKED_AT:
            return found
        pool = session.get_one(LeaseRequestRow, found.waiting.request).pool
    _, _, decisions = ledger.look(store, pool)
    told = next(
        (one for one in decisions if isinstance(one, Explain) and one.request_id == found.waiting.request), None
    )
    if told is None:  # served a moment ago, or about to be
        return found
    with store.read() as session:
        row = session.get_one(LeaseRequestRow, found.waiting.request)
        session.expunge(row)  # the table is the pool's to write
    row.code, row.position, row.ahead = told.code, told.position, told.ahead
    row.detail = [list(pair) for pair in told.detail]
    view = waiting_view(row)
    return Explained(waiting=view, sentence=_sentence(view))


def _explained(session: Session, of: str) -> Explained:
    if of.isdecimal() and len(of) < 19:  # noqa: PLR2004  # a token of 64 bits
        return _of_lease(session, lease_row(session, int(of)))
    request = session.get(LeaseRequestRow, of) or _latest_of(session, of)
    if request is None:
        raise NotFound(
            f"{of[:200]} has asked for no lease, and is none",
            field="of",
            hint="name a lifecycle, a request, or a lease's token (`everloop lease list`)",
        )
    if request.state == "queued":
        view = waiting_view(request)
        return Explained(waiting=view, sentence=_sentence(view))
    live = select(LeaseRow).where(LeaseRow.request_id == request.id).order_by(col(LeaseRow.token).desc())
    row = session.exec(live).first()
    if row is not None:
        return _of_lease(session, row)
    return Explained(sentence=f"{request.workflow_id} does not wait: its request is {request.state}. {request.reason}")


def _latest_of(session: Session, workflow_id: str) -> LeaseRequestRow | None:
    query = select(LeaseRequestRow).where(LeaseRequestRow.workflow_id == workflow_id)
    return session.exec(query.order_by(col(LeaseRequestRow.requested_at).desc())).first()


def _sentence(view: WaitingView) -> str:
    since = f"{view.since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    stands = f"is number {view.position}" if view.position else "waits"
    return (
        f"{view.lifecycle} {stands} in queue {view.queue} since {since}: {view.sentence}. "
        f"{view.unblocks[:1].upper()}{view.unblocks[1:]}".rstrip(" .")
        + "."
    )


def _of_lease(session: Session, row: LeaseRow) -> Explained:
    view = lease_view(session, row)
    what = ", ".join(f"{m.amounts.cores} core{'s' * (m.amounts.cores != 1)} on {m.device}" for m in view.members)
    until = f" until {_time(row.ended_at)}" if row.ended_at else ""
    told = f"; told to let go: {row.why or row.notice}" if row.noticed_at else ""
    by = f" by {_time(row.deadline_at)}" if row.noticed_at and row.deadline_at and not row.ended_at else ""
    late = "" if row.noticed_at else f"; {over_runtime(view)}" if view.over_runtime_seconds else ""
    sentence = (
        f"{view.lifecycle} {'held' if row.ended_at else 'holds'} lease {row.token} ({what}) in queue {row.queue} since "
        f"{_time(row.granted_at)}{until}, {row.state}{told}{by}{late}."
    )
    return Explained(lease=view, sentence=sentence)


def over_runtime(view: LeaseView) -> str:
    """Of a lease that is over its declared time."""
    follows = (
        "it is the first to let go, at a checkpoint, for who has waited long within its queue's quota"
        if view.preemptible
        else "it goes on, since it is not preemptible, but nobody waits for its end any more"
    )
    return (
        f"it runs {view.over_runtime_seconds:.0f} s longer than the max_runtime of {view.max_runtime_seconds:g} s that "
        f"was declared: {follows}"
    )


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
