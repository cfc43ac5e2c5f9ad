"""Cores alone."""

from typing import Any

from workers.devices.device import Device


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
