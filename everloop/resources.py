"""What a lifecycle asks for from its pool: amounts for each stage, its queue, and its rights there.

Everything has a default: a spec that says nothing is served as before there were queues.
"""

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from everloop import queues
from everloop.budgets import HOUR_MS, MICRO
from everloop.errors import Invalid
from everloop.isolation import Isolation, refused

UNITS = {"": 1, "MiB": 1, "GiB": 1 << 10, "TiB": 1 << 20}
AMOUNT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(MiB|GiB|TiB|)")
MOST_MIB = 1 << 30
WHOLE_GPU = 1000
"""In thousandths."""


def mebibytes(value: Any) -> Any:  # noqa: ANN401  # what a person wrote
    """MiB of `8GiB`, `512 MiB` or a number of MiB. Raises `ValueError`."""
    found = AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        if isinstance(value, str):
            raise ValueError(f"{value[:40]!r} is no amount of memory, such as 8GiB or 512MiB")
        return value
    return int(float(found[1]) * UNITS[found[2]])


Mebibytes = Annotated[int, BeforeValidator(mebibytes), Field(ge=1, le=MOST_MIB)]
JobStage = Literal["snapshot", "validate", "prepare", "train", "evaluate", "refit", "export"]


MOST_MEMBERS = 256
GANG_STAGES: tuple[JobStage, ...] = ("train", "refit")
"""Stages that learn: `members` for every stage is for them."""
SHARED_STAGES: tuple[JobStage, ...] = ("prepare",)
"""Stages whose rows several processes may share among them, where the stage itself says so."""


class Members(BaseModel):
    """How many processes train together. `members: 2` in the spec is `{min: 2, max: 2}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: Annotated[int, Field(ge=1, le=MOST_MEMBERS)] = 1
    """With fewer it does not begin."""
    max: Annotated[int, Field(ge=1, le=MOST_MEMBERS)]

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:  # noqa: ANN401  # what a person wrote
        return {"min": value, "max": value} if type(value) is int else value

    @model_validator(mode="after")
    def _ordered(self) -> "Members":
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is more than max, which is {self.max}")
        return self


class Amounts(BaseModel):
    """Of one job. What is left out: as many cores as the device gives to who does not ask, and their memory."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cpus: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Cores; the job runs as many threads."""
    memory: Mebibytes | None = None
    """MiB, or with a unit: 8GiB. A job that holds more is ended."""
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of one GPU: 1, or a part of it. Left out: a whole one where the pool has any."""
    gpu_memory: Mebibytes | None = None
    """MiB of the GPU, or with a unit. Left out: the part of it that `gpus` is."""
    isolation: Isolation | None = None
    """How far it is kept apart from others on its GPU, at least: E0 and E1 are what every part has, E4 is a MIG slice
    of its own."""
    members: Members | None = None
    """Processes that train together, each with these amounts; a job that says nothing is one process."""

    @field_validator("isolation", mode="before")
    @classmethod
    def _verified(cls, level: Any) -> Any:  # noqa: ANN401  # what a person wrote
        if why := refused(str(level)):
            raise ValueError(why)
        return level


class Budget(BaseModel):
    """What all leases of one lifecycle may spend together. When it is spent the lifecycle waits until it is raised."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    core_hours: Annotated[float, Field(ge=0, le=1e9)] | None = None
    gpu_hours: Annotated[float, Field(ge=0, le=1e9)] | None = None
    money: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """In the currency of the pool's price list."""

    def bounds(self) -> dict[str, int]:
        """As a request for a lease says it."""
        said = {
            "budget_core_ms": (self.core_hours, HOUR_MS),
            "budget_gpu_ms": (self.gpu_hours, HOUR_MS * 1000),
            "budget_micros": (self.money, MICRO),
        }
        return {name: round(value * unit) for name, (value, unit) in said.items() if value is not None}


class Resources(Amounts):
    """For every stage; `stages` says what some of them ask for instead."""

    stages: dict[JobStage, Amounts] = {}

    @field_validator("stages")
    @classmethod
    def _gangs_train(cls, stages: dict[JobStage, Amounts]) -> dict[JobStage, Amounts]:
        for name, amounts in stages.items():
            if amounts.members is None or amounts.members.max == 1 or name in GANG_STAGES:
                continue
            if name not in SHARED_STAGES:
                may = ", ".join((*SHARED_STAGES, *GANG_STAGES))
                raise ValueError(f"{name}.members: this stage is one process; {may} may be more")
            if amounts.members.min < amounts.members.max:
                raise ValueError(
                    f"{name}.members: one number, {amounts.members.min} or {amounts.members.max}: "
                    "with other members it would begin again"
                )
        return stages

    @model_validator(mode="after")
    def _whole_gpus_for_gangs(self) -> "Resources":
        for amounts in map(self.of, GANG_STAGES):
            if amounts.members and amounts.members.max > 1 and 0 < (amounts.gpus or 0) < 1:
                raise ValueError("gpus: processes that train together take whole GPUs each, or none")
        return self

    def of(self, stage: str) -> Amounts:
        """What *stage* asks for: its own words before those for all, whose `members` are for the stages that learn."""
        own = next((amounts for name, amounts in self.stages.items() if name == stage), Amounts())
        said = {name: getattr(self, name) for name in Amounts.model_fields}
        said |= {name: getattr(own, name) for name in Amounts.model_fields if getattr(own, name) is not None}
        if stage not in GANG_STAGES:
            said["members"] = own.members
        return Amounts.model_construct(**said)

    @property
    def gang(self) -> bool:
        """Do several processes train together, in any stage?"""
        return any((self.of(stage).members or ONE).max > 1 for stage in GANG_STAGES)


ONE = Members(min=1, max=1)


def _queue(name: str) -> str:
    try:
        queues.check_name(name)
    except Invalid as error:
        raise ValueError(f"{name[:80]!r} cannot be a queue's name: {error.hint}") from None
    return name


Queue = Annotated[str, AfterValidator(_queue)]
Priority = Annotated[int, Field(ge=0, le=1000)]
"""Within a queue: 50 for batch work, 75 for people who wait, 100 for what must not wait."""
MaxRuntime = Annotated[timedelta, Field(ge=timedelta(seconds=1), le=timedelta(days=366))]
