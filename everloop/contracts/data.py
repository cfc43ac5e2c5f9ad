"""A source's bytes at one moment, and whether they can be learned from."""

from abc import ABC, abstractmethod

from temporalio import activity

from everloop.contracts.job import JobRequest
from everloop.records import Snapshot, Validation
from everloop.specs import LifecycleSpec


class SnapshotRequest(JobRequest):
    spec: LifecycleSpec


class ValidateRequest(JobRequest):
    spec: LifecycleSpec
    snapshot: Snapshot


class DataActivities(ABC):
    @activity.defn(name="everloop.data.snapshot")
    @abstractmethod
    async def snapshot(self, request: SnapshotRequest) -> Snapshot: ...

    @activity.defn(name="everloop.data.validate")
    @abstractmethod
    async def validate(self, request: ValidateRequest) -> Validation: ...
