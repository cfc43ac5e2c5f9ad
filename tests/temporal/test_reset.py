"""A Reset in Temporal's UI: the lifecycle goes on, and people are asked again."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import select
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import WorkflowHandle

from everloop import names
from everloop.contracts import LifecycleAnswer, LifecycleRequest
from everloop.store import LeaseRequestRow
from tests.temporal.conftest import Stack, eventually


async def workflow_task_after(stack: Stack, lifecycle: str, activity: str = "", *, child: bool = False) -> int:
    """Event id of the first completed workflow task after *activity* was done (or the child had started)."""
    history = await stack.client.get_workflow_handle(lifecycle).fetch_history()
    scheduled = {
        event.event_id: event.activity_task_scheduled_event_attributes.activity_type.name for event in history.events
    }
    seen = False
    for event in history.events:
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED and not child:
            origin = event.activity_task_completed_event_attributes.scheduled_event_id
            seen = seen or scheduled[origin] == activity
        if event.event_type == EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED and child:
            seen = True
        if seen and event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            return event.event_id
    raise AssertionError("no such point in the history")


async def reset(stack: Stack, lifecycle: str, event_id: int) -> str:
    """What the UI's Reset button does. Returns the new run's id."""
    current = await stack.client.get_workflow_handle(lifecycle).describe()
    answer = await stack.client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=WorkflowExecution(workflow_id=lifecycle, run_id=current.run_id),
            reason="a person reset it",
            workflow_task_finish_event_id=event_id,
            request_id=str(uuid.uuid4()),
        )
    )
    return answer.run_id


async def test_a_reset_to_before_the_gate_asks_again_and_the_old_answer_does_not_count(stack: Stack) -> None:
    lifecycle = (await stack.submit()).id
    old = await stack.gate(lifecycle)
    event = await workflow_task_after(stack, lifecycle, "everloop.training.train")

    run = await reset(stack, lifecycle, event)
    fresh = await stack.gate(lifecycle, other_than=old.nonce)
    row = await stack.status(lifecycle, "waiting_approval")

    assert row.run_id == run
    assert fresh.nonce != old.nonce
    await stack.decide(lifecycle)
    await stack.status(lifecycle, "released")
    assert (await stack.verified()).differences == []


@pytest.mark.usefixtures("impatient")
async def test_a_reset_while_the_gate_is_open_returns_to_waiting(stack: Stack) -> None:
    lifecycle = (await stack.submit()).id
    old = await stack.gate(lifecycle)
    event = await workflow_task_after(stack, lifecycle, child=True)

    run = await reset(stack, lifecycle, event)
    await asyncio.sleep(1)
    await stack.journal.sweep()
    row = await stack.status(lifecycle, "waiting_approval")

    assert row.run_id == run
    assert (await stack.gate(lifecycle)).nonce == old.nonce  # Temporal hands the open gate over to the new run
    await stack.decide(lifecycle)
    assert (await stack.client.get_workflow_handle(lifecycle).result())["outcome"] == "released"
    await stack.status(lifecycle, "released")
    assert (await stack.verified()).differences == []


async def test_a_reset_after_the_release_to_before_the_gate_asks_again(stack: Stack) -> None:
    handle = await stack.submit()
    old = await stack.gate(handle.id)
    await stack.decide(handle.id)
    await handle.result()
    event = await workflow_task_after(stack, handle.id, "everloop.registry.evidence")

    await reset(stack, handle.id, event)
    fresh = await stack.gate(handle.id, other_than=old.nonce)
    assert fresh.status == "open"
    await stack.decide(handle.id)

    await stack.status(handle.id, "released")
    assert (await stack.verified()).differences == []


async def test_a_reset_of_a_terminated_lifecycle_leaves_a_clean_journal(stack: Stack) -> None:
    handle = await stack.submit()
    old = await stack.gate(handle.id)
    event = await workflow_task_after(stack, handle.id, "everloop.training.train")
    await handle.terminate(reason="by hand")
    await stack.journal.sweep()
    await stack.status(handle.id, "terminated")

    await reset(stack, handle.id, event)
    await stack.gate(handle.id, other_than=old.nonce)
    await stack.status(handle.id, "waiting_approval")

    assert (await stack.verified()).differences == []


async def test_a_lifecycle_terminated_in_temporals_ui_is_shown_as_such_and_gives_its_slot_back(stack: Stack) -> None:
    done = asyncio.Event()
    stack.compute.hooks["train"] = done.wait
    handle = await stack.submit()
    await eventually(lambda: "train" in stack.compute.stages())

    await handle.terminate(reason="by hand")
    await stack.journal.sweep()
    row = await stack.status(handle.id, "terminated")
    assert "by hand" in row.reason
    done.set()

    other = await stack.submit("other")
    await stack.gate(other.id)
    assert (await stack.verified()).differences == []
    assert names.approval_id(other.id)


async def test_a_lifecycle_terminated_before_it_could_write_anything_is_in_the_list_all_the_same(stack: Stack) -> None:
    handle = await stack.client.start_workflow(
        names.LIFECYCLE,
        LifecycleRequest(spec=stack.spec(), body_digest="0" * 64, submitted_by="ann"),
        id=f"{stack.prefix}-never-begun",
        task_queue=names.CONTROL,
        start_delay=timedelta(hours=1),
    )
    await handle.terminate(reason="by hand")

    await stack.journal.sweep()

    row = await stack.status(handle.id, "terminated")
    # Nobody has looked at who signed the start: it names nobody.
    assert (row.submitted_by, row.model) == ("", stack.spec().model)
    assert "by hand" in row.reason
    assert (await stack.verified()).differences == []


@pytest.mark.usefixtures("impatient")
async def test_a_reset_while_it_waits_for_a_slot_gets_one_all_the_same(stack: Stack) -> None:
    done, holder, waiting = await one_holds_the_slot_that_another_waits_for(stack)

    before = (await waiting.describe()).run_id
    await reset(stack, waiting.id, await last_workflow_task(stack, waiting.id))
    await eventually(lambda: buried(stack, before))  # the pool has looked
    done.set()

    await stack.gate(holder.id)
    await stack.gate(waiting.id)
    assert (await stack.verified()).differences == []


async def test_a_pool_that_is_ended_by_hand_comes_back_for_who_waits(stack: Stack) -> None:
    done, holder, waiting = await one_holds_the_slot_that_another_waits_for(stack)

    await stack.client.get_workflow_handle(names.pool_id(names.DEFAULT_POOL)).terminate(reason="by hand")
    await holder.terminate(reason="by hand")
    done.set()

    await stack.gate(waiting.id)


Handle = WorkflowHandle[Any, LifecycleAnswer]


async def one_holds_the_slot_that_another_waits_for(stack: Stack) -> tuple[asyncio.Event, Handle, Handle]:
    """What lets the holder's job end, the holder, and who waits and says so."""
    done = asyncio.Event()
    stack.compute.hooks["train"] = done.wait
    holder = await stack.submit("holder")
    assert await eventually(lambda: "train" in stack.compute.stages())
    waiting = await stack.submit("waiting")
    assert await eventually(lambda: (row := stack.row(waiting.id)) and row.wait_what == "a free slot")
    return done, holder, waiting


def buried(stack: Stack, run_id: str) -> bool:
    """Whether the request of that run waits no longer."""
    with stack.store.read() as session:
        request = session.exec(select(LeaseRequestRow).where(LeaseRequestRow.run_id == run_id)).one()
    return request.state != "queued"


async def last_workflow_task(stack: Stack, lifecycle: str) -> int:
    history = await stack.client.get_workflow_handle(lifecycle).fetch_history()
    done = [e.event_id for e in history.events if e.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED]
    return done[-1]


async def test_a_reset_to_just_before_the_rollout_of_a_released_lifecycle_releases_again(stack: Stack) -> None:
    """Its new run has written nothing yet when the rollout asks: the sweep fills that in."""
    lifecycle = (await stack.submit()).id
    await stack.decide(lifecycle)
    await stack.status(lifecycle, "released")
    completed = 0
    for event in (await stack.client.get_workflow_handle(lifecycle).fetch_history()).events:
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            completed = event.event_id
        child = event.start_child_workflow_execution_initiated_event_attributes
        if child.workflow_type.name == names.RELEASE:
            break

    run = await reset(stack, lifecycle, completed)
    await asyncio.sleep(1)
    await stack.journal.sweep()
    await eventually(lambda: (row := stack.row(lifecycle)) and row.run_id == run and row.status != "running")
    row = stack.row(lifecycle)
    assert row is not None
    assert (row.status, row.error) == ("released", {})
    assert (await stack.verified()).differences == []
