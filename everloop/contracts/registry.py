"""Versions, the champion, and the evidence for a gate."""

from abc import ABC, abstractmethod

from temporalio import activity

from everloop.records import Champion, Evaluation, Evidence, Exported, Record, Refitted, Slot, Snapshot, Version
from everloop.specs import LifecycleSpec


class ChampionRequest(Record):
    project: str
    model: str


class ChampionAnswer(Record):
    champion: Champion | None


class RegisterRequest(Record):
    spec: LifecycleSpec
    slot: Slot
    """Of the lease under which the bytes were made, given back or not."""
    snapshot: Snapshot
    evaluation: Evaluation
    refitted: Refitted
    exported: Exported


class EvidenceRequest(Record):
    version: Version
    submitted_by: str
    trigger: str


class EvidenceAnswer(Record):
    """What the gate opens with: evidence, its digest, and the keys that may sign (id to base64)."""

    evidence: Evidence
    digest: str
    """SHA-256 of `text`."""
    keys: dict[str, str]
    text: str = ""
    """The evidence's JSON: the bytes that the digest is over."""


class RegistryActivities(ABC):
    @activity.defn(name="everloop.registry.champion")
    @abstractmethod
    async def champion(self, request: ChampionRequest) -> ChampionAnswer: ...

    @activity.defn(name="everloop.registry.register")
    @abstractmethod
    async def register(self, request: RegisterRequest) -> Version: ...

    @activity.defn(name="everloop.registry.evidence")
    @abstractmethod
    async def evidence(self, request: EvidenceRequest) -> EvidenceAnswer: ...
