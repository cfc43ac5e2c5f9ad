"""Rows as a model sees them."""

from abc import ABC, abstractmethod

from temporalio import activity

from everloop.contracts.job import JobRequest
from everloop.records import Champion, Prepared, Snapshot
from everloop.specs import LifecycleSpec


class PrepareRequest(JobRequest):
    spec: LifecycleSpec
    snapshot: Snapshot
    champion: Champion | None


class FeaturesActivities(ABC):
    @activity.defn(name="everloop.features.prepare")
    @abstractmethod
    async def prepare(self, request: PrepareRequest) -> Prepared: ...
