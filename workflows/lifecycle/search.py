"""The search that the stage `train` begins with, where the spec asks for one."""

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, CancelledError, ChildWorkflowError
from temporalio.workflow import ParentClosePolicy

from everloop import names
from everloop.contracts import SearchAnswer, SearchOrder, SearchRequest, SearchState
from everloop.trials import Searched
from workflows.lifecycle.ended import innermost
from workflows.search import Search
from workflows.stage import Stages


class Searching:
    """Has a child search, pauses with its lifecycle, and keeps what was found."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._runs: workflow.ChildWorkflowHandle[Search, SearchAnswer] | None = None
        """The search that runs."""
        self._state: SearchState | None = None
        """Where a search stands that was paused."""
        self.searched: Searched | None = None

    def check(self) -> None:
        """Raises `NotWaiting` where none runs."""
        if self._runs is None:
            raise ApplicationError("no search of this lifecycle runs", type="NotWaiting", non_retryable=True)

    async def order(self, order: SearchOrder) -> None:
        assert self._runs is not None  # noqa: S101  # looked at by the validator
        await self._runs.signal(Search.order, order)

    async def found(self, request: SearchRequest) -> Searched:
        """What the search comes to. Raises `CancelledError` where a pause ends it: it goes on from there."""
        if self.searched is None:
            self.searched = await self._result(request)
        return self.searched

    async def _result(self, request: SearchRequest) -> Searched:
        self._runs = await workflow.start_child_workflow(
            Search.run,
            request.model_copy(update={"state": self._state}),
            id=names.search_id(request.lifecycle),
            id_reuse_policy=WorkflowIDReusePolicy.TERMINATE_IF_RUNNING,
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            static_summary=f"Search for {request.spec.model}",
        )
        self._stages.pauses(self._runs)
        try:
            answer = await self._runs
        except ChildWorkflowError as error:
            if workflow.cancellation_reason() is not None or isinstance(error.cause, CancelledError):
                raise CancelledError("the search was cancelled") from None
            raise _of_the_search(error) from None
        finally:
            self._runs = None
            self._stages.pauses(None)
        self._state = answer.state
        if answer.searched is None:
            raise CancelledError("the search is paused")
        return answer.searched


def _of_the_search(error: ChildWorkflowError) -> ApplicationError:
    """Why a search has ended without an answer, as a stage's failure."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return cause
    hint = "a retry begins it anew"
    return ApplicationError(f"the search did not end well: {innermost(error)}", "search", hint, type="JobFailed")
