"""The graph, proven equal."""

from abc import ABC, abstractmethod

from temporalio import activity

from everloop.contracts.job import JobRequest
from everloop.records import Exported, Refitted, Snapshot
from everloop.specs import LifecycleSpec


class ExportRequest(JobRequest):
    spec: LifecycleSpec
    snapshot: Snapshot
    refitted: Refitted


class ExportActivities(ABC):
    @activity.defn(name="everloop.export.export")
    @abstractmethod
    async def export(self, request: ExportRequest) -> Exported: ...
