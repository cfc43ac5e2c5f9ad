"""Processes that end with the one that started them.

One request, one process: what loads heavy libraries answers on its standard output and ends with them.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping

from everloop import errors
from everloop.errors import EverloopError

REFUSED = 3
"""Exit status when it cannot be done and standard output says why, as JSON."""
_PR_SET_PDEATHSIG = 1


async def answer_of(  # noqa: PLR0917
    command: list[str],
    environment: Mapping[str, str],
    request: bytes,
    seconds: float,
    late: EverloopError,
    failed: Callable[[int], EverloopError],
) -> bytes:
    """What the process answers to *request*. Raises what it says, *late* after so many *seconds*, or *failed*."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(seconds):
            told, _ = await process.communicate(request)
    except TimeoutError:
        raise late from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == REFUSED:
        said = json.loads(told)
        raise errors.by_name(said["error"], said["message"], field=said["field"], hint=said["hint"])
    if process.returncode != 0:
        raise failed(process.returncode or 0)
    return told


def refuse(error: EverloopError) -> int:
    """Say in such a process why it cannot be done. Returns its exit status."""
    told = {"error": type(error).__name__, "message": str(error), "field": error.field, "hint": error.hint}
    sys.stdout.write(json.dumps(told))
    return REFUSED


def die_with(parent: int, kill: signal.Signals) -> None:
    """Ask the kernel for *kill* when *parent*, which has started us, dies; end now if it is dead already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, kill)
    if os.getppid() != parent:
        raise SystemExit(1)
