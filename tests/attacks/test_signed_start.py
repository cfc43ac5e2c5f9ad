"""Who reaches Temporal's port cannot start a lifecycle as anybody: the API signs each start."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlmodel import select
from temporalio import workflow
from temporalio.client import WorkflowHandle
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from everloop import names, signing, starts
from everloop.contracts import LifecycleAnswer, LifecycleRequest
from everloop.store import JournalRow
from tests.temporal.conftest import Stack
from tests.temporal.test_reset import reset


def request(stack: Stack, **changes: Any) -> LifecycleRequest:
    spec = stack.spec()
    made = LifecycleRequest(spec=spec, body_digest=signing.digest(spec), submitted_by="grace")
    return made.model_copy(update=changes)


async def start(stack: Stack, name: str, request: LifecycleRequest) -> WorkflowHandle[Any, LifecycleAnswer]:
    """As `temporal workflow start` does it."""
    return await stack.client.start_workflow(
        names.LIFECYCLE, request, id=f"{stack.prefix}-{name}", task_queue=names.CONTROL, result_type=LifecycleAnswer
    )


async def refused(stack: Stack, handle: WorkflowHandle[Any, LifecycleAnswer]) -> str:
    """Why it ended, after it was seen that nothing ran and nobody is named for it."""
    answer = await handle.result()
    row = await stack.status(handle.id, "failed")

    assert answer.outcome == "failed"
    assert row.submitted_by == ""
    assert (await stack.verified()).differences == []
    events = (await handle.fetch_history()).events
    asked = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert set(asked) == {"everloop.lifecycle.admit", names.JOURNAL_APPEND}
    return answer.reason


async def test_an_unsigned_start_ends_with_a_sentence(stack: Stack) -> None:
    handle = await start(stack, "unsigned", request(stack))

    assert "not signed by the API" in await refused(stack, handle)


async def test_a_signature_over_something_else_is_worth_nothing(stack: Stack, tmp_path: Path) -> None:
    signing.create_keys(tmp_path / "other")
    signed = starts.signed(stack.signer, f"{stack.prefix}-true", request(stack))
    another_key = starts.signed(signing.Signer(tmp_path / "other"), f"{stack.prefix}-key", request(stack))
    forged = {
        "true": signed.model_copy(update={"submitted_by": "ada"}),
        "id": signed,
        "key": another_key,
        "named": another_key.model_copy(update={"key_id": stack.signer.key_id}),
    }
    spec = starts.signed(stack.signer, f"{stack.prefix}-spec", request(stack))
    forged["spec"] = spec.model_copy(update={"spec": stack.spec(training={"rounds": 7})})
    trigger = starts.signed(stack.signer, f"{stack.prefix}-trigger", request(stack))
    forged["trigger"] = trigger.model_copy(update={"trigger": "drift:2026-01-01T00:00:00Z"})

    for name, made in forged.items():
        assert "is not the API's" in await refused(stack, await start(stack, name, made)), name


@workflow.defn(name=names.DRIFT_CHECK)
class ForeignCheck:
    """A workflow of the right name, run by somebody else's worker."""

    @workflow.run
    async def run(self, forged: LifecycleRequest, lifecycle: str) -> LifecycleAnswer:
        return await workflow.execute_child_workflow(
            names.LIFECYCLE, forged, id=lifecycle, task_queue=names.CONTROL, result_type=LifecycleAnswer
        )


async def test_a_start_in_another_name_that_is_ended_before_it_was_looked_at_names_nobody(stack: Stack) -> None:
    handle = await stack.client.start_workflow(
        names.LIFECYCLE, request(stack, submitted_by="ada"), id=f"{stack.prefix}-never", task_queue=names.CONTROL,
        start_delay=timedelta(hours=1),
    )  # fmt: skip
    await handle.terminate(reason="by who started it")

    row = await stack.status(handle.id, "terminated")

    assert row.submitted_by == ""
    assert (await stack.verified()).differences == []


async def test_a_lifecycle_that_was_begun_before_starts_were_signed_goes_on_after_a_reset(stack: Stack) -> None:
    handle = await start(stack, "before", request(stack))
    first = (await handle.describe()).run_id
    await handle.result()
    await stack.status(handle.id, "failed")

    again = await reset(stack, handle.id, await first_task(handle))
    answer = await stack.client.get_workflow_handle(handle.id, run_id=again).result()
    assert answer["outcome"] == "failed"  # a Reset of what was refused is refused

    with stack.store.write() as session:
        query = select(JournalRow).where(JournalRow.run_id == first, JournalRow.type == "LifecycleSubmitted")
        row = session.exec(query).one()
        row.body = row.body.replace('"submitted_by":""', '"submitted_by":"grace"')  # what Everloop 0.1 wrote
        session.add(row)
    await reset(stack, handle.id, await first_task(handle))
    assert (await stack.status(handle.id, "waiting_approval")).submitted_by == "grace"


async def first_task(handle: WorkflowHandle[Any, LifecycleAnswer]) -> int:
    events = (await handle.fetch_history()).events
    return next(each.event_id for each in events if each.HasField("workflow_task_completed_event_attributes"))


async def test_a_retraining_that_no_check_of_ours_decided_on_is_refused(stack: Stack) -> None:
    forged = request(stack, submitted_by=names.MONITOR, trigger="drift:2026-01-01T00:00:00Z")
    queue = f"{stack.prefix}-foreign"
    child = f"{stack.prefix}-retrain"
    foreign = Worker(
        stack.client, task_queue=queue, workflows=[ForeignCheck], workflow_runner=UnsandboxedWorkflowRunner()
    )
    async with foreign:
        await stack.client.execute_workflow(
            names.DRIFT_CHECK, args=[forged, child], id=f"{queue}-check", task_queue=queue, result_type=LifecycleAnswer
        )

    assert "not signed by the API" in await refused(
        stack, stack.client.get_workflow_handle(child, result_type=LifecycleAnswer)
    )


async def test_what_a_later_version_adds_to_a_spec_does_not_void_a_signature(stack: Stack) -> None:
    """What counts is what was sent, not what this version reads into it."""
    signed = starts.signed(stack.signer, f"{stack.prefix}-older", request(stack))
    sent = signed.model_dump(mode="json")
    del sent["spec"]["training"]
    older = {"spec": sent["spec"], "body_digest": sent["body_digest"], "submitted_by": "grace", "trigger": "manual"}
    signature = stack.signer.sign_bytes(starts._claim(f"{stack.prefix}-older", older))

    handle = await start(stack, "older", older | {"key_id": stack.signer.key_id, "signature": signature})  # type: ignore[arg-type]

    row = await stack.status(handle.id, "waiting_approval")
    assert row.submitted_by == "grace"
