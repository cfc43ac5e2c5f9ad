"""How values cross Temporal: pydantic JSON, at most 64 KiB each. Bulk travels by reference (`records.Blob`)."""

import asyncio
import dataclasses
from typing import Any

import pydantic
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.exceptions import ApplicationError

LIMIT_BYTES = 64 << 10


class BoundedPayloads(PydanticPayloadConverter):
    """Refuses what is too large, and turns an unreadable activity input into a failure that is not retried.

    In workflow code an unreadable payload stays a workflow-task failure: a fixed worker heals it.
    """

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
            if _in_workflow():
                raise
            raise ApplicationError(f"unreadable payload: {error}", type="InvalidSpec", non_retryable=True) from None


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
