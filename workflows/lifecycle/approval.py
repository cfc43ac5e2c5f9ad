"""The gate: people are asked, until an answer comes or its deadline has passed."""

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import CancelledError, ChildWorkflowError, TerminatedError
from temporalio.workflow import ParentClosePolicy

from everloop import names
from everloop.contracts import ApprovalAnswer, ApprovalRequest, EvidenceAnswer
from everloop.records import Evidence, Wait
from workflows.approval import Approval
from workflows.journal import Journal, until
from workflows.lifecycle.ended import Ended
from workflows.stage import Stages

GATE_OPENS = timedelta(seconds=10)


class Gate:
    """Opens an Approval, and opens it again when somebody ends it from outside."""

    def __init__(self, journal: Journal, stages: Stages) -> None:
        self._journal = journal
        self._stages = stages
        self.opened = False
        """It can be decided: its signal says so."""

    async def approved(self, evidence: EvidenceAnswer, open_for: timedelta) -> ApprovalAnswer:
        """The approval. Raises `Ended` where there is none."""
        self._stages.started("approve")
        deadline = workflow.now() + open_for
        workflow.upsert_search_attributes([names.NEEDS_APPROVAL.value_set(True), names.DEADLINE.value_set(deadline)])
        await self._journal.settle()
        answer = await self._answer(evidence, deadline)
        workflow.upsert_search_attributes([names.NEEDS_APPROVAL.value_set(False)])
        if answer.outcome != "approved":
            raise Ended(answer.outcome, answer.reason)
        self._stages.finished("approve", answer.reason)
        return answer

    async def _answer(self, evidence: EvidenceAnswer, deadline: datetime) -> ApprovalAnswer:
        """The gate's answer. One that is cancelled or terminated under us (a Reset does that) is opened again."""
        while True:
            try:
                return await self._asked(evidence, deadline)
            except ChildWorkflowError as error:
                ended_by_others = isinstance(error.cause, CancelledError | TerminatedError)
                if workflow.cancellation_reason() is not None or not ended_by_others:
                    raise

    async def _asked(self, evidence: EvidenceAnswer, deadline: datetime) -> ApprovalAnswer:
        asked, lifecycle = evidence.evidence, workflow.info().workflow_id
        self.opened = False
        gate = await workflow.start_child_workflow(
            Approval.run,
            ApprovalRequest(
                lifecycle=lifecycle,
                evidence=asked,
                evidence_digest=evidence.digest,
                evidence_text=evidence.text,
                keys=evidence.keys,
                deadline=deadline,
            ),
            id=names.approval_id(lifecycle),
            id_reuse_policy=WorkflowIDReusePolicy.TERMINATE_IF_RUNNING,
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            static_summary=f"Release version {asked.version} of {asked.model}?",
        )
        # A Reset can lose the signal: then the wait is said all the same.
        await until(lambda: self.opened, GATE_OPENS, "the gate opens")
        with self._journal.waiting(_wait(asked), needs="approval"):
            return await gate


def _wait(asked: Evidence) -> Wait:
    me = workflow.info().workflow_id
    return Wait(
        what=f"a decision on version {asked.version} of {asked.model}",
        since=workflow.now(),
        unblocks=f"`everloop approve {me}` or `everloop reject {me}`, or the approval page",
    )
