"""Challenger against champion."""

from abc import ABC, abstractmethod

from temporalio import activity

from everloop.contracts.job import JobRequest
from everloop.records import Champion, Evaluation, Prepared, Snapshot, Trained
from everloop.specs import LifecycleSpec


class EvaluateRequest(JobRequest):
    spec: LifecycleSpec
    snapshot: Snapshot
    prepared: Prepared
    trained: Trained
    champion: Champion | None
    certainty: float = 0.0
    """How sure the challenger's gain must be, by a paired test. 0: any gain will do."""


class EvaluationActivities(ABC):
    @activity.defn(name="everloop.evaluation.evaluate")
    @abstractmethod
    async def evaluate(self, request: EvaluateRequest) -> Evaluation: ...
