"""Who asks: an activity serves only the workflow runs that it is made for.

Temporal lets every client of its port schedule any activity. Id, run and type come from Temporal's own record of the
run and not from the request, so a request cannot claim to be another's.
"""

from dataclasses import dataclass

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from everloop import names
from everloop.errors import Forbidden


@dataclass(frozen=True)
class Caller:
    """The workflow run that an activity works for."""

    workflow_id: str
    run_id: str
    workflow_type: str

    @property
    def holder(self) -> str:
        """As leases and slots name it: `<workflow id>/<run id>`."""
        return f"{self.workflow_id}/{self.run_id}"


def caller(*types: str) -> Caller:
    """The run that asks, whose workflow is one of *types* (names.py). Raises `Forbidden` for any other."""
    info = activity.info()
    asks = Caller(info.workflow_id or "", info.workflow_run_id or "", info.workflow_type or "")
    if not asks.workflow_id or not asks.run_id or asks.workflow_type not in types:
        raise Forbidden(
            f"{info.activity_type} does not serve {asks.workflow_type or 'a caller without a workflow'}",
            hint=f"it is called by {' or '.join(types)}",
        )
    return asks


async def running_here(client: Client, *types: str) -> Caller:
    """`caller`, and Temporal says that the run is open and is carried out on our own task queue.

    One call to Temporal (about 2 ms): for what cannot be undone. A workflow of another worker may bear a name of
    ours, but not our queue. Raises `Forbidden`.
    """
    asks = caller(*types)
    try:
        described = await client.get_workflow_handle(asks.workflow_id, run_id=asks.run_id).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        raise Forbidden(f"Temporal knows no run {asks.run_id} of {asks.workflow_id}") from error
    if described.status is not WorkflowExecutionStatus.RUNNING or described.task_queue != names.CONTROL:
        now = f"{_status(described.status)} on {described.task_queue}"
        raise Forbidden(f"{asks.workflow_id} is not an open workflow of ours: it is {now}")
    return asks


def _status(status: WorkflowExecutionStatus | None) -> str:
    return status.name.lower() if status else "of an unknown state"
