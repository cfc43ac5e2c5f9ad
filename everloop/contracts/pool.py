"""A pool's steps, and an operator's orders."""

from abc import ABC, abstractmethod

from temporalio import activity

from everloop.contracts.proof import MemberOfLease
from everloop.orders import PoolOrdered, SignedPoolOrder
from everloop.records import Record


class PoolStepRequest(Record):
    pool: str
    inventory: tuple[str, ...] | None = None
    """Names of the Dask workers that are there now, when compute has reported them."""
    proven: tuple[MemberOfLease, ...] = ()
    """Members of which compute has said that nothing runs any more."""


class PoolRun(Record):
    """With what a pool continues as new while an inventory waits to be noted; else it is the pool's name alone."""

    pool: str
    inventory: tuple[str, ...]


class PoolStep(Record):
    """What a step did, and after how many seconds the pool must look again (None: only when woken)."""

    granted: int
    waiting: int
    next_wake_seconds: float | None
    unproven: tuple[MemberOfLease, ...] = ()
    """Members that are not free until compute has proven that nothing of them runs."""


class PoolActivities(ABC):
    @activity.defn(name="everloop.pool.order")
    @abstractmethod
    async def order(self, request: SignedPoolOrder) -> PoolOrdered: ...
