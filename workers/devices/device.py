"""A device: one Dask worker's part of a machine."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from everloop.amounts import AMOUNTS

SAID = (*AMOUNTS, "job_cores")
"""What a device's Dask worker says of it, as resources."""
NODE = "everloop_node"
"""Under which it tells its host's name."""
WHOLE_GPU = 1000
MIB = 1 << 20


@dataclass(frozen=True)
class Device:
    """One Dask worker of this name, and what jobs may use there at one time."""

    name: str
    light: bool = False
    """Reserved for checks, so that a long training never keeps a monitor waiting."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the device's process and its jobs see of the machine."""
    cores: int = 1
    memory_mib: int = 0
    milli_gpu: int = 0
    gpu_mib: int = 0
    job_cores: int = 1
    """Of a job that asks for none."""

    @property
    def threads(self) -> int:
        """Of its Dask worker. A thread waits for a job; the one before on the same cores may still be ending."""
        return 2 * self.cores + 2

    @property
    def amounts(self) -> dict[str, int]:
        """What it has, as its Dask worker says it."""
        return {name: getattr(self, name) for name in SAID}


class Devices(Protocol):
    """The devices of one host."""

    def slots(self) -> tuple[Device, ...]: ...

    def plugins(self, device: Device) -> list[Any]: ...
