"""What every worker process needs: a Temporal client, errors that cross, one-line logs, a clean end."""

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any

from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from everloop.errors import EverloopError, Permanent, Unavailable
from everloop.payloads import converter
from everloop.settings import Settings

WAIT_SECONDS = 30.0
PASSED_THROUGH = ("everloop", "activities", "cryptography")
"""What workflows use as it is: our words, names of activities, and signatures in a gate's validator."""
PR_SET_PDEATHSIG = 1


async def connect(settings: Settings, role: str = "client", *, wait_seconds: float = WAIT_SECONDS) -> Client:
    """A client for the process *role*, waiting for a server that is still starting. Raises `Unavailable`.

    Its identity is `<role>@<session>`: a takeover knows the dead by their session.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            client = await Client.connect(
                settings.temporal,
                namespace=settings.temporal_namespace,
                data_converter=converter,
                identity=f"{role}@{settings.session}",
            )
            await client.service_client.check_health(timeout=None)
        except (RuntimeError, RPCError) as error:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Temporal at {settings.temporal} does not answer: {error}",
                    hint="`everloop up` starts one here; EVERLOOP_TEMPORAL_ADDRESS names another",
                ) from None
            await asyncio.sleep(0.2)
        else:
            return client


class ErrorsCross(Interceptor):
    """Carries an `EverloopError` through Temporal: class name, sentence, field, hint, and whether retrying helps."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _ErrorsCross(next)


class _ErrorsCross(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002, ANN401
        try:
            return await super().execute_activity(input)
        except EverloopError as error:
            raise as_failure(error) from error


def as_failure(error: EverloopError) -> ApplicationError:
    """The error as Temporal carries it; `errors.by_name(type, message, field=, hint=)` is the way back."""
    return ApplicationError(
        str(error), error.field, error.hint, type=type(error).__name__, non_retryable=isinstance(error, Permanent)
    )


def sandbox() -> SandboxedWorkflowRunner:
    """Runs workflows; our own light packages are loaded once, not once per workflow."""
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH))


class OneLine(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._role,
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_lines(role: str, level: int = logging.INFO) -> None:
    """Log to stderr, one line of JSON each; Temporal's core says only what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(role))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    quiet = TelemetryFilter(core_level="ERROR", other_level="ERROR")
    runtime = Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter=quiet)))
    Runtime.set_default(runtime, error_if_already_set=False)


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
