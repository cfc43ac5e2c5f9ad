"""GPUs that are not there, to try queues and fractions on any machine. Only when asked for, and said on every page."""

import re
from typing import Any

from everloop import isolation
from everloop.errors import Invalid
from workers.devices.device import WHOLE_GPU, Device

ASKED = re.compile(r"sim:([1-9][0-9]{0,2})x([1-9][0-9]{0,6})")
SLOT_CORES = 4
"""Of a simulated GPU, unless the settings say it. They are not there either: jobs on them share the machine's."""


class SimDevices:
    """`EVERLOOP_DEVICES=sim:4x16000`: `sim-0` to `sim-3` with 16,000 MiB each, and a CPU slot for checks."""

    def __init__(self, asked: str, cores: int = 0, memory_mib: int = 0) -> None:
        """*memory_mib*: of the machine, for all."""
        found = ASKED.fullmatch(asked)
        if found is None:
            message, hint = f"EVERLOOP_DEVICES={asked} says no devices", "sim:4x16000 is four GPUs of 16,000 MiB"
            raise Invalid(message, field="EVERLOOP_DEVICES", hint=hint)
        self._count, self._gpu_mib = int(found[1]), int(found[2])
        self._cores, self._memory_mib = max(cores, SLOT_CORES), memory_mib

    def slots(self) -> tuple[Device, ...]:
        part = self._memory_mib // (self._count + 1)
        nothing = {"CUDA_VISIBLE_DEVICES": ""}  # whatever is there, nothing of it is used under this name
        gpus = (
            Device(
                f"{isolation.SIMULATED}{index}",
                environment=nothing,
                cores=self._cores,
                memory_mib=part,
                milli_gpu=WHOLE_GPU,
                gpu_mib=self._gpu_mib,
            )
            for index in range(self._count)
        )
        return (*gpus, Device("cpu0", light=True, environment=nothing, memory_mib=part))

    def plugins(self, device: Device) -> list[Any]:  # noqa: ARG002  # there is nothing to set up
        return []
