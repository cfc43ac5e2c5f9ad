"""Who asks: an activity serves only the workflow runs that it is made for.

Temporal lets every client of its port schedule any activity. Id, run and type come from Temporal's own record of the
run and not from the request, so a request cannot claim to be another's. That the run is carried out on our own task
queue is looked at before any activity begins (workers/admission.py).
"""

from dataclasses import dataclass

from temporalio import activity

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
