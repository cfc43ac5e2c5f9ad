"""How far a job on a part of a GPU is kept apart from others there: the level that its lease really has.

E0: it sees no other GPU. E1: its libraries are told how much memory to take (torch, RMM). E4: a MIG slice of its own,
which the card itself fences. E2 (MPS) and E3 (the driver's limits) were never run on hardware and are refused.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from everloop.errors import Invalid

Isolation = Literal["E0", "E1", "E4"]
LEVELS: tuple[Isolation, ...] = ("E0", "E1", "E4")
UNVERIFIED = {"E2": "MPS", "E3": "memory limits of the driver"}
WHOLE_GPU = 1000
GPU, MIG, SIMULATED = "gpu-", "mig-", "sim-"
"""How the names of devices begin: a card, a slice of one, and none at all."""
SHARED = "shared, not fenced"
BANNER = (
    "Simulated devices: the GPUs of this pool are not there (EVERLOOP_DEVICES=sim). Jobs run on this machine's cores."
)


def refused(level: str) -> str:
    """Why a level is never granted, or nothing."""
    if level not in UNVERIFIED:
        return ""
    return f"{level} ({UNVERIFIED[level]}) is not verified on hardware; ask for E1, or E4 where the pool has MIG slices"


class Part(NamedTuple):
    """Of a device."""

    device: str
    milli_gpu: int
    gpu_mib: int


def slice_for(milli_gpu: int | None, gpu_mib: int, there: Iterable[Part]) -> Part:
    """What a job has to lease so that it has a MIG slice to itself: all of one. *there*: the pool's devices with a GPU.

    Raises `Invalid` where the pool has no slices, or others beside them: a level is refused, never weakened.
    """
    gpus = list(there)
    slices = [one for one in gpus if one.device.startswith(MIG)]
    sizes = {(one.milli_gpu, one.gpu_mib) for one in slices}
    hint = "leave `isolation` out for a part that is shared and not fenced, or ask for `gpus: 1`, a whole GPU"
    if not slices:
        raise Invalid("isolation E4 is a MIG slice, and this pool has none", field="resources.isolation", hint=hint)
    if len(slices) < len(gpus) or len(sizes) > 1:
        message = "isolation E4 needs a pool whose GPUs are MIG slices of one size: this one has several kinds"
        raise Invalid(message, field="resources.isolation", hint=hint)
    one = slices[0]
    if (milli_gpu or 0) > one.milli_gpu or gpu_mib > one.gpu_mib:
        message = f"its slices have {one.milli_gpu / WHOLE_GPU:g} of a GPU and {one.gpu_mib} MiB, and more is asked for"
        raise Invalid(message, field="resources.isolation", hint="ask for less")
    return one


def is_simulated(device: str) -> bool:
    return device.startswith(SIMULATED)


def visible(device: str) -> str:
    """What `CUDA_VISIBLE_DEVICES` must say on a device: the UUID of one card or slice, or nothing."""
    for prefix in (GPU, MIG):
        if device.startswith(prefix):
            return prefix.upper() + device.removeprefix(prefix)
    return ""


def granted(device: str, milli_gpu: int, whole_milli_gpu: int) -> tuple[str, str]:
    """The level that a member has, and in words; nothing for one without a GPU. *whole*: of its device."""
    if milli_gpu <= 0:
        return "", ""
    alone = milli_gpu >= whole_milli_gpu
    if alone and device.startswith(MIG):
        return "E4", "a MIG slice of its own"
    return "E1", "the whole GPU, nobody else is on it" if alone else SHARED
