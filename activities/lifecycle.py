"""Whether a lifecycle may begin: the API signed its start, or a drift check of ours decided on it."""

import asyncio
import json
from pathlib import Path
from typing import Any

from sqlmodel import select
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest
from temporalio.client import Client

from activities.execution import Execution, Executions
from everloop import names, signing, starts
from everloop.contracts import AdmitRequest, LifecycleActivities
from everloop.errors import BadSignature
from everloop.store import JournalRow, PerformanceRow, Store, TriggerRow

HINT = "start it with `everloop submit`"


class LifecycleOnControl(LifecycleActivities):
    """Looks at how the lifecycle that asks was started."""

    def __init__(self, store: Store, client: Client, keys_dir: Path) -> None:
        self._store = store
        self._client = client
        self._keys_dir = keys_dir
        self._executions = Executions(client)

    @activity.defn(name="everloop.lifecycle.admit")
    async def admit(self, request: AdmitRequest) -> None:  # noqa: ARG002  # nothing that the caller says counts
        """Raise `BadSignature` unless the start of the workflow that asks was signed, or is drift's.

        What counts is the first event of its history, in the bytes that were sent.
        """
        info = activity.info()
        assert info.workflow_id and info.workflow_run_id  # noqa: S101, PT018  # only a lifecycle asks
        started = await self._started(info.workflow_id, info.workflow_run_id)
        sent = _sent(started)
        if started.workflow_type.name != names.LIFECYCLE or started.task_queue.name != names.CONTROL:
            raise BadSignature("only a lifecycle of this deployment is admitted", hint=HINT)
        if sent.get("signature"):
            self._check(info.workflow_id, sent)
        elif not await self._is_drifts(info.workflow_id, started, sent) and not await self._went_on_before(sent):
            raise BadSignature("this start is not signed by the API of this deployment", hint=HINT)

    def _check(self, lifecycle: str, sent: dict[str, Any]) -> None:
        try:
            starts.check(lifecycle, sent, signing.trusted_keys(self._keys_dir))
        except BadSignature:
            message = "the signature of this start is not the API's, or not over this spec, person and id"
            raise BadSignature(message, hint=HINT) from None

    async def _is_drifts(
        self, lifecycle: str, started: WorkflowExecutionStartedEventAttributes, sent: dict[str, Any]
    ) -> bool:
        """Did a drift check of ours start it, as the ledger says, in the monitor's name?"""
        if not started.HasField("parent_workflow_execution") or sent.get("submitted_by") != names.MONITOR:
            return False
        parent = started.parent_workflow_execution
        theirs = await self._started(parent.workflow_id, parent.run_id)
        if theirs.workflow_type.name != names.DRIFT_CHECK or theirs.task_queue.name != names.CONTROL:
            return False
        asked = _sent(theirs)
        return await asyncio.to_thread(_decided, self._store, asked, lifecycle)

    async def _went_on_before(self, sent: dict[str, Any]) -> bool:
        """Did a Reset make this run of a lifecycle that Everloop 0.1 began, before starts were signed?

        The journal names its submitter then; of a start that was refused it names nobody.
        """
        run = await self._executions.caller()
        if run.first_run_id == run.run_id or not sent.get("submitted_by"):
            return False
        return await asyncio.to_thread(_submitted_by, self._store, run) == str(sent["submitted_by"])

    async def _started(self, workflow_id: str, run_id: str) -> WorkflowExecutionStartedEventAttributes:
        request = GetWorkflowExecutionHistoryRequest(
            namespace=self._client.namespace,
            execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
            maximum_page_size=1,
        )
        answer = await self._client.workflow_service.get_workflow_execution_history(request)
        return answer.history.events[0].workflow_execution_started_event_attributes


def _sent(started: WorkflowExecutionStartedEventAttributes) -> dict[str, Any]:
    """The input as plain JSON: parsed as a record it would gain the fields of this version."""
    try:
        (payload,) = started.input.payloads
        found = json.loads(payload.data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _decided(store: Store, asked: dict[str, Any], lifecycle: str) -> bool:
    """Has the ledger a verdict on this model's window that names *lifecycle*?"""
    with store.read() as session:
        query = select(TriggerRow).where(
            TriggerRow.project == str(asked.get("project")),
            TriggerRow.model == str(asked.get("model")),
            TriggerRow.lifecycle == lifecycle,
            TriggerRow.verdict == "retrain",
        )
        judged = select(PerformanceRow).where(
            PerformanceRow.project == str(asked.get("project")),
            PerformanceRow.model == str(asked.get("model")),
            PerformanceRow.lifecycle == lifecycle,
            PerformanceRow.verdict == "retrain",
        )
        return session.exec(query).first() is not None or session.exec(judged).first() is not None


def _submitted_by(store: Store, run: Execution) -> str:
    """Whom the journal names for the first run of the lifecycle that *run* goes on with; empty when nobody."""
    with store.read() as session:
        query = select(JournalRow.body).where(
            JournalRow.workflow_id == run.workflow_id,
            JournalRow.run_id == run.first_run_id,
            JournalRow.type == "LifecycleSubmitted",
        )
        body = session.exec(query).first()
    return str(json.loads(body)["submitted_by"]) if body else ""
