"""A workflow run as Temporal's own record describes it: what an activity may believe of who asks."""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from temporalio import activity
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from everloop import names
from everloop.errors import Forbidden

REMEMBERED_RUNS = 10_000


@dataclass(frozen=True)
class Execution:
    """What never changes of a run. An activity is only handed out while its run is open."""

    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    first_run_id: str
    """Of the chain that Resets made: a workflow that is started anew under the same id has another one."""
    started_at: datetime
    parent_id: str
    parent_run_id: str

    @property
    def ours(self) -> bool:
        """Carried out by our control worker: a workflow of another worker may bear our names, but not our queue."""
        return self.task_queue == names.CONTROL


class Executions:
    """Looks runs up in Temporal, each once (about 2 ms)."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: OrderedDict[tuple[str, str], Execution] = OrderedDict()

    async def caller(self) -> Execution:
        """The run that the present activity works for. Raises `Forbidden` where Temporal knows none."""
        info = activity.info()
        return await self.of(info.workflow_id or "", info.workflow_run_id or "")

    async def of(self, workflow_id: str, run_id: str) -> Execution:
        """The run. Raises `Forbidden` where Temporal knows none."""
        key = (workflow_id, run_id)
        if key not in self._known:
            self._known[key] = await self._described(workflow_id, run_id)
            if len(self._known) > REMEMBERED_RUNS:
                self._known.popitem(last=False)
        return self._known[key]

    async def _described(self, workflow_id: str, run_id: str) -> Execution:
        try:
            found = await self._client.get_workflow_handle(workflow_id, run_id=run_id).describe()
        except RPCError as error:
            if error.status not in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
                raise
            raise Forbidden(f"Temporal knows no run {run_id} of {workflow_id}") from None
        info = found.raw_description.workflow_execution_info
        return Execution(
            workflow_id=workflow_id,
            run_id=run_id,
            workflow_type=found.workflow_type,
            task_queue=found.task_queue,
            first_run_id=info.first_run_id or run_id,
            started_at=found.start_time,
            parent_id=info.parent_execution.workflow_id,
            parent_run_id=info.parent_execution.run_id,
        )
