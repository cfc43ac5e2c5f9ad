"""What torch's errors mean."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from everloop.errors import ComputeLost, OutOfMemory, text

NO_MEMORY = re.compile(r"allocate memory|not enough memory|out of memory|unable to allocate|bad_alloc", re.IGNORECASE)
AMOUNT = re.compile(r"allocate ([\d.,]+) ?(bytes|B|KiB|MiB|GiB|TiB)\b", re.IGNORECASE)
UNITS = {"bytes": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
OF_DEVICE = re.compile(r"CUDA error|cuBLAS|CUBLAS_STATUS|cuDNN error|NVML|device.*(lost|unavailable)", re.IGNORECASE)
OF_CODE = re.compile(r"device-side assert|invalid configuration|invalid argument|no kernel image", re.IGNORECASE)
"""Errors that CUDA reports and another device would report too."""


def is_out_of_memory(error: BaseException) -> bool:
    """Also CUDA's, and the plain RuntimeError of torch on a CPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(text(error))))


def is_lost(error: BaseException) -> bool:
    """The device is gone or broken: another one may do it."""
    said = text(error)
    return isinstance(error, RuntimeError) and bool(OF_DEVICE.search(said)) and not OF_CODE.search(said)


def bytes_asked(error: BaseException) -> int:
    """Of the allocation that failed; 0 where it does not say."""
    found = AMOUNT.search(text(error))
    return int(float(found[1].replace(",", "")) * UNITS[found[2].lower()]) if found else 0


def too_large(error: BaseException, what: str) -> OutOfMemory:
    """For a person."""
    asked = bytes_asked(error)
    refused = f"; {asked:,} bytes more were refused" if asked else ""
    hint = "say a smaller `batch`, `width` or `layers` under `params`, or give the slots more memory"
    return OutOfMemory(f"the memory does not hold {what}{refused}", field="params", hint=hint)


def check_room(needed: int, allowed: int) -> None:
    """Raise `OutOfMemory` where the weights alone take more bytes than the lease allows; 0 allows any."""
    if allowed and needed > allowed:
        hint = "say a smaller `width` or fewer `layers` under `params`, or give the slots more memory"
        message = f"the weights of this training alone take {needed:,} bytes, and its lease allows {allowed:,}"
        raise OutOfMemory(message, field="params", hint=hint)


@contextmanager
def named(what: str) -> Iterator[None]:
    """Errors of torch in the block as errors of ours. *what* is to be held in memory there."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise too_large(error, what) from error
        if is_lost(error):
            raise ComputeLost(f"the device failed: {str(error).splitlines()[0][:300]}") from error
        raise


PEERS = ("gloo", "NCCL", "ncclRemote", "Connection closed by peer", "Connection reset by peer")


def is_peer_lost(error: BaseException) -> bool:
    """Is another process of torch's group gone, or its connection?"""
    from torch import distributed

    if not distributed.is_available():
        return False
    if isinstance(error, distributed.DistError):
        return True
    in_group = isinstance(error, RuntimeError) and distributed.is_initialized()
    return in_group and any(word in str(error) for word in PEERS)
