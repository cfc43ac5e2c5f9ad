"""What this machine can compute on. The only place that knows pynvml, CUDA or dask_cuda.

The GPU branch has not been run on hardware: it is written from the libraries' sources.
"""

import os
from dataclasses import dataclass, field
from typing import Any, Protocol

from activities.jobs import memory
from everloop.amounts import AMOUNTS
from everloop.settings import DEFAULT_SLOTS, Settings

SAID = (*AMOUNTS, "job_cores")
"""What a device's Dask worker says of it, as resources."""
STACK_CORES = 1
"""Of a machine with more than two, for serve, Temporal and the other processes of the stack."""
SMALL = 2
"""A machine with so many cores shares them: two jobs that keep both busy were slower than one core each."""
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


class CpuDevices:
    """Devices `cpu0` to `cpu<n-1>`. The last one is the light slot, unless it is the only one."""

    def __init__(self, cores: tuple[int, ...], memory_mib: int = 0, *, job_cores: int = 1) -> None:
        """*cores*: of each. *memory_mib*: of all together."""
        self._cores = cores
        self._memory_mib = memory_mib
        self._job_cores = job_cores

    def slots(self) -> tuple[Device, ...]:
        last, total = len(self._cores) - 1, sum(self._cores)
        return tuple(
            Device(
                f"cpu{index}",
                light=index == last > 0,
                cores=cores,
                memory_mib=self._memory_mib * cores // total,
                job_cores=min(self._job_cores, cores),
            )
            for index, cores in enumerate(self._cores)
        )

    def plugins(self, device: Device) -> list[Any]:  # noqa: ARG002  # a CPU needs none
        return []


class NvmlDevices:
    """One device `gpu-<uuid>` per NVIDIA GPU, and the last CPU slot for checks. Not run on hardware."""

    def __init__(self, gpus: tuple[tuple[str, int], ...], cores: int = 0, memory_mib: int = 0) -> None:
        """*gpus*: UUID and MiB of each. *cores*, *memory_mib*: of the machine, for all of them and the checks."""
        self._gpus = gpus
        self._cores = cores
        self._memory_mib = memory_mib

    def slots(self) -> tuple[Device, ...]:
        cores = max(1, (self._cores - 1) // len(self._gpus))
        part = self._memory_mib // (cores * len(self._gpus) + 1)
        gpus = (
            Device(
                f"gpu-{uuid}",
                environment={"CUDA_VISIBLE_DEVICES": f"GPU-{uuid}"},
                cores=cores,
                memory_mib=part * cores,
                milli_gpu=WHOLE_GPU,
                gpu_mib=mib,
                job_cores=cores,
            )
            for uuid, mib in self._gpus
        )
        light = Device("cpu0", light=True, environment={"CUDA_VISIBLE_DEVICES": ""}, memory_mib=part)
        return (*gpus, light)

    def plugins(self, device: Device) -> list[Any]:
        if not device.name.startswith("gpu-"):
            return []
        from dask_cuda.plugins import CPUAffinity  # type: ignore[import-not-found]
        from dask_cuda.utils import get_cpu_affinity  # type: ignore[import-not-found]

        return [CPUAffinity(get_cpu_affinity(device.environment["CUDA_VISIBLE_DEVICES"]))]


def find(settings: Settings) -> Devices:
    """The GPUs where there are any, else the CPU. Nothing is ever simulated."""
    gpus = _gpus()
    if gpus:
        return NvmlDevices(gpus, len(os.sched_getaffinity(0)) - STACK_CORES, _for_jobs())
    cores = shares(settings, len(os.sched_getaffinity(0)))
    job_memory = settings.job_memory_mib * (sum(cores) // settings.slot_cores)
    return CpuDevices(cores, job_memory or _for_jobs(), job_cores=settings.slot_cores)


def shares(settings: Settings, cores: int) -> tuple[int, ...]:
    """Cores of each device of a machine with *cores*: as the settings say, or one for checks and all that is left."""
    if settings.slots or settings.slot_cores > 1:
        return (settings.slot_cores,) * (settings.slots or DEFAULT_SLOTS)
    if cores <= SMALL:
        return (1,) * DEFAULT_SLOTS
    return (max(1, cores - STACK_CORES - 1), 1)


def slot_names(settings: Settings) -> list[str]:
    """Names of this machine's devices, in order."""
    return [device.name for device in find(settings).slots()]


def light_slots(settings: Settings) -> list[str]:
    """Names of the devices that are reserved for checks."""
    return [device.name for device in find(settings).slots() if device.light]


def _for_jobs() -> int:
    """MiB of this machine that jobs may use."""
    return max(memory.LEAST_BYTES * DEFAULT_SLOTS, memory.machine() - memory.RESERVED_BYTES) // MIB


def _gpus() -> tuple[tuple[str, int], ...]:
    try:
        import pynvml  # type: ignore[import-not-found]
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple((_uuid(pynvml, handle), _usable_mib(pynvml, handle)) for handle in handles)
    except pynvml.NVMLError:
        return ()


def _uuid(pynvml: Any, handle: Any) -> str:  # noqa: ANN401
    """Temporal, Dask and the disk keep the name: `GPU-1a2b...` becomes `gpu-1a2b...` once."""
    return str(pynvml.nvmlDeviceGetUUID(handle)).removeprefix("GPU-")


RESERVED_GPU_MIB = 512
"""Of each GPU, for the driver and what each process has there before its first tensor."""


def _usable_mib(pynvml: Any, handle: Any) -> int:  # noqa: ANN401
    return max(0, int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) // MIB - RESERVED_GPU_MIB)
