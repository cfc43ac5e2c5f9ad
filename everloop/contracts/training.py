"""Learning, and learning again from all rows."""

from abc import ABC, abstractmethod

from temporalio import activity

from everloop.contracts.job import JobRequest
from everloop.records import Code, Prepared, Refitted, Snapshot, Trained
from everloop.specs import LifecycleSpec
from everloop.trials import Searched


class TrainRequest(JobRequest):
    spec: LifecycleSpec
    prepared: Prepared
    snapshot: Snapshot | None = None
    """For trainers that look at raw columns. None: asked by a workflow that knew none."""
    code: Code | None = None
    """The job runs with this user's code and what it requires."""
    searched: Searched | None = None
    """What a search found: its best is learned. None: what the spec says is."""


class RefitRequest(JobRequest):
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared
    trained: Trained
    code: Code | None = None
    """As in `TrainRequest`."""


class TrainingActivities(ABC):
    @activity.defn(name="everloop.training.train")
    @abstractmethod
    async def train(self, request: TrainRequest) -> Trained: ...

    @activity.defn(name="everloop.training.refit")
    @abstractmethod
    async def refit(self, request: RefitRequest) -> Refitted: ...
