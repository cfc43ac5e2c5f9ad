"""How far a job on a part of a GPU is kept apart from others there: the level that its lease really has.

E0: it sees no other GPU. E1: its libraries are told how much memory to take (torch, RMM). E4: a MIG slice of its own,
which the card itself fences. E2 (MPS) and E3 (the driver's limits) were never run on hardware and are refused.
"""

from typing import Literal

Isolation = Literal["E0", "E1", "E4"]
LEVELS: tuple[Isolation, ...] = ("E0", "E1", "E4")
UNVERIFIED = {"E2": "MPS", "E3": "memory limits of the driver"}
WHOLE_GPU = 1000
GPU, MIG, SIMULATED = "gpu-", "mig-", "sim-"
"""How the names of devices begin: a card, a slice of one, and none at all."""
SHARED = "shared, not fenced"


def refused(level: str) -> str:
    """Why a level is never granted, or nothing."""
    if level not in UNVERIFIED:
        return ""
    return f"{level} ({UNVERIFIED[level]}) is not verified on hardware; ask for E1, or E4 where the pool has MIG slices"


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
