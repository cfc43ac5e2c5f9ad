"""Whether anything still runs of a lease that was taken away."""

from abc import ABC, abstractmethod

from temporalio import activity

from everloop.records import Record


class MemberOfLease(Record):
    """A part of a lease that was taken away: does anything of it still run?"""

    token: int
    rank: int
    device: str


class ProveRequest(Record):
    """Members on devices that are there."""

    members: tuple[MemberOfLease, ...]


class ProveAnswer(Record):
    """Those of which nothing runs any more."""

    dead: tuple[MemberOfLease, ...]


class ProofActivities(ABC):
    """On compute's queue: only there the devices can be asked."""

    @activity.defn(name="everloop.lease.prove")
    @abstractmethod
    async def prove(self, request: ProveRequest) -> ProveAnswer: ...
