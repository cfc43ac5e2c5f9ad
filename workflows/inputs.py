"""What comes into a workflow from outside is checked here, once for all workflows and all of their handlers.

Temporal's port and its command line hand over anything: nothing, too much, bytes of another type. The SDK (1.35)
calls a handler all the same, and the exception then fails every later workflow task. So: a signal that does not fit
is dropped, an update or query is refused, and a workflow that was started so ends; each with a sentence.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import pydantic
from temporalio import workflow
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ExecuteWorkflowInput,
    HandleQueryInput,
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

Handler = Callable[..., Any]


class Inputs(Interceptor):
    """Of the control worker, and of whatever replays histories of it."""

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002, ARG002  # the SDK's words
    ) -> type[WorkflowInboundInterceptor]:
        return _Inputs


class _Inputs(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002, ANN401
        run: Handler = input.run_fn
        _check(f"workflow {workflow.info().workflow_type}", run, [workflow.instance(), *input.args])
        return await super().execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:  # noqa: A002
        try:
            _check_handler("signal", _definition().signals.get(input.signal), input.args)
        except ApplicationError as error:
            workflow.logger.warning("dropped: %s", error.message)
            return
        await super().handle_signal(input)

    async def handle_query(self, input: HandleQueryInput) -> Any:  # noqa: A002, ANN401
        _check_handler("query", _definition().queries.get(input.query), input.args)
        return await super().handle_query(input)

    def handle_update_validator(self, input: HandleUpdateInput) -> None:  # noqa: A002
        _check_handler("update", _definition().updates.get(input.update), input.args)
        super().handle_update_validator(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:  # noqa: A002, ANN401
        # Again: an update without a validator comes here first.
        _check_handler("update", _definition().updates.get(input.update), input.args)
        return await super().handle_update_handler(input)


def _definition() -> workflow._Definition:
    """What the SDK knows of the running workflow: it hands out handlers bound, without their parameters."""
    return workflow._Definition.must_from_class(type(workflow.instance()))  # noqa: SLF001


def _check_handler(kind: str, handler: Any, given: Sequence[Any]) -> None:  # noqa: ANN401
    """As `_check`, for one of the SDK's definitions; none is there for its own handlers (`__stack_trace`)."""
    if handler is not None:
        _check(f"{kind} {handler.name}", handler.fn, [workflow.instance(), *given])


def _check(what: str, handler: Handler, given: Sequence[Any]) -> None:
    """Raise `ApplicationError` with a sentence unless *handler* was written for *given* (the first is its `self`)."""
    parameters = list(inspect.signature(handler).parameters.values())
    hints = get_type_hints(handler)
    wanted = [(parameter.name, hints.get(parameter.name, Any)) for parameter in parameters]
    least = sum(parameter.default is parameter.empty for parameter in parameters)
    if not least <= len(given) <= len(wanted):
        raise _unreadable(what, wanted, f"{len(given) - 1} came")
    for (name, kind), value in zip(wanted, given, strict=False):
        try:
            pydantic.TypeAdapter(kind).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            raise _unreadable(what, wanted, f"{name} is {error.errors()[0]['msg'].lower()}") from None


def _unreadable(what: str, wanted: Sequence[tuple[str, Any]], got: str) -> ApplicationError:
    expected = ", ".join(f"{name}: {getattr(kind, '__name__', kind)}" for name, kind in wanted if name != "self")
    return ApplicationError(f"{what} takes {expected or 'no input'}; {got}", type="InvalidSpec", non_retryable=True)
