"""A job and its part of a GPU: what it must see before a user's code runs, and what its libraries may take of it.

Whoever resets the variable sees other cards: without MIG nothing fences a job that wants to (docs/gpus.md).
"""

import os
import sys

from everloop import isolation
from everloop.errors import ComputeLost
from everloop.records import Member

VISIBLE = "CUDA_VISIBLE_DEVICES"


def check(member: Member) -> None:
    """Whether it sees the one card or slice of its lease, and without one none.

    Raises `ComputeLost` where the slot was started for another card, or the driver does not know it any more.
    """
    if member.milli_gpu <= 0 or isolation.is_simulated(member.device):
        os.environ[VISIBLE] = ""
        return
    uuid, seen = isolation.visible(member.device), os.environ.get(VISIBLE, "")
    if not uuid or seen != uuid:
        raise ComputeLost(f"the lease is of {uuid or member.device}, and this process sees {seen or 'no GPU'}")
    _known(uuid)


def _known(uuid: str) -> None:
    import pynvml

    try:
        pynvml.nvmlInit()
        told = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError as error:
        raise ComputeLost(f"the driver does not know {uuid} here: {error}") from None
    if (told.decode() if isinstance(told, bytes) else told) != uuid:
        raise ComputeLost(f"the driver calls {uuid} {told}")


def limit(member: Member) -> None:
    """Tell the libraries that are loaded how much of the GPU's memory is theirs, once a user's module has loaded some.

    Of absolute amounts: a share would be of what is visible, and RMM's of the card where it is a slice.
    """
    if member.milli_gpu <= 0 or member.gpu_mib <= 0 or isolation.is_simulated(member.device):
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        _, total = torch.cuda.mem_get_info(0)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (member.gpu_mib << 20) / total), 0)
    rmm = sys.modules.get("rmm")
    if rmm is not None:
        rmm.reinitialize(pool_allocator=True, initial_pool_size=0, maximum_pool_size=member.gpu_mib << 20)
