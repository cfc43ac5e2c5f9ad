"""A person pauses a lifecycle: its job ends, its slot goes to others, and a resume goes on with the same stage."""

import asyncio

import pytest
from sqlmodel import col, select
from temporalio import activity
from temporalio.client import WorkflowUpdateFailedError

from everloop import names
from everloop.contracts import PauseRequest
from everloop.errors import ParityFailed
from everloop.store import LeaseRequestRow
from tests.temporal.conftest import Stack, eventually
from tests.temporal.test_stage import failing, live_leases


async def tell(stack: Stack, lifecycle: str, action: str, reason: str = "") -> None:
    request = PauseRequest.model_validate({"action": action, "person": "ada", "reason": reason})
    await stack.client.get_workflow_handle(lifecycle).execute_update(names.PAUSE, request)


def holding(stack: Stack, stage: str) -> tuple[asyncio.Event, list[str]]:
    """Let *stage* run until it is cancelled; told when it begins and how it ended."""
    begun, ends = asyncio.Event(), []

    async def wait() -> None:
        if ends:
            return
        begun.set()
        try:
            while True:
                activity.heartbeat()  # by its answers a cancel comes
                await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    stack.compute.hooks[stage] = wait
    return begun, ends


async def test_a_pause_ends_the_job_frees_the_slot_and_a_resume_goes_on_with_that_stage(stack: Stack) -> None:
    begun, ends = holding(stack, "train")
    handle = await stack.submit()
    await begun.wait()

    await tell(stack, handle.id, "pause", "the machine is needed")
    row = await eventually(lambda: (row := stack.row(handle.id)) and row.wait_what.startswith(names.A_RESUME) and row)
    assert row.wait_what == "a resume (ada paused it: the machine is needed)"
    assert row.wait_unblocks == f"`everloop resume {handle.id}`"
    assert ends == ["cancelled"]
    assert await eventually(lambda: live_leases(stack) == 0)
    other = await stack.submit("other", model=f"other-{stack.prefix}")  # the slot is free for others
    await stack.gate(other.id)
    assert stack.compute.stages().count("train") == 2

    await tell(stack, handle.id, "resume")
    await stack.gate(handle.id)
    assert stack.compute.stages().count("train") == 3
    assert stack.compute.stages().count("prepare") == 2  # nothing before it is done again
    rows = [(row.stage, row.status) for row in stack.stage_rows(handle.id) if row.stage == "train"]
    assert rows == [("train", "paused"), ("train", "done")]
    assert (await stack.verified()).differences == []


@pytest.mark.history
async def test_who_is_paused_while_it_waits_for_a_slot_leaves_the_queue_and_says_so(stack: Stack) -> None:
    begun, _ = holding(stack, "train")
    busy = await stack.submit("busy", model=f"busy-{stack.prefix}")
    await begun.wait()
    handle = await stack.submit()
    await eventually(lambda: (row := stack.row(handle.id)) and row.wait_what == "a free slot")

    await tell(stack, handle.id, "pause", "not today")
    row = await eventually(lambda: (row := stack.row(handle.id)) and row.wait_what.startswith(names.A_RESUME) and row)
    assert row.wait_what == "a resume (ada paused it: not today)"
    assert await eventually(lambda: queued(stack) == 0)

    await busy.cancel()
    await stack.status(busy.id, "cancelled")
    await tell(stack, handle.id, "resume")
    await stack.gate(handle.id)
    rows = [(row.stage, row.status) for row in stack.stage_rows(handle.id)][:2]
    assert rows == [("snapshot", "paused"), ("snapshot", "done")]
    assert (await stack.verified()).differences == []


def queued(stack: Stack) -> int:
    with stack.store.read() as session:
        waiting = select(LeaseRequestRow).where(col(LeaseRequestRow.state) == "queued")
        return len(session.exec(waiting).all())


async def test_a_pause_lasts_until_a_resume_and_a_cancel_ends_it_too(stack: Stack) -> None:
    begun, _ = holding(stack, "prepare")
    handle = await stack.submit()
    await begun.wait()
    await tell(stack, handle.id, "pause")
    await tell(stack, handle.id, "pause")  # the same again changes nothing
    await eventually(lambda: (row := stack.row(handle.id)) and row.wait_what.startswith(names.A_RESUME))

    await handle.cancel()

    row = await stack.status(handle.id, "cancelled")
    assert row.wait_what == ""
    assert (await stack.verified()).differences == []


async def test_a_cancel_of_a_running_job_is_no_pause(stack: Stack) -> None:
    begun, ends = holding(stack, "train")
    handle = await stack.submit()
    await begun.wait()

    await handle.cancel()

    await stack.status(handle.id, "cancelled")
    assert ends == ["cancelled"]
    assert [row.status for row in stack.stage_rows(handle.id) if row.stage == "train"] == ["cancelled"]


async def test_what_cannot_be_paused_or_resumed_is_refused_with_the_reason(stack: Stack) -> None:
    stack.compute.hooks["export"] = failing(ParityFailed("odd"))
    parked = await stack.submit("parked", model=f"parked-{stack.prefix}")
    await stack.status(parked.id, "needs_attention")
    del stack.compute.hooks["export"]
    asked = await stack.submit("asked")
    await stack.gate(asked.id)

    for lifecycle, action, words in (
        (parked.id, "pause", "waits for a person"),
        (asked.id, "pause", "at stage approve it runs no job"),
        (asked.id, "resume", "is not paused"),
    ):
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await tell(stack, lifecycle, action)
        assert words in str(refused.value.cause)


@pytest.mark.parametrize("stage", ["validate", "train", "evaluate", "register"])
async def test_a_lifecycle_that_is_to_go_until_a_stage_ends_well_after_it_and_says_so(stack: Stack, stage: str) -> None:
    handle = await stack.submit(until=stage)

    answer = await handle.result()

    assert answer.outcome == "done"
    assert answer.reason.startswith(f"it was to go until {stage}: ")
    row = await stack.status(handle.id, "done")
    assert (row.stage, row.reason) == (stage, answer.reason)
    assert [each.status for each in stack.stage_rows(handle.id)] == ["done"] * len(stack.stage_rows(handle.id))
    assert live_leases(stack) == 0
    assert (await stack.verified()).differences == []
