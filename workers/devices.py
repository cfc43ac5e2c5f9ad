"""What this machine can compute on. The only place that knows pynvml, CUDA or dask_cuda.

The GPU branch has not been run on hardware: it is written from the libraries' sources.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from everloop.settings import Settings


@dataclass(frozen=True)
class Device:
    """A slot: one Dask worker of this name, one job at a time."""

    name: str
    light: bool = False
    """Reserved for checks, so that a long training never keeps a monitor waiting."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the slot's process and its jobs see of the machine."""


class Devices(Protocol):
    """The devices of one host."""

    def slots(self) -> tuple[Device, ...]: ...

    def plugins(self, device: Device) -> list[Any]: ...


class CpuDevices:
    """Slots `cpu0` to `cpu<n-1>`. The last one is the light slot, unless it is the only one."""

    def __init__(self, slots: int) -> None:
        self._count = slots

    def slots(self) -> tuple[Device, ...]:
        last = self._count - 1
        return tuple(Device(f"cpu{index}", light=index == last > 0) for index in range(self._count))

    def plugins(self, device: Device) -> list[Any]:  # noqa: ARG002  # a CPU needs none
        return []


class NvmlDevices:
    """One slot `gpu-<uuid>` per NVIDIA GPU, and the last CPU slot for checks. Not run on hardware."""

    def __init__(self, uuids: tuple[str, ...]) -> None:
        self._uuids = uuids

    def slots(self) -> tuple[Device, ...]:
        gpus = (Device(f"gpu-{uuid}", environment={"CUDA_VISIBLE_DEVICES": f"GPU-{uuid}"}) for uuid in self._uuids)
        return (*gpus, Device("cpu0", light=True, environment={"CUDA_VISIBLE_DEVICES": ""}))

    def plugins(self, device: Device) -> list[Any]:
        if not device.name.startswith("gpu-"):
            return []
        from dask_cuda.plugins import CPUAffinity  # type: ignore[import-not-found]
        from dask_cuda.utils import get_cpu_affinity  # type: ignore[import-not-found]

        return [CPUAffinity(get_cpu_affinity(device.environment["CUDA_VISIBLE_DEVICES"]))]


def find(settings: Settings) -> Devices:
    """The GPUs where there are any, else `settings.slots` CPU slots. Nothing is ever simulated."""
    uuids = _gpu_uuids()
    return NvmlDevices(uuids) if uuids else CpuDevices(settings.slots)


def slot_names(settings: Settings) -> list[str]:
    """Names of this machine's slots, in order."""
    return [device.name for device in find(settings).slots()]


def light_slots(settings: Settings) -> list[str]:
    """Names of the slots that are reserved for checks."""
    return [device.name for device in find(settings).slots() if device.light]


def _gpu_uuids() -> tuple[str, ...]:
    try:
        import pynvml  # type: ignore[import-not-found]
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        # Temporal, Dask and the disk keep the name: `GPU-1a2b...` becomes `gpu-1a2b...` once.
        return tuple(str(pynvml.nvmlDeviceGetUUID(handle)).removeprefix("GPU-") for handle in handles)
    except pynvml.NVMLError:
        return ()
