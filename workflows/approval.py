"""The gate: people decide here, and only a decision signed by the API counts.

The update is the decision; tables only show it. One typed by hand into Temporal's UI is refused.
"""

import asyncio
import contextlib
from typing import Literal

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from everloop import names, signing
from everloop.contracts import ApprovalAnswer, ApprovalRequest
from everloop.errors import BadSignature
from everloop.events import ApprovalClosed, ApprovalDecided, ApprovalOpened
from everloop.records import Claim, Decision, Verdict, Wait
from workflows.journal import Journal, heed_a_cancel

Outcome = Literal["approved", "rejected", "expired", "cancelled"]


@workflow.defn(name=names.APPROVAL)
class Approval:
    """Waits for signed decisions about one version, or until the deadline."""

    _request: ApprovalRequest

    def __init__(self) -> None:
        self._begun = False
        self._nonce = str(workflow.uuid4())
        self._decisions: list[Decision] = []
        self._journal = Journal()
        self._closed = False

    @workflow.run
    async def run(self, request: ApprovalRequest) -> ApprovalAnswer:
        self._request, self._begun = request, True
        try:
            await self._open()
            answer = await self._decided()
        except asyncio.CancelledError:
            await self._close("cancelled", "the lifecycle was cancelled or reset")
            raise
        await self._close(answer.outcome, answer.reason)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return answer

    @workflow.update(name=names.DECIDE, description="A decision signed by the API; anything else is refused")
    async def decide(self, decision: Decision) -> Claim:
        self._decisions.append(decision)
        return decision.claim

    @decide.validator
    def check(self, decision: Decision) -> None:
        """Refuse, without a trace in the history, whatever is not a fitting signed decision."""
        if not self._begun:
            raise _refusal("GateClosed", "this gate is not open yet", "decide again in a moment")
        try:
            signing.verify(decision, self._request.keys)
        except BadSignature as error:
            raise _refusal("BadSignature", str(error), error.hint) from None
        claim = decision.claim
        if self._closed or self._decisions:
            raise _refusal("GateClosed", "this gate has been decided")
        if (claim.gate, claim.nonce) != (workflow.info().workflow_id, self._nonce):
            raise _refusal("GateClosed", "this decision belongs to another opening of the gate")
        evidence = self._request.evidence
        if (claim.evidence_digest, claim.model_digest, claim.champion_digest) != (
            self._request.evidence_digest,
            evidence.model_digest,
            evidence.champion_digest,
        ):
            raise _refusal("EvidenceChanged", "the decision is about other evidence", "look at the page again")
        if claim.expires_at <= workflow.now():
            raise _refusal("GateClosed", "the decision has expired", "decide again")
        if claim.verdict is Verdict.REJECT and not claim.comment.strip():
            raise _refusal("Invalid", "a rejection needs a comment", "say why")

    async def _open(self) -> None:
        request = self._request
        self._journal.record(
            ApprovalOpened(
                lifecycle=request.lifecycle,
                nonce=self._nonce,
                evidence=request.evidence,
                evidence_digest=request.evidence_digest,
                evidence_text=request.evidence_text,
                deadline=request.deadline,
            )
        )
        self._journal.say(f"**{self._wait().sentence()}**\n\n{_card(request)}")
        await self._journal.settle()
        with contextlib.suppress(ApplicationError):  # the lifecycle is gone: the deadline ends this gate
            await workflow.get_external_workflow_handle(request.lifecycle).signal(names.GATE_OPENED)
        heed_a_cancel()

    async def _close(self, outcome: Outcome, reason: str) -> None:
        self._closed = True
        self._journal.record(ApprovalClosed(outcome=outcome, reason=reason))
        await self._journal.settle()

    async def _decided(self) -> ApprovalAnswer:
        left = self._request.deadline - workflow.now()
        try:
            await workflow.wait_condition(
                lambda: bool(self._decisions), timeout=left, timeout_summary="the gate's deadline"
            )
        except TimeoutError:
            return ApprovalAnswer(outcome="expired", nonce=self._nonce, reason="nobody decided before the deadline")
        decision = self._decisions[0]
        claim = decision.claim
        self._journal.record(ApprovalDecided(claim=claim, key_id=decision.key_id))
        approved = claim.verdict is Verdict.APPROVE
        return ApprovalAnswer(
            outcome="approved" if approved else "rejected",
            nonce=self._nonce,
            reason=f"{'approved' if approved else 'rejected'} by {claim.person}" + _said(claim.comment),
            decisions=tuple(self._decisions),
        )

    def _wait(self) -> Wait:
        evidence = self._request.evidence
        return Wait(
            what=f"a decision on version {evidence.version} of {evidence.model}",
            since=workflow.now(),
            unblocks=f"`everloop approve {self._request.lifecycle}` or `everloop reject {self._request.lifecycle}`",
        )


def _card(request: ApprovalRequest) -> str:
    evidence = request.evidence
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in evidence.metrics.items())
    return (
        f"{evidence.comparison.reason}\n\n| metric | value |\n|---|---|\n{rows}\n\nModel `{evidence.model_digest[:12]}`"
    )


def _said(comment: str) -> str:
    return f": {comment}" if comment.strip() else ""


def _refusal(kind: str, message: str, hint: str = "") -> ApplicationError:
    return ApplicationError(message, "", hint, type=kind, non_retryable=True)
