"""What every Temporal worker needs: a client, errors that cross, a sandbox; and what every process needs."""

import asyncio
import logging
import time
from typing import Any

from temporalio.client import Client
from temporalio.common import WorkerDeploymentVersion
from temporalio.exceptions import ApplicationError, FailureError
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    WorkerDeploymentConfig,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from everloop import disk, engine, logs
from everloop.errors import EverloopError, Permanent, StorageLow, Unavailable
from everloop.payloads import converter
from everloop.settings import Settings
from workers.process import die_with_parent, first_of, identity, told_to_stop

__all__ = ["ErrorsCross", "build", "connect", "die_with_parent", "first_of", "log_lines", "sandbox", "told_to_stop"]

WAIT_SECONDS = 30.0
PASSED_THROUGH = ("everloop", "activities", "cryptography")
"""What workflows use as it is: our words, names of activities, and signatures in a gate's validator."""


async def connect(settings: Settings, role: str = "client", *, wait_seconds: float = WAIT_SECONDS) -> Client:
    """A client for the process *role*, waiting for a server that is still starting. Raises `Unavailable`.

    Its identity is `process.Identity`: a takeover knows the dead by these.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            client = await Client.connect(
                settings.temporal,
                namespace=settings.temporal_namespace,
                data_converter=converter,
                identity=str(identity(role, settings.session)),
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
        except Exception as error:
            if not isinstance(error, FailureError) and disk.is_full(error):
                raise as_failure(StorageLow(hint=disk.HINT)) from error
            raise


def as_failure(error: EverloopError) -> ApplicationError:
    """The error as Temporal carries it; `errors.by_name(type, message, field=, hint=)` is the way back."""
    kept = [error.kept] if error.kept else []
    return ApplicationError(
        str(error),
        error.field,
        error.hint,
        *kept,
        type=type(error).__name__,
        non_retryable=isinstance(error, Permanent),
    )


def sandbox() -> SandboxedWorkflowRunner:
    """Runs workflows; our own light packages are loaded once, not once per workflow."""
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH))


def build() -> WorkerDeploymentConfig:
    """What a worker says of its code, for the record of each workflow task.

    No run is pinned to a build: any worker takes any task, as with Temporal's AUTO_UPGRADE, which itself needs a
    server that is told at each start which build is current. A laptop has no worker of an earlier build; `patched`
    and the stored histories keep open runs going. Without a build the SDK would read all loaded modules for a name
    of its own, the better part of a second.
    """
    version = WorkerDeploymentVersion(deployment_name="everloop", build_id=engine.build())
    return WorkerDeploymentConfig(version=version, use_worker_versioning=False)


def log_lines(role: str, level: int = logging.INFO) -> None:
    """Log to stderr, one line of JSON each; Temporal's core says only what is wrong."""
    logs.log_lines(role, level)
    quiet = TelemetryFilter(core_level="ERROR", other_level="ERROR")
    runtime = Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter=quiet)))
    Runtime.set_default(runtime, error_if_already_set=False)
