"""Results of an earlier lifecycle that are kept."""

from abc import ABC, abstractmethod
from typing import Any

from temporalio import activity

from everloop.records import Record
from everloop.specs import Stage


class Fork(Record):
    """An earlier lifecycle whose results are kept, up to but not including *stage*."""

    lifecycle: str
    run_id: str
    stage: Stage


class KeptRequest(Record):
    """Which result of an earlier lifecycle is asked for, and the question that it must be the answer to."""

    lifecycle: str
    run_id: str
    stage: Stage
    question: dict[str, Any]
    """The stage's request as JSON; its slot does not count."""


class ForkActivities(ABC):
    @activity.defn(name="everloop.lifecycle.kept")
    @abstractmethod
    async def kept(self, request: KeptRequest) -> dict[str, Any]: ...
