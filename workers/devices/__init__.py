"""What this machine can compute on. The only place that knows NVML and dask_cuda.

`CpuDevices` cores alone, `NvmlDevices` NVIDIA's cards and MIG slices, `SimDevices` GPUs that are not there.
"""

import os
from dataclasses import replace

from activities.jobs import memory
from everloop import isolation
from everloop.errors import Invalid
from everloop.settings import DEFAULT_SLOTS, Settings
from workers.devices import nvml
from workers.devices.cpu import CpuDevices
from workers.devices.device import MIB, NODE, SAID, WHOLE_GPU, Device, Devices
from workers.devices.nvml import Gpu, NvmlDevices
from workers.devices.sim import SimDevices

STACK_CORES = 1
"""Of a machine with more than two, for serve, Temporal and the other processes of the stack."""
SMALL = 2
"""A machine with so many cores shares them: two jobs that keep both busy were slower than one core each."""

__all__ = ["NODE", "SAID", "WHOLE_GPU", "CpuDevices", "Device", "Devices", "Gpu", "NvmlDevices", "SimDevices", "find"]


def find(settings: Settings) -> Devices:
    """The GPUs where there are any, else the CPU, unless the settings name a kind. Nothing is simulated by itself."""
    if settings.devices.startswith("sim"):
        return SimDevices(settings.devices, settings.slot_cores, _for_jobs())
    gpus = () if settings.devices == "cpu" else nvml.found()
    if gpus:
        return NvmlDevices(gpus, len(os.sched_getaffinity(0)) - STACK_CORES, _for_jobs())
    if settings.devices == "nvml":
        hint = "without a driver: EVERLOOP_DEVICES=auto"
        raise Invalid("EVERLOOP_DEVICES=nvml, and NVML finds no GPU here", field="EVERLOOP_DEVICES", hint=hint)
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


def slots(settings: Settings) -> tuple[Device, ...]:
    """Devices of this host, in order. Beside other hosts' they need names of their own, which UUIDs are."""
    return tuple(_of_node(device, settings.node) for device in find(settings).slots())


def _of_node(device: Device, node: str) -> Device:
    if not node or device.name.startswith((isolation.GPU, isolation.MIG)):
        return device
    return replace(device, name=f"{device.name}-{node}")


def slot_names(settings: Settings) -> list[str]:
    """Names of this machine's devices, in order."""
    return [device.name for device in slots(settings)]


def light_slots(settings: Settings) -> list[str]:
    """Names of the devices that are reserved for checks."""
    return [device.name for device in slots(settings) if device.light]


def _for_jobs() -> int:
    """MiB of this machine that jobs may use."""
    return max(memory.LEAST_BYTES * DEFAULT_SLOTS, memory.machine() - memory.RESERVED_BYTES) // MIB
