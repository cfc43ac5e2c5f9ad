"""NVIDIA's cards as NVML tells them, by UUID: their order may change between two starts of the machine.

Run over a library that only answers as NVML does (tests/nvml), not on hardware.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from everloop import isolation
from workers.devices.device import MIB, WHOLE_GPU, Device

log = logging.getLogger(__name__)

RESERVED_GPU_MIB = 512
"""Of each GPU, for the driver and what each process has there before its first tensor."""


@dataclass(frozen=True)
class Gpu:
    """A card, or a MIG slice of one."""

    uuid: str
    """As NVML says it: `GPU-1a2b...`, `MIG-...`."""
    mib: int
    """That jobs may use."""
    milli_gpu: int = WHOLE_GPU
    """Of a slice, its part of the card's memory."""
    model: str = ""

    @property
    def device(self) -> str:
        """Temporal, Dask and the disk keep the name: `GPU-1a2b...` becomes `gpu-1a2b...` once."""
        kind, _, rest = self.uuid.partition("-")
        return f"{kind.lower()}-{rest}"


class NvmlDevices:
    """One device for each card, `gpu-<uuid>`, or MIG slice, `mig-<uuid>`, and the last CPU slot for checks."""

    def __init__(self, gpus: tuple[Gpu, ...], cores: int = 0, memory_mib: int = 0) -> None:
        """*cores*, *memory_mib*: of the machine, for all of them and the checks."""
        self._gpus = gpus
        self._cores = cores
        self._memory_mib = memory_mib

    def slots(self) -> tuple[Device, ...]:
        cores = max(1, (self._cores - 1) // len(self._gpus))
        part = self._memory_mib // (cores * len(self._gpus) + 1)
        gpus = (
            Device(
                gpu.device,
                environment={"CUDA_VISIBLE_DEVICES": gpu.uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
                cores=cores,
                memory_mib=part * cores,
                milli_gpu=gpu.milli_gpu,
                gpu_mib=gpu.mib,
                job_cores=cores,
            )
            for gpu in self._gpus
        )
        light = Device("cpu0", light=True, environment={"CUDA_VISIBLE_DEVICES": ""}, memory_mib=part)
        return (*gpus, light)

    def plugins(self, device: Device) -> list[Any]:
        """dask_cuda's, where it is there. Not its memory pools: jobs are processes of their own (jobs/gpu.py)."""
        uuid = isolation.visible(device.name)
        cores = _affinity(uuid) if uuid else set()
        try:
            from dask_cuda.plugins import CPUAffinity
        except ImportError:
            return []
        return [CPUAffinity(sorted(cores))] if cores else []


def found() -> tuple[Gpu, ...]:
    """The cards and slices of this machine; none where NVML is not there. One that does not answer is left out."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        log.debug("no GPU: %s", error)
        return ()
    gpus: list[Gpu] = []
    for index in range(count):
        try:
            gpus += _of(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError as error:
            log.warning("GPU %s is left out, it does not answer: %s", index, error)
    return tuple(sorted(gpus, key=lambda gpu: gpu.uuid))


def _of(pynvml: Any, card: Any) -> list[Gpu]:  # noqa: ANN401
    """The card; where MIG is on its slices alone: the card itself can run nothing then."""
    model, total = _text(pynvml.nvmlDeviceGetName(card)), int(pynvml.nvmlDeviceGetMemoryInfo(card).total)
    if not _has_mig(pynvml, card):
        return [Gpu(_text(pynvml.nvmlDeviceGetUUID(card)), max(0, total // MIB - RESERVED_GPU_MIB), model=model)]
    slices = []
    for one in _slices(pynvml, card):
        own = int(pynvml.nvmlDeviceGetMemoryInfo(one).total)  # the slice's: dask_cuda takes the card's for it
        part = max(1, min(WHOLE_GPU - 1, round(WHOLE_GPU * own / max(total, 1))))
        slices.append(Gpu(_text(pynvml.nvmlDeviceGetUUID(one)), max(0, own // MIB - RESERVED_GPU_MIB), part, model))
    if not slices:
        log.warning("GPU %s is in MIG mode and has no slices: nothing can run there", pynvml.nvmlDeviceGetUUID(card))
    return slices


def _has_mig(pynvml: Any, card: Any) -> bool:  # noqa: ANN401
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(card)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except pynvml.NVMLError:  # NotSupported: a card without MIG
        return False


def _slices(pynvml: Any, card: Any) -> Iterator[Any]:  # noqa: ANN401
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
        except pynvml.NVMLError:  # NotFound: fewer were made than there could be
            continue


def _affinity(uuid: str) -> set[int]:
    """The cores that the card is next to; none where NVML does not say (dask_cuda fails there for a UUID)."""
    import pynvml

    words = ((os.cpu_count() or 1) + 63) // 64
    try:
        pynvml.nvmlInit()
        mask = pynvml.nvmlDeviceGetCpuAffinity(pynvml.nvmlDeviceGetHandleByUUID(uuid), words)
    except pynvml.NVMLError as error:
        log.warning("the cores next to %s are not known: %s", uuid, error)
        return set()
    return {64 * place + bit for place, word in enumerate(mask) for bit in range(64) if word >> bit & 1}


def _text(said: Any) -> str:  # noqa: ANN401
    return said.decode() if isinstance(said, bytes) else str(said)
