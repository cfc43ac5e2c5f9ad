"""Whose process is it? Every process of a job carries its device and its part of a lease in its environment.

Jobs are forked, not executed: what /proc shows of them is the environment of the process that they are forked from.
So that one has a blank of the right length, which a fork of it writes over in place.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

MARK = "EVERLOOP_SLOT"
"""`<scratch>/<device>`: who carries it belongs to that device of that deployment."""
LEASE = "EVERLOOP_LEASE"
"""`<token>.<rank>`: the part of a lease that it is of. Always of the same length."""


def part(token: int, rank: int) -> str:
    return f"{token:020d}.{rank:06d}"


def of_part(text: str) -> tuple[int, int] | None:
    """Token and rank as `part` writes them; None for any other text."""
    token, _, rank = text.partition(".")
    return (int(token), int(rank)) if token.isdecimal() and rank.isdecimal() and text.isascii() else None


BLANK = part(0, 0)
"""Of the process that jobs are forked from."""


def wear(text: str) -> None:
    """From now on this process, and whatever it forks or executes, carries *text* as its `LEASE`."""
    head = f"{LEASE}=".encode()
    entries = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    index = 0
    while address := entries[index]:
        if ctypes.string_at(address).startswith(head) and len(ctypes.string_at(address)) == len(head) + len(text):
            ctypes.memmove(address + len(head), text.encode(), len(text))
            break
        index += 1
    os.environ[LEASE] = text


def carriers(device: str, text: str) -> Iterator[int]:
    """Pids of all processes that carry both marks: the `MARK` *device*, and *text* as their part of a lease."""
    wanted = {f"{MARK}={device}".encode(), f"{LEASE}={text}".encode()}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted <= set(path.read_bytes().split(b"\0")):
                yield int(path.parent.name)
