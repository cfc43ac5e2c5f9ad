"""What a job holds of the pool."""

from typing import Any

from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from everloop.records.record import Record


class Member(Record):
    """A part of a lease: what one process of a job may use."""

    rank: int = 0
    device: str
    """Name of a Dask worker."""
    cores: PositiveInt = 1
    """Threads."""
    memory_mib: NonNegativeInt = 0
    """Of the process and all below it; 0: no limit of its own."""
    milli_gpu: NonNegativeInt = 0
    """Thousandths of a GPU."""
    gpu_mib: NonNegativeInt = 0


class Slot(Record):
    """A device that a lease grants: the name of a Dask worker, and the fence token of the grant."""

    device: str
    token: int
    holder: str
    """`<workflow id>/<run id>` of who holds the lease."""
    members: tuple[Member, ...] = ()
    """What may be used, and where. None: of a grant of before, one core of the device."""


class Lease(Record):
    """What a job holds: devices, and the fence token of the grant. One member for now."""

    token: int
    holder: str
    """`<workflow id>/<run id>` of who holds the lease."""
    members: tuple[Member, ...]

    @model_validator(mode="before")
    @classmethod
    def _of_a_slot(cls, value: Any) -> Any:  # noqa: ANN401
        """A slot of stored histories is a lease of one member."""
        if isinstance(value, Slot):
            value = value.model_dump()
        if isinstance(value, dict) and not value.get("members") and "device" in value:
            return {**value, "members": ({"device": value["device"]},)}
        return value

    @field_validator("members")
    @classmethod
    def _some(cls, members: tuple[Member, ...]) -> tuple[Member, ...]:
        if not members:
            raise ValueError("a lease has a member at least")
        return members
