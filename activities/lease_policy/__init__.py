"""Who gets what: a pure function of integers. The same state gives the same decisions anywhere.

No clock, randomness, floats, sets in an order, or seconds of computing: every sort key ends in an id, and work is
bounded by fuel, the number of requests that are tried. A state that makes no sense raises nothing.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from activities.lease_policy.allocate import allocate
from activities.lease_policy.evict import evict
from activities.lease_policy.explain import explain
from activities.lease_policy.fold import apply
from activities.lease_policy.grow import grow
from activities.lease_policy.lapse import empty_the_drained, find_the_overdue, kill_the_overdue
from activities.lease_policy.pool import Pool
from activities.lease_policy.promises import keep
from activities.lease_policy.sentence import sentence, unblocks
from activities.lease_policy.shares import divide_all
from activities.lease_policy.state import (
    Decision,
    Policy,
    PoolState,
    Standing,
)
from activities.lease_policy.tree import counted
from activities.lease_policy.usage import decay, used_by

ROUNDS = 3
"""A reservation or a notice may open a way for others: at most so often all are asked in one decision."""
TRIAL_TOKENS = 1 << 62
"""Of grants while it is not known what the ledger calls them."""


def decide(state: PoolState, now_ms: int, policy: Policy, fuel: int) -> tuple[Decision, ...]:
    """What is to be done now, in the order in which it is to be done, and why everybody else waits.

    At most *fuel* requests are tried; one that asks for what was refused before is not. Asked again once all of it is
    done, it has nothing more to do.
    """
    with _nothing_collected():
        return _decide(state, now_ms, policy, fuel)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Python's collector looks through ten thousand requests again and again, and finds next to nothing to free."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _decide(state: PoolState, now_ms: int, policy: Policy, fuel: int) -> tuple[Decision, ...]:
    done: list[Decision] = []
    pool, rounds = None, 0
    while rounds < ROUNDS:
        pool = _once(state, now_ms, policy, fuel, pool)
        acts = _acts(pool)
        if not acts:
            break
        granted = tuple(pool.asking[name][0] for name in pool.grants)  # the pool knows who else waits
        state = apply(state._replace(waiting=granted), acts, now_ms, TRIAL_TOKENS + len(done))
        done += acts
        fuel = max(fuel - len(pool.grants), 0)
        rounds += 0 if pool.unsettled else 1  # there are fewer notices after each unsettled one
        if not (pool.reserving or pool.notices or pool.killed or pool.withdrawn or pool.grown):
            break
    return (*done, *(sorted(pool.reserved.values()) if pool else ()), *(explain(pool) if pool else ()))


def _once(state: PoolState, now_ms: int, policy: Policy, fuel: int, before: Pool | None) -> Pool:
    """The steps of gpu.md 2.4. Reservations are made where a request is refused, in `allocate`."""
    pool = Pool(state, now_ms, policy, fuel, before=before)
    decay(pool)
    divide_all(pool)
    find_the_overdue(pool)
    keep(pool)
    kill_the_overdue(pool)
    empty_the_drained(pool)
    if pool.unsettled:
        pool.leave_out_the_served()
        return pool
    allocate(pool)
    pool.leave_out_the_served()
    evict(pool)
    grow(pool)
    return pool


def _acts(pool: Pool) -> list[Decision]:
    return [*pool.usages, *pool.withdrawn, *pool.killed, *pool.grants.values(), *pool.resized, *pool.notices]


def standing(state: PoolState, now_ms: int, policy: Policy) -> tuple[Standing, ...]:
    """Each queue's quota, demand, share and use, parents before children, for people to see."""
    pool = Pool(state, now_ms, policy, 0)
    decay(pool)
    divide_all(pool)
    return tuple(
        Standing(
            queue=node.id,
            quota=counted(node.quota),
            demand=counted(node.demand),
            share=counted(node.share),
            allocated=counted(node.allocated),
            usage=counted(node.usage),
            scaled=node.scaled,
        )
        for node in pool.tree.nodes
    )


__all__ = ["apply", "decide", "sentence", "standing", "unblocks", "used_by"]
