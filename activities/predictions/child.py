"""Work on the log that needs pyarrow, in a process of its own: `python -m activities.compute.predictions`."""

import asyncio
import ctypes
import json
import signal
from typing import TypeVar

from pydantic import BaseModel

from everloop import engine, errors
from everloop.errors import Unavailable

REFUSED = 3
"""Exit status when it cannot be done and standard output says why, as JSON."""
SECONDS = 600.0
_PR_SET_PDEATHSIG = 1
KEPT_FROM_IT = ("EVERLOOP_DATABASE_URL", "EVERLOOP_ARTIFACTS_URL")

R = TypeVar("R", bound=BaseModel)


async def run(what: str, request: BaseModel, result: type[R]) -> R:
    """Have *what* (`compact`, `export`) done. Raises what it says, or `Unavailable`."""
    environment = {name: value for name, value in engine.environment().items() if name not in KEPT_FROM_IT}
    process = await asyncio.create_subprocess_exec(
        *engine.command("activities.compute.predictions", what),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SECONDS):
            told, _ = await process.communicate(request.model_dump_json().encode())
    except TimeoutError:
        raise Unavailable(f"the prediction log took too long to {what}", hint="it is tried again") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == REFUSED:
        said = json.loads(told)
        raise errors.by_name(said["error"], said["message"], field=said["field"], hint=said["hint"])
    if process.returncode != 0:
        raise Unavailable(f"the prediction log could not {what} ({process.returncode})", hint="see the process's log")
    return result.model_validate_json(told)


def die_with_parent() -> None:
    """End this process when the one that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
