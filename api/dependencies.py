"""What handlers are given: the parts of this process, the person who asks, and Temporal with a deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from temporalio.client import (
    Client,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from everloop import errors
from everloop.artifacts import Artifacts
from everloop.errors import NotFound, Unavailable
from everloop.settings import Settings
from everloop.signing import Signer
from everloop.store import Store

TEMPORAL_SECONDS = 5.0
"""After this long without an answer of Temporal, or of a worker to an update, the caller is told."""

MOMENT_SECONDS = 2.0

RPC_TIMEOUT = timedelta(seconds=TEMPORAL_SECONDS - 1)

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What this API process holds open. `temporal` connects at its first call."""

    settings: Settings
    store: Store
    artifacts: Artifacts
    temporal: Client
    signer: Signer


def parts(request: Request) -> Parts:
    found: Parts = request.app.state.parts
    return found


def person(request: Request) -> str:
    """Who asks, by their credential. Only requests with one come this far."""
    return str(request.scope["everloop_person"])


Here = Annotated[Parts, Depends(parts)]
Person = Annotated[str, Depends(person)]


async def ask(call: Awaitable[T], *, missing: str = "", hint: str = "") -> T:
    """Await *call* to Temporal for at most `TEMPORAL_SECONDS`.

    Raises `Unavailable` when it does not answer, `NotFound` with *missing* when it does not know the thing,
    and, for an update or a workflow's result, the error that the workflow raised.
    """
    try:
        async with asyncio.timeout(TEMPORAL_SECONDS):
            return await call
    except (WorkflowUpdateFailedError, WorkflowFailureError) as error:
        raise raised(error) from None
    except RPCError as error:
        # An id that Temporal takes for none at all (empty, a kilobyte long) is nobody's either.
        if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT) and missing:
            raise NotFound(missing, hint=hint) from None
        if error.status == RPCStatusCode.NOT_FOUND:
            raise NotFound(missing or "Temporal does not know it", hint=hint) from None
        raise _unavailable() from error
    except (
        TimeoutError,
        WorkflowUpdateRPCTimeoutOrCancelledError,
        RuntimeError,
    ) as error:  # RuntimeError: the client could not connect
        raise _unavailable() from error


async def soon(look: Callable[[], bool]) -> None:
    """Give the read models a moment until *look* is true: a page that follows a button shows what it did."""
    for _ in range(int(MOMENT_SECONDS / 0.05)):
        if await run_in_threadpool(look):
            return
        await asyncio.sleep(0.05)


def raised(error: WorkflowUpdateFailedError | WorkflowFailureError) -> errors.EverloopError:
    """The error of ours that a workflow, or an activity of it, answered with."""
    cause: BaseException | None = error.cause
    if isinstance(cause, ActivityError):
        cause = cause.cause
    if not isinstance(cause, ApplicationError):
        return errors.Conflict(str(cause))
    field, hint = (*(str(detail) for detail in cause.details[:2]), "", "")[:2]
    found = errors.by_name(cause.type or "", cause.message, field=field, hint=hint)
    if type(found) is errors.EverloopError:  # refused by the workflow in words that are not ours
        return errors.Conflict(cause.message, field=field, hint=hint)
    return found


def _unavailable() -> Unavailable:
    return Unavailable(
        "the control plane (Temporal or its worker) does not answer; what was asked may still take effect when it does",
        hint="look again, or send the same in a moment: it counts once; `everloop up` starts what is missing",
    )
