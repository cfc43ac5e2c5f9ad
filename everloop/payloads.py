"""How values cross Temporal: pydantic JSON, at most 64 KiB each. Bulk travels by reference (`records.Blob`)."""

import asyncio
import copy
import dataclasses
from typing import Any, Self

import pydantic
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.converter import SerializationContext, WorkflowSerializationContext
from temporalio.exceptions import ApplicationError

LIMIT_BYTES = 64 << 10
SENTENCE = 500
"""How many characters of an error are quoted."""


class BoundedPayloads(PydanticPayloadConverter):
    """Refuses what is too large, and turns an unreadable input into a failure that is not retried.

    Input is what comes from outside: of an activity, or of a workflow's start, signals, updates and queries (what
    does not fit in number or kind is for workflows/inputs.py). What a workflow's own activities and children answered
    stays a workflow-task failure where it cannot be read: a fixed worker heals it.
    """

    _is_input = False
    """Does this converter read what is sent to a workflow, not what the workflow waits for?"""

    def with_context(self, context: SerializationContext) -> Self:
        made = copy.copy(self)  # shares what has been worked out about types
        made._is_input = isinstance(context, WorkflowSerializationContext) and not _is_of_another(context)  # noqa: SLF001
        return made

    def to_payloads(self, values: Any) -> list[Payload]:  # noqa: ANN401
        payloads = super().to_payloads(values)
        for value, payload in zip(values, payloads, strict=True):
            if len(payload.data) > LIMIT_BYTES:
                size = f"{len(payload.data):,} bytes; the limit is {LIMIT_BYTES:,}"
                raise ApplicationError(
                    f"{type(value).__name__}{_largest(value)} is {size}",
                    type="TooLarge",
                    non_retryable=True,
                )
        return payloads

    def from_payloads(self, payloads: Any, type_hints: Any = None) -> list[Any]:  # noqa: ANN401
        try:
            return super().from_payloads(payloads, type_hints)
        except pydantic.ValidationError as error:
            if _in_workflow() and not self._is_input:
                raise
            raise _unreadable(type_hints, error) from None
        except (KeyError, RuntimeError, ValueError) as error:  # an encoding that nobody knows, bytes that are none
            if not (_in_workflow() and self._is_input):
                raise
            raise _unreadable(type_hints, error) from None


def _unreadable(type_hints: Any, error: Exception) -> ApplicationError:  # noqa: ANN401
    expected = ", ".join(getattr(kind, "__name__", str(kind)) for kind in type_hints or ())
    wanted = f"; expected is {expected} as JSON" if expected else ""
    why = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())[:SENTENCE]
    return ApplicationError(f"unreadable payload{wanted}: {why}", type="InvalidSpec", non_retryable=True)


def _is_of_another(context: WorkflowSerializationContext) -> bool:
    """Is it of a workflow that the present one has started or signals?"""
    try:
        return workflow.in_workflow() and workflow.info().workflow_id != context.workflow_id
    except RuntimeError:  # no event loop: the worker makes the workflow's own
        return False


def _in_workflow() -> bool:
    """Is this workflow code, or the worker's thread that applies what has come to a workflow?

    The latter runs no event loop, while activities' inputs are read in the worker's own.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return workflow.in_workflow()


def _largest(value: object) -> str:
    """The field that takes the most room, to name it."""
    if not isinstance(value, pydantic.BaseModel):
        return ""
    sizes = {name: len(str(getattr(value, name))) for name in type(value).model_fields}
    return f".{max(sizes, key=lambda name: sizes[name])}" if sizes else ""


converter = dataclasses.replace(pydantic_data_converter, payload_converter_class=BoundedPayloads)
