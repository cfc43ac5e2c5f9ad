"""The gate: only a fitting decision that the API signed counts."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import select
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution
from temporalio.api.update.v1 import Input, Meta, Request, WaitPolicy
from temporalio.api.workflowservice.v1 import UpdateWorkflowExecutionRequest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from everloop import names, signing
from everloop.contracts import ReleaseRequest
from everloop.records import Verdict, Version
from everloop.store import RouteRow, VersionRow
from tests.temporal.conftest import Stack, eventually


async def refused(stack: Stack, lifecycle: str, decision: object) -> ApplicationError:
    handle = stack.client.get_workflow_handle(names.approval_id(lifecycle))
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await handle.execute_update(names.DECIDE, decision)
    assert isinstance(caught.value.cause, ApplicationError)
    return caught.value.cause


async def still_open(stack: Stack, lifecycle: str) -> bool:
    row = await stack.status(lifecycle, "waiting_approval")
    approval = stack.approval(lifecycle)
    return row.wait_what.startswith("a decision on version 1") and approval is not None and approval.status == "open"


async def test_a_decision_without_a_valid_signature_is_refused_and_the_gate_stays_open(stack: Stack) -> None:
    lifecycle = (await stack.submit()).id
    good = stack.decision(await stack.gate(lifecycle))

    unsigned = good.model_copy(update={"signature": ""})
    forged = good.model_copy(update={"signature": base64.b64encode(b"x" * 64).decode()})
    altered = good.model_copy(update={"claim": good.claim.model_copy(update={"person": "mallory"})})
    stranger = good.model_copy(update={"key_id": "0" * 16})

    for decision in (unsigned, forged, altered, stranger):
        assert (await refused(stack, lifecycle, decision)).type == "BadSignature"
    assert await still_open(stack, lifecycle)


async def test_what_a_person_types_into_temporals_ui_is_refused_and_the_gate_stays_open(stack: Stack) -> None:
    lifecycle = (await stack.submit()).id
    await stack.gate(lifecycle)

    for typed in (b'{"verdict": "approve"}', b'"approve"', b"true", b"null", b"[]"):
        with pytest.raises(WorkflowUpdateFailedError):
            await typed_update(stack, lifecycle, typed)

    assert await still_open(stack, lifecycle)
    await stack.decide(lifecycle)
    await stack.status(lifecycle, "released")


async def typed_update(stack: Stack, lifecycle: str, data: bytes) -> None:
    """What the UI's *Send an Update* dialog does: one JSON argument, no identity."""
    payload = Payload(metadata={"encoding": b"json/plain"}, data=data)
    answer = await stack.client.workflow_service.update_workflow_execution(
        UpdateWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=WorkflowExecution(workflow_id=names.approval_id(lifecycle)),
            wait_policy=WaitPolicy(lifecycle_stage=3),  # type: ignore[arg-type]
            request=Request(meta=Meta(), input=Input(name=names.DECIDE, args=Payloads(payloads=[payload]))),
        )
    )
    if answer.outcome.HasField("failure"):
        raise WorkflowUpdateFailedError(RuntimeError(answer.outcome.failure.message))


async def test_a_decision_about_other_bytes_or_another_opening_is_refused(stack: Stack) -> None:
    lifecycle = (await stack.submit()).id
    row = await stack.gate(lifecycle)

    for changes, kind in (
        ({"nonce": "an earlier opening"}, "GateClosed"),
        ({"gate": "another/approval"}, "GateClosed"),
        ({"model_digest": "0" * 64}, "EvidenceChanged"),
        ({"evidence_digest": "0" * 64}, "EvidenceChanged"),
        ({"champion_digest": "0" * 64}, "EvidenceChanged"),
        ({"expires_at": datetime.now(UTC) - timedelta(seconds=1)}, "GateClosed"),
        ({"verdict": Verdict.REJECT, "comment": "  "}, "Invalid"),
    ):
        assert (await refused(stack, lifecycle, stack.decision(row, **changes))).type == kind  # type: ignore[arg-type]
    assert await still_open(stack, lifecycle)


async def test_a_rejection_ends_the_lifecycle_with_its_reason_and_releases_nothing(stack: Stack) -> None:
    handle = await stack.submit()

    await stack.decide(handle.id, Verdict.REJECT, comment="too few rows")
    answer = await handle.result()

    assert (answer.outcome, answer.reason) == ("rejected", "rejected by grace: too few rows")
    approval = stack.approval(handle.id)
    assert approval is not None and approval.status == "rejected" and len(approval.decisions) == 1
    assert (await stack.verified()).differences == []


async def test_the_same_decision_sent_again_settles_nothing_new(stack: Stack) -> None:
    lifecycle = (await stack.submit()).id
    decision = stack.decision(await stack.gate(lifecycle))
    handle = stack.client.get_workflow_handle(names.approval_id(lifecycle))

    first = await handle.execute_update(names.DECIDE, decision, id="one")
    await stack.status(lifecycle, "released")
    row = stack.approval(lifecycle)

    assert first["person"] == "grace"
    assert row is not None and len(row.decisions) == 1


async def test_an_approval_signed_for_an_older_champion_opens_the_gate_again(stack: Stack) -> None:
    first, second = (await stack.submit("first")).id, (await stack.submit("second")).id
    await stack.gate(first)
    old = await stack.gate(second)

    await stack.decide(first)
    await stack.status(first, "released")
    await stack.client.get_workflow_handle(old.id).execute_update(names.DECIDE, stack.decision(old))
    fresh = await stack.gate(second, other_than=old.nonce)

    assert fresh.evidence["champion_digest"] != old.evidence["champion_digest"]
    assert fresh.evidence["champion_version"] == (await stack.status(first, "released")).version
    await stack.decide(second)
    await stack.status(second, "released")
    releases = [
        (row.status, row.error.get("message", "")) for row in stack.stage_rows(second) if row.stage == "release"
    ]
    assert [status for status, _ in releases] == ["failed", "done"]
    assert "champion" in releases[0][1]
    assert (await stack.verified()).differences == []


async def test_a_gate_that_nobody_decides_expires_at_its_deadline(stack: Stack) -> None:
    handle = await stack.submit(gate={"deadline": "PT1M"})
    row = await stack.gate(handle.id)

    assert timedelta(seconds=50) < row.deadline - row.opened_at <= timedelta(seconds=60)
    assert signing.digest(row.evidence) == row.evidence_digest


async def test_cancelling_lifecycles_in_the_moment_in_which_their_gates_open_closes_both(stack: Stack) -> None:
    """A gate that tells its lifecycle that it is open must not forget the cancel that comes meanwhile."""
    handles = [await stack.submit(f"moment-{number}") for number in range(6)]
    for handle in handles:
        await stack.gate(handle.id)
        await handle.cancel()

    for handle in handles:
        await stack.status(handle.id, "cancelled")
        await eventually(lambda handle=handle: (row := stack.approval(handle.id)) and row.status == "cancelled")
    assert (await stack.verified()).differences == []


async def test_cancelling_a_lifecycle_at_its_gate_closes_both(stack: Stack) -> None:
    handle = await stack.submit()
    await stack.gate(handle.id)

    await handle.cancel()
    await stack.status(handle.id, "cancelled")

    await eventually(lambda: (row := stack.approval(handle.id)) and row.status == "cancelled")
    assert (await stack.verified()).differences == []


async def test_a_rollout_started_by_hand_releases_nothing_even_with_a_signed_approval(stack: Stack) -> None:
    handle = await stack.submit()
    await stack.decide(handle.id, Verdict.REJECT, comment="no")
    await handle.result()
    row = stack.approval(handle.id)
    assert row is not None
    with stack.store.read() as session:
        version = Version.model_validate_json(session.exec(select(VersionRow)).one().record)
    signed = stack.decision(row)  # as if the API had signed an approval of exactly this

    made_up = ReleaseRequest(
        version=version,
        submitted_by="ada",
        trigger="manual",
        evidence_digest=row.evidence_digest,
        champion_digest="",
        nonce=row.nonce,
        gate=row.id,
        decisions=(signed,),
    )
    with pytest.raises(WorkflowFailureError) as caught:
        await stack.client.execute_workflow(
            names.RELEASE,
            made_up,
            id=names.release_id("default", version.model),
            task_queue=names.CONTROL,
        )

    assert "not started by the lifecycle" in str(caught.value.cause.cause)  # type: ignore[union-attr]
    with stack.store.read() as session:
        assert session.exec(select(RouteRow)).all() == []


async def test_after_a_change_of_champion_the_evidence_claims_no_comparison_with_it(stack: Stack) -> None:
    first, second = await stack.submit("first"), await stack.submit("second")
    await stack.gate(first.id)
    old = await stack.gate(second.id)
    await stack.decide(first.id)
    await stack.status(first.id, "released")
    await stack.client.get_workflow_handle(old.id).execute_update(names.DECIDE, stack.decision(old))

    fresh = await stack.gate(second.id, other_than=old.nonce)

    assert fresh.evidence["comparison"]["verdict"] == "no_fresh_rows"
    assert "were never compared" in fresh.evidence["comparison"]["reason"]
