"""What an operator orders of a pool, carried out in the ledger: queues, leases, nodes, budgets, prices, policy."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from temporalio import activity

from activities import lease_budgets, lease_queues, lease_rules
from activities import lease_ledger as ledger
from activities.caller import caller
from activities.lease import LeaseOnControl
from activities.lease_ledger.rows import changed
from activities.lease_time import in_ms
from everloop import names, orders, queues, signing
from everloop.budgets import Price
from everloop.contracts import PoolActivities
from everloop.errors import Conflict
from everloop.orders import PoolOrder, PoolOrdered, SignedPoolOrder
from everloop.store import Store


class PoolOnControl(PoolActivities):
    """Runs on the control worker, whose the ledger is."""

    def __init__(self, store: Store, lease: LeaseOnControl, keys_dir: Path) -> None:
        self._store, self._lease, self._keys_dir = store, lease, keys_dir

    @activity.defn(name="everloop.pool.order")
    async def order(self, request: SignedPoolOrder) -> PoolOrdered:
        """Carry the order out. Safe to run twice. Raises `BadSignature`, `NotFound`, `Conflict`, `Invalid`."""
        caller(names.POOL_ORDER)
        keys = await asyncio.to_thread(signing.present_key, self._keys_dir)
        told = orders.verify(request, keys, datetime.now(UTC))
        done = await asyncio.to_thread(_DO[told.action], self._store, told)
        await self._lease.wake(told.pool)
        return done


def _queues(store: Store, order: PoolOrder) -> PoolOrdered:
    """The tree is replaced, unless another one than the person has seen stands there by now."""
    with store.write() as session:
        changed(session, order.pool)  # first: nothing is granted meanwhile
        before = lease_queues.tree(session, order.pool)
        after = queues.check(order.queues, lease_queues.whole(session, order.pool))
        if before == after:
            return PoolOrdered(done="the queues are as they were")
        if order.before not in ("", orders.tree_digest(before)):
            raise Conflict(
                f"the queues of pool {order.pool} were changed by somebody else meanwhile",
                field="queues",
                hint="look at them again: `everloop queue list`",
            )
        lease_queues.replace(session, order.pool, after, order.person)
    return PoolOrdered(done=f"the queues of pool {order.pool} are changed")


def _revoke(store: Store, order: PoolOrder) -> PoolOrdered:
    grace = timedelta(seconds=order.grace_seconds)
    ledger.revoke(store, order.token, by=order.person, reason=order.reason, grace=grace)
    return PoolOrdered(
        done=f"lease {order.token} is told to let go within {order.grace_seconds} s", tokens=(order.token,)
    )


def _drain(store: Store, order: PoolOrder) -> PoolOrdered:
    deadline = order.ordered_at + timedelta(seconds=order.grace_seconds)
    devices = ledger.drain(store, order.pool, order.node, deadline, by=order.person, reason=order.reason)
    tokens = sorted({token for device in devices for token in ledger.others_on(store, order.pool, device)})
    holders = f"{len(tokens)} lease{'s' * (len(tokens) != 1)} on it told to let go within {order.grace_seconds} s"
    told = f"{', '.join(devices)} get{'s' * (len(devices) == 1)} no new leases"
    return PoolOrdered(done=f"{told}; {holders if tokens else 'nothing is held on it'}", tokens=tuple(tokens))


def _cordon(store: Store, order: PoolOrder) -> PoolOrdered:
    devices = ledger.cordon(store, order.pool, order.node, by=order.person, reason=order.reason)
    told = f"{', '.join(devices)} get{'s' * (len(devices) == 1)} no new leases"
    return PoolOrdered(done=f"{told}; what is held there goes on")


def _undrain(store: Store, order: PoolOrder) -> PoolOrdered:
    devices = ledger.undrain(store, order.pool, order.node)
    return PoolOrdered(done=f"{', '.join(devices)} get{'s' * (len(devices) == 1)} leases again")


def _budget(store: Store, order: PoolOrder) -> PoolOrdered:
    at_ms = in_ms(order.ordered_at)
    with store.write() as session:
        changed(session, order.pool)
        done = lease_budgets.change(
            session,
            order.pool,
            order.scope,
            order.name,
            order.bounds,
            at_ms,
            person=order.person,
            restart=order.restart,
        )
    return PoolOrdered(done=done)


def _prices(store: Store, order: PoolOrder) -> PoolOrdered:
    price = Price(in_ms(order.ordered_at), order.currency, order.core_micros, order.gpu_micros)
    with store.write() as session:
        return PoolOrdered(done=lease_budgets.set_prices(session, order.pool, price, person=order.person))


def _policy(store: Store, order: PoolOrder) -> PoolOrdered:
    with store.write() as session:
        changed(session, order.pool)  # what was decided by the policy before is not committed
        return PoolOrdered(done=lease_rules.change(session, order.pool, order.rules, person=order.person))


_DO: dict[str, Callable[[Store, PoolOrder], PoolOrdered]] = {
    "queues": _queues,
    "revoke": _revoke,
    "drain": _drain,
    "cordon": _cordon,
    "undrain": _undrain,
    "budget": _budget,
    "prices": _prices,
    "policy": _policy,
}
