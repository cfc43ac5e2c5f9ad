"""Leases: asked for, offered, taken and given back."""

from abc import ABC, abstractmethod
from datetime import datetime
from typing import Literal

from pydantic import Field
from temporalio import activity

from everloop import names
from everloop.amounts import NO_LIMIT
from everloop.contracts.pool import PoolStep, PoolStepRequest
from everloop.contracts.short import Short
from everloop.records import Record, Slot
from everloop.resources import ONE, WHOLE_GPU
from everloop.specs import LifecycleSpec


class Wants(Record):
    """What a holder asks for. All defaults: one core, as before there were amounts."""

    queue: Short = "default"
    priority: int = Field(default=50, ge=0, le=1000)
    preemptible: bool = True
    cores: int | None = Field(default=None, ge=1, le=1 << 20)
    """Of each member, as the three below. None: as many as the device gives to who does not say it."""
    memory_mib: int = Field(default=0, ge=0, le=1 << 30)
    """0: its cores' part of the device."""
    milli_gpu: int | None = Field(default=None, ge=0, le=1 << 20)
    """None: a whole GPU where the pool has any."""
    gpu_mib: int = Field(default=0, ge=0, le=1 << 30)
    members: int = Field(default=1, ge=1, le=1024)
    members_most: int = Field(default=0, ge=0, le=1024)
    """Of an elastic lease: as many more as there is room for when it is granted. 0: exactly `members`."""
    isolation: Short = ""
    """`isolation.Isolation`; empty: any."""
    max_runtime_s: int = Field(default=0, ge=0, le=1 << 40)
    """Declared by its owner; 0: not."""
    stage: Short = ""
    model: Short = ""
    budget_core_ms: int = Field(default=NO_LIMIT, ge=NO_LIMIT, le=1 << 62)
    """Of the holder, as the two below: what all its leases may spend together. -1: as much as it likes."""
    budget_gpu_ms: int = Field(default=NO_LIMIT, ge=NO_LIMIT, le=1 << 62)
    budget_micros: int = Field(default=NO_LIMIT, ge=NO_LIMIT, le=1 << 62)

    @classmethod
    def of(cls, spec: LifecycleSpec, stage: str) -> "Wants":
        """What a lifecycle's *stage* asks for."""
        amounts = spec.resources.of(stage)
        members = amounts.members or ONE
        return cls(
            queue=spec.queue,
            priority=spec.priority,
            preemptible=spec.preemptible,
            cores=amounts.cpus,
            memory_mib=amounts.memory or 0,
            milli_gpu=None if amounts.gpus is None else round(amounts.gpus * WHOLE_GPU),
            gpu_mib=amounts.gpu_memory or 0,
            isolation=amounts.isolation or "",
            members=members.min,
            members_most=members.max if members.max > members.min else 0,
            max_runtime_s=int(spec.max_runtime.total_seconds()) if spec.max_runtime else 0,
            stage=stage,
            model=spec.model,
            **(spec.budget.bounds() if spec.budget else {}),
        )

    @property
    def amounts(self) -> tuple[int | str | None, ...]:
        """What a lease must have so that it will do for this."""
        return (
            self.cores,
            self.memory_mib,
            self.milli_gpu,
            self.gpu_mib,
            self.members,
            self.members_most,
            self.isolation,
        )


class LeaseRequest(Wants):
    """What the run that asks wants to lease. `id` is the idempotency key: asked again, it waits in its old place."""

    id: str
    kind: Literal["batch", "check"] = "batch"
    """A check uses the light slot, where there is one: it is reserved for checks."""
    pool: str = names.DEFAULT_POOL
    again: bool = False
    """Asked before, and still waiting: a Reset may have left the request with the run before, or what was granted for
    it was taken for others."""


class LeaseAnswer(Record):
    """The request is in the queue. `reason`: why it had left it before, where that is worth a word."""

    reason: str = ""


class Offer(Record):
    """A grant that waits for its holder to accept. The signal `lease_offered` carries it."""

    request_id: Short
    device: Short
    token: int = Field(ge=0, lt=1 << 63)


class LeaseNotice(Record):
    """The holder is asked to write a checkpoint and let go. The signal `lease_noticed` carries it."""

    token: int = Field(ge=0, lt=1 << 63)
    reason: str = Field(default="", max_length=2000)
    """In words; empty: the notice is taken back."""
    deadline: datetime | None = None
    """Then the lease is fenced and its processes are ended."""


class AcceptRequest(Record):
    """A lease to take or to give back. Older workers give back without naming the request."""

    request_id: str
    token: int


class CommitRequest(Record):
    """A result pointer, written in the transaction that checks the token."""

    slot: Slot
    stage: str
    digest: str


class LeaseActivities(ABC):
    @activity.defn(name="everloop.lease.request")
    @abstractmethod
    async def request(self, request: LeaseRequest) -> LeaseAnswer: ...

    @activity.defn(name="everloop.lease.accept")
    @abstractmethod
    async def accept(self, request: AcceptRequest) -> Slot: ...

    @activity.defn(name="everloop.lease.adopt")
    @abstractmethod
    async def adopt(self, request: AcceptRequest) -> Slot: ...

    @activity.defn(name="everloop.lease.commit")
    @abstractmethod
    async def commit(self, request: CommitRequest) -> None: ...

    @activity.defn(name="everloop.lease.release")
    @abstractmethod
    async def release(self, request: AcceptRequest) -> None: ...

    @activity.defn(name="everloop.lease.cancel")
    @abstractmethod
    async def cancel(self, request_id: str) -> None: ...

    @activity.defn(name="everloop.lease.pool_step")
    @abstractmethod
    async def pool_step(self, request: PoolStepRequest) -> PoolStep: ...
