"""Which workflows our activities serve. Temporal's port lets anybody schedule any activity on our queues."""

from typing import Any

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.execution import Execution, Executions
from everloop import names
from everloop.errors import Forbidden

JOBS = ("everloop.data.", "everloop.features.", "everloop.training.", "everloop.evaluation.", "everloop.export.")
HOLDERS = frozenset({names.LIFECYCLE, names.DRIFT_CHECK, names.SEARCH, names.SCORE})
SERVES = {
    names.JOURNAL_APPEND: HOLDERS | {names.APPROVAL, names.RELEASE, names.ROLL_BACK},
    "everloop.disk.": HOLDERS,
    "everloop.search.": frozenset({names.SEARCH}),
    "everloop.lifecycle.": frozenset({names.LIFECYCLE}),
    "everloop.lease.pool_step": frozenset({names.GPU_POOL}),
    "everloop.lease.prove": frozenset({names.GPU_POOL}),
    "everloop.lease.": HOLDERS,
    "everloop.pool.": frozenset({names.POOL_ORDER}),
    "everloop.registry.": frozenset({names.LIFECYCLE}),
    "everloop.release.roll_back": frozenset({names.RELEASE, names.ROLL_BACK}),
    "everloop.release.": frozenset({names.RELEASE}),
    "everloop.score.": frozenset({names.SCORE}),
    "everloop.drift.watch": frozenset({names.LIFECYCLE}),
    "everloop.drift.": frozenset({names.DRIFT_CHECK}),
    "everloop.labels.": frozenset({names.DRIFT_CHECK}),
} | dict.fromkeys(JOBS, frozenset({names.LIFECYCLE}))
"""Activity (or, with a dot at its end, every other one that begins so) to the workflows that may call it."""


BEGINS = {
    names.RELEASE: "release/",
    names.ROLL_BACK: "release/",
    names.GPU_POOL: "pool/",
    names.POOL_ORDER: "order/",
    names.SCORE: "score/",
}
"""How the ids of a type's runs begin."""


class OnlyOurs(Interceptor):
    """Refuses an activity to whatever is not a workflow of ours, carried out by our control worker."""

    def __init__(self, client: Client) -> None:
        self._executions = Executions(client)

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _OnlyOurs(next, self._executions)


class _OnlyOurs(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, executions: Executions) -> None:  # noqa: A002
        super().__init__(next)
        self._executions = executions

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002, ANN401
        admit(activity.info().activity_type, await self._executions.caller())
        return await super().execute_activity(input)


def admit(name: str, caller: Execution) -> None:
    """Raise `Forbidden` unless the activity *name* serves *caller*."""
    served = _served(name)
    if caller.ours and caller.workflow_type in served and _own_id(caller):
        return
    raise Forbidden(
        f"{name} does not serve {caller.workflow_id}, a {caller.workflow_type} on the queue {caller.task_queue}",
        hint=f"it serves {' and '.join(sorted(served)) or 'nobody'} on {names.CONTROL}",
    )


def _served(name: str) -> frozenset[str]:
    group = name[: name.rfind(".") + 1]
    return SERVES.get(name) or SERVES.get(group) or frozenset()


def _own_id(caller: Execution) -> bool:
    """Whether a run bears an id that its type has: a pool's, a gate's of its parent, a rollout's."""
    match caller.workflow_type:
        case names.APPROVAL:
            return caller.workflow_id == names.approval_id(caller.parent_id)
        case names.SEARCH:
            return caller.workflow_id == names.search_id(caller.parent_id)
        case _:
            return caller.workflow_id.startswith(BEGINS.get(caller.workflow_type, ""))
