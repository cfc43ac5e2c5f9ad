"""Work on the log that needs pyarrow, in a process of its own: `python -m activities.compute.predictions`."""

import os
from typing import TypeVar

from pydantic import BaseModel

from everloop import children, engine
from everloop.errors import Unavailable

SECONDS = 600.0
KEPT_FROM_IT = ("EVERLOOP_DATABASE_URL", "EVERLOOP_ARTIFACTS_URL")

R = TypeVar("R", bound=BaseModel)


async def run(what: str, request: BaseModel, result: type[R]) -> R:
    """Have *what* (`compact`, `export`) done. Raises what it says, or `Unavailable`."""
    environment = {name: value for name, value in engine.environment().items() if name not in KEPT_FROM_IT}
    told = await children.answer_of(
        engine.command("activities.compute.predictions", what, str(os.getpid())),
        environment,
        request.model_dump_json().encode(),
        SECONDS,
        Unavailable(f"the prediction log took too long to {what}", hint="it is tried again"),
        lambda status: Unavailable(f"the prediction log could not {what} ({status})", hint="see the process's log"),
    )
    return result.model_validate_json(told)
