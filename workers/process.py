"""What every worker process needs: a clean end, an end with its parent. Light: no Temporal, no Dask."""

import asyncio
import ctypes
import os
import signal
from collections.abc import Awaitable
from typing import Any

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the process that started us dies; end now if it is dead already."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(1)


def told_to_stop() -> asyncio.Event:
    """Set by SIGTERM or SIGINT. Call from within the running loop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def first_of(*awaitables: Awaitable[Any]) -> None:
    """Until one of them ends; the others are cancelled. Raises what the first one raised."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
