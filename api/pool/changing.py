"""Orders: checked here as far as that goes, signed, and carried out by control."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool
from temporalio.common import WorkflowIDConflictPolicy

from activities import lease_queues, lease_rules
from api import problems
from api.dependencies import RPC_TIMEOUT, Parts, ask
from api.pool.answers import (
    Changed,
    CordonAsked,
    DrainAsked,
    Ordered,
    PolicyAsked,
    QueueAsked,
    RevokeAsked,
    UndrainAsked,
)
from api.pool.effects import tried
from api.pool.seen import lease_row, must_be_there
from everloop import names, orders, pool_rules, queues
from everloop.amounts import COUNTED, Counted
from everloop.errors import Invalid, NotFound
from everloop.orders import PoolOrder, PoolOrdered
from everloop.queues import Queue, amount

ORDER_LASTS = timedelta(minutes=10)
"""A signed order that was not carried out by then is void: nobody is surprised by it tomorrow."""


async def revoke(here: Parts, token: int, person: str, body: RevokeAsked) -> Ordered:
    pool = await run_in_threadpool(_pool_of, here, token)
    return await ordered(
        here,
        person,
        {
            "action": "revoke",
            "pool": pool,
            "token": token,
            "reason": body.reason,
            "grace_seconds": body.grace_seconds,
        },
    )


def _pool_of(here: Parts, token: int) -> str:
    with here.store.read() as session:
        return lease_row(session, token).pool


async def drain(here: Parts, pool: str, node: str, person: str, body: DrainAsked) -> Ordered:
    asked = {"action": "drain", "pool": pool, "node": node, "reason": body.reason, "grace_seconds": body.grace_seconds}
    return await ordered(here, person, asked)


async def cordon(here: Parts, pool: str, node: str, person: str, body: CordonAsked) -> Ordered:
    return await ordered(here, person, {"action": "cordon", "pool": pool, "node": node, "reason": body.reason})


async def undrain(here: Parts, pool: str, node: str, person: str, body: UndrainAsked) -> Ordered:
    return await ordered(here, person, {"action": "undrain", "pool": pool, "node": node, "reason": body.reason})


async def set_policy(here: Parts, pool: str, person: str, body: PolicyAsked) -> Ordered:
    """Raises `Invalid` for a rule that makes no sense, `NotFound`."""
    rules = pool_rules.read(body.model_dump(), lease_rules.DEFAULTS)
    if not rules:
        raise Invalid("nothing is to be changed", field="body", hint='for instance {"grace": "30s"}')
    await run_in_threadpool(_must_be_there, here, pool)
    return await ordered(here, person, {"action": "policy", "pool": pool, "rules": rules})


def _must_be_there(here: Parts, pool: str) -> None:
    with here.store.read() as session:
        must_be_there(session, pool)


async def change(here: Parts, pool: str, person: str, wanted: "Wanted", *, only_try: bool) -> Changed:
    """Replace the queue tree by what *wanted* makes of it, or only say what that would do. Raises `Invalid`."""
    answer, before, after = await run_in_threadpool(_tried, here, pool, wanted)
    if only_try or not answer.changes:
        return answer
    asked = {"action": "queues", "pool": pool, "queues": after, "before": orders.tree_digest(before)}
    await ordered(here, person, asked)
    return answer.model_copy(update={"made": True})


def _tried(here: Parts, pool: str, wanted: "Wanted") -> tuple[Changed, tuple[Queue, ...], tuple[Queue, ...]]:
    with here.store.read() as session:
        before = lease_queues.tree(session, pool)
        after = wanted.tree(session, pool, before)
        lease_queues.must_keep_those_in_use(session, pool, after)
        found = tried(session, pool, after)
    changes = told(before, after)
    return (
        Changed(
            made=False,
            changes=changes,
            effects=found.leases,
            grants=found.grants,
            waits=found.waits,
            digest=orders.tree_digest(after),
        ),
        before,
        after,
    )


class Wanted:
    """A tree as a file has it, or one queue's new fields."""

    def __init__(self, given: dict[str, Any] | None = None, name: str = "", asked: QueueAsked | None = None) -> None:
        self._given, self._name, self._asked = given, name, asked

    def tree(self, session: Session, pool: str, before: tuple[Queue, ...]) -> tuple[Queue, ...]:
        whole = lease_queues.whole(session, pool)
        if self._given is not None:
            return queues.check(queues.read(self._given), whole)
        assert self._asked is not None  # noqa: S101  # one of both is given
        return queues.check(_with(before, self._name, self._asked), whole)


def _with(before: tuple[Queue, ...], name: str, asked: QueueAsked) -> list[Queue]:
    """*before* with the queue as it is asked for."""
    queues.check_name(name)
    by_name = {queue.id: queue for queue in before}
    if asked.remove:
        if name not in by_name:
            raise NotFound(f"there is no queue {name}", field="queue", hint="`everloop queue list` shows what there is")
        if name == queues.DEFAULT:
            message = f"queue {name} cannot be removed: whoever names no queue waits in it"
            raise Invalid(message, field="queue", hint="weight 0 and quota 0 leave it only what nobody else wants")
        if any(queue.parent == name for queue in before):
            raise Invalid(f"queue {name} has queues below it", field="queue", hint="remove those first")
        return [queue for queue in before if queue.id != name]
    old = by_name.get(name, Queue(name))
    by_name[name] = Queue(
        id=name,
        parent=old.parent if asked.parent is None else asked.parent,
        quota=_resources(asked.quota, "quota", old.quota),
        limit=_resources(asked.limit, "limit", old.limit),
        weight=old.weight if asked.weight is None else queues.whole(asked.weight, "weight", 0, queues.MOST_WEIGHT),
        priority=old.priority if asked.priority is None else queues.whole(asked.priority, "priority", -1000, 1000),
    )
    return list(by_name.values())


def _resources(given: Any, place: str, old: Counted) -> Counted:  # noqa: ANN401  # as it stands in JSON
    return old if given is None else queues.resources(given, place, old)


def told(before: tuple[Queue, ...], after: tuple[Queue, ...]) -> list[str]:
    """What differs, per queue, in words."""
    old, new = {queue.id: queue for queue in before}, {queue.id: queue for queue in after}
    lines = [f"queue {name} is removed" for name in sorted(old.keys() - new.keys())]
    for queue in after:
        if queue.id not in old:
            lines.append(f"queue {queue.id} is added: {_about(queue)}")
            continue
        was = old[queue.id]
        fields = [
            f"{name} {_word(was, name)} -> {_word(queue, name)}"
            for name in ("parent", "quota", "limit", "weight", "priority")
            if getattr(was, name) != getattr(queue, name)
        ]
        lines += [f"queue {queue.id}: {', '.join(fields)}"] if fields else []
    return lines


def _about(queue: Queue) -> str:
    parent = f"below {queue.parent}, " if queue.parent else ""
    return f"{parent}quota {_word(queue, 'quota')}, limit {_word(queue, 'limit')}, weight {queue.weight}"


def _word(queue: Queue, name: str) -> str:
    value = getattr(queue, name)
    if not isinstance(value, Counted):
        return str(value) if value != "" else "the pool"
    return " and ".join(amount(each, getattr(value, each)) for each in shown_of(value))


def shown_of(value: Counted) -> list[str]:
    """The resources worth a word: GPUs only where there is something to say of them."""
    return [name for name in COUNTED if name == "cores" or getattr(value, name) > 0]


async def ordered(here: Parts, person: str, asked: dict[str, Any]) -> Ordered:
    """Sign the order, and wait until it is carried out. Raises `Invalid` for one that is none."""
    now = datetime.now(UTC)
    try:
        order = PoolOrder(**asked, person=person, ordered_at=now, expires_at=now + ORDER_LASTS)
    except pydantic.ValidationError as error:  # a pool without a name, or with one of kilobytes
        raise problems.invalid(error, Invalid) from None
    done: PoolOrdered = await ask(_carried_out(here, order))
    return Ordered(done=done.done, tokens=list(done.tokens))


async def _carried_out(here: Parts, order: PoolOrder) -> PoolOrdered:
    handle = await here.temporal.start_workflow(
        names.POOL_ORDER,
        orders.sign(here.signer, order),
        id=names.pool_order_id(order.pool, uuid.uuid4().hex),
        task_queue=names.CONTROL,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
        result_type=PoolOrdered,
        execution_timeout=ORDER_LASTS,
        static_summary=f"{order.person}: {order.action}"[:200],
        rpc_timeout=RPC_TIMEOUT,
    )
    done: PoolOrdered = await handle.result()
    return done
