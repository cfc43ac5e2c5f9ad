"""How stages fail, park, and go on."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import col, select
from temporalio.client import (
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)

from everloop import names
from everloop.contracts import AttendRequest, LifecycleAnswer
from everloop.errors import ComputeLost, ParityFailed, TargetUnusable
from everloop.records import Code, Column
from everloop.specs import LifecycleSpec
from everloop.store import LeaseRow, MonitorRow, RouteRow
from tests.temporal.conftest import Stack, eventually


def failing(error: Exception, times: int = 10**9) -> Callable[[], None]:
    left = [times]

    def fail() -> None:
        if left[0] > 0:
            left[0] -= 1
            raise error

    return fail


async def attend(stack: Stack, lifecycle: str, action: str, stage: str = "") -> None:
    request = AttendRequest.model_validate({"action": action, "person": "ada", "stage": stage})
    await stack.client.get_workflow_handle(lifecycle).execute_update(names.ATTEND, request)


def live_leases(stack: Stack) -> int:
    with stack.store.read() as session:
        return len(session.exec(select(LeaseRow).where(col(LeaseRow.state).in_(("offered", "active")))).all())


async def test_a_permanent_failure_parks_the_lifecycle_without_its_slot_and_says_what_helps(stack: Stack) -> None:
    error = TargetUnusable("class 'x' has one row", field="status", hint="drop it")
    error.kept = [stack.artifacts.put(b"drawn before it failed", "rows.png").model_dump()]
    stack.compute.hooks["validate"] = failing(error)

    handle = await stack.submit()
    row = await stack.status(handle.id, "needs_attention")

    assert row.error["error"] == "TargetUnusable"
    assert (row.error["field"], row.error["hint"]) == ("status", "drop it")
    assert row.error["kept"] == error.kept
    assert (
        row.wait_unblocks
        == f"`everloop retry {handle.id}`, `everloop skip {handle.id}` or `everloop abort {handle.id}`"
    )
    assert await eventually(lambda: live_leases(stack) == 0)
    assert stack.compute.stages().count("validate") == 1


async def test_a_request_too_large_to_be_sent_parks_the_lifecycle_and_names_the_field(stack: Stack) -> None:
    stack.compute.features = tuple(Column(name=f"{n}".zfill(400), kind="number") for n in range(120))

    handle = await stack.submit(features={"exclude": ["x" * 200] * 100})
    row = await stack.status(handle.id, "needs_attention")

    assert (row.stage, row.error["error"]) == ("train", "TooLarge")
    assert "prepared" in row.error["message"]
    await attend(stack, handle.id, "abort")
    await stack.status(handle.id, "aborted")
    assert (await stack.verified()).differences == []


async def test_retry_runs_the_failed_stage_again_and_nothing_before_it(stack: Stack) -> None:
    stack.compute.hooks["export"] = failing(ParityFailed("3 rows differ"), times=1)
    handle = await stack.submit()
    await stack.status(handle.id, "needs_attention")

    await attend(stack, handle.id, "retry", stage="export")
    await stack.decide(handle.id)
    await handle.result()

    stages = stack.compute.stages()
    assert stages.count("export") == 2
    assert all(stages.count(stage) == 1 for stage in ("snapshot", "prepare", "train", "refit"))
    assert (await stack.verified()).differences == []


@pytest.mark.parametrize("stage", ["train", "refit"])
async def test_retry_of_a_stage_that_called_a_users_code_reads_the_code_again(stack: Stack, stage: str) -> None:
    stack.compute.code = Code(requirements=("idna",))
    stack.compute.hooks[stage] = failing(ParityFailed("3 rows differ"), times=1)
    handle = await stack.submit(trainer="mine:fit")
    await stack.status(handle.id, "needs_attention")

    stack.compute.code = Code(requirements=("idna==3",))
    await attend(stack, handle.id, "retry", stage=stage)
    row = await stack.gate(handle.id)

    asked = [request for name, request in stack.compute.calls if name == stage]
    assert [request.code.requirements for request in asked] == [("idna",), ("idna==3",)]
    assert stack.compute.stages().count("snapshot") == 2
    assert row.evidence["code_digest"] == stack.compute.code.digest
    await handle.cancel()


async def test_what_watches_a_release_has_the_code_that_was_approved(stack: Stack) -> None:
    archive = stack.artifacts.put(b"the code", "code.tar")
    stack.compute.code = Code(archive=archive)
    handle = await stack.submit(trainer="mine:fit", code="/home/ada/code", monitor={})
    await stack.decide(handle.id)

    assert (await handle.result()).outcome == "released"
    with stack.store.read() as session:
        row = session.get_one(MonitorRow, ("default", f"credit-{stack.prefix}"))
    assert LifecycleSpec.model_validate_json(row.spec).code == f"sha256:{archive.sha256}"


async def test_validate_can_be_skipped_and_train_cannot(stack: Stack) -> None:
    stack.compute.hooks["validate"] = failing(TargetUnusable("odd"))
    stack.compute.hooks["train"] = failing(ParityFailed("odd"))
    handle = await stack.submit()
    await stack.status(handle.id, "needs_attention")

    await attend(stack, handle.id, "skip")
    await eventually(lambda: (row := stack.row(handle.id)) and row.error.get("stage") == "train")

    with pytest.raises(WorkflowUpdateFailedError, match="Workflow update failed"):
        await attend(stack, handle.id, "skip")
    assert (await stack.status(handle.id, "needs_attention")).stage == "train"


async def test_abort_ends_a_parked_lifecycle_with_the_reason(stack: Stack) -> None:
    stack.compute.hooks["train"] = failing(ParityFailed("no"))
    handle = await stack.submit()
    await stack.status(handle.id, "needs_attention")

    await attend(stack, handle.id, "abort")

    assert (await handle.result()).outcome == "aborted"
    assert (await stack.verified()).differences == []


async def test_attending_what_is_not_parked_is_refused(stack: Stack) -> None:
    handle = await stack.submit()
    await stack.gate(handle.id)

    with pytest.raises(WorkflowUpdateFailedError):
        await attend(stack, handle.id, "retry")
    assert (await stack.status(handle.id, "waiting_approval")).id == handle.id


async def test_a_transient_failure_is_tried_again_by_itself(stack: Stack) -> None:
    stack.compute.hooks["train"] = failing(ComputeLost(), times=1)

    handle = await stack.submit()
    await stack.gate(handle.id)

    assert stack.compute.stages().count("train") == 2


async def test_a_challenger_that_does_not_win_ends_before_anybody_is_asked(stack: Stack) -> None:
    first = await stack.submit("first")
    await stack.decide(first.id)
    await first.result()
    stack.compute.verdict = "not_better"

    second = await stack.submit("second")
    answer = await second.result()

    assert (answer.outcome, answer.reason) == ("not_better", "not_better: .8 against .7")
    assert stack.approval(second.id) is None
    assert (await stack.verified()).differences == []


async def test_cancelling_a_running_stage_ends_the_job_gives_the_slot_back_and_journals_it(stack: Stack) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def long() -> None:
        from temporalio import activity

        started.set()
        try:
            while True:
                activity.heartbeat()
                await asyncio.sleep(0.1)
        finally:
            ended.set()

    stack.compute.hooks["train"] = long
    handle = await stack.submit()
    await started.wait()

    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()

    assert ended.is_set()
    assert (await stack.status(handle.id, "cancelled")).reason
    assert await eventually(lambda: live_leases(stack) == 0)
    assert (await stack.verified()).differences == []


async def test_a_cancel_during_the_rollout_waits_for_its_end_and_is_told_that_it_came_too_late(stack: Stack) -> None:
    await rollout_of(stack)
    handle = stack.client.get_workflow_handle(routed(stack), result_type=LifecycleAnswer)

    await handle.cancel()
    await asyncio.sleep(1)
    stack.serve.silent = False  # type: ignore[attr-defined]

    answer = await handle.result()
    assert answer.outcome == "released"
    assert "a cancel came too late" in answer.reason
    assert (await stack.verified()).differences == []


@pytest.mark.usefixtures("impatient")
async def test_a_rollout_that_serve_keeps_waiting_says_so(stack: Stack) -> None:
    stack.serve.silent = True  # type: ignore[attr-defined]
    handle = await stack.submit()
    await stack.decide(handle.id)

    row = await eventually(lambda: (row := stack.row(handle.id)) and row.wait_what and row.stage == "release" and row)
    assert "the prediction server to answer" in row.wait_what
    stack.serve.silent = False  # type: ignore[attr-defined]
    await stack.status(handle.id, "released")
    assert (await stack.verified()).differences == []


async def test_a_cancel_during_a_rollout_that_serve_refuses_leaves_no_traffic_behind(stack: Stack) -> None:
    await rollout_of(stack)
    handle = stack.client.get_workflow_handle(routed(stack), result_type=LifecycleAnswer)

    await handle.cancel()
    stack.serve.refuse, stack.serve.silent = "the bytes do not load", False  # type: ignore[attr-defined]

    await stack.status(handle.id, "cancelled")
    assert routed(stack) == ""
    assert (await stack.verified()).differences == []


async def rollout_of(stack: Stack) -> WorkflowHandle[Any, Any]:
    """The running rollout, once it has moved the traffic; serve says nothing yet."""
    stack.serve.silent = True  # type: ignore[attr-defined]
    handle = await stack.submit()
    await stack.decide(handle.id)
    assert await eventually(lambda: routed(stack) == handle.id)
    return stack.client.get_workflow_handle(names.release_id("default", stack.spec().model))


async def test_a_rollout_that_is_cancelled_in_temporals_ui_moves_the_traffic_back_and_parks(stack: Stack) -> None:
    rollout = await rollout_of(stack)
    lifecycle = routed(stack)

    await rollout.cancel()
    row = await stack.status(lifecycle, "needs_attention")

    assert (row.error["stage"], row.error["message"]) == ("release", "the rollout was cancelled in Temporal")
    assert routed(stack) == ""
    stack.serve.silent = False  # type: ignore[attr-defined]
    await attend(stack, lifecycle, "retry")
    await stack.status(lifecycle, "released")
    assert routed(stack) == lifecycle
    assert (await stack.verified()).differences == []


async def test_a_rollout_that_is_terminated_in_temporals_ui_is_begun_again_and_the_third_time_parks(
    stack: Stack,
) -> None:
    rollout = await rollout_of(stack)
    lifecycle = routed(stack)
    seen = set()

    for _ in range(3):
        run = await another_run(rollout, seen)
        await stack.client.get_workflow_handle(rollout.id, run_id=run).terminate()
    row = await stack.status(lifecycle, "needs_attention")

    assert "terminated in Temporal" in row.error["message"]
    stack.serve.silent = False  # type: ignore[attr-defined]
    await attend(stack, lifecycle, "retry")
    await stack.status(lifecycle, "released")
    assert routed(stack) == lifecycle
    assert (await stack.verified()).differences == []


async def another_run(handle: WorkflowHandle[Any, Any], seen: set[str]) -> str:
    """The id of a running run that was not *seen* yet."""
    for _ in range(100):
        described = await handle.describe()
        if described.run_id not in seen and described.status is WorkflowExecutionStatus.RUNNING:
            seen.add(described.run_id)
            return described.run_id
        await asyncio.sleep(0.1)
    raise AssertionError("it was not begun again")


def routed(stack: Stack) -> str:
    """The lifecycle whose version takes the traffic, or nothing."""
    with stack.store.read() as session:
        row = session.get(RouteRow, ("default", stack.spec().model))
        return row.lifecycle if row else ""


async def test_a_release_that_serve_refuses_is_rolled_back_and_parks(stack: Stack) -> None:
    stack.serve.refuse = "the bytes do not load"  # type: ignore[attr-defined]
    handle = await stack.submit()
    await stack.decide(handle.id)

    row = await stack.status(handle.id, "needs_attention")
    assert "the bytes do not load" in row.error["message"]

    stack.serve.refuse = ""  # type: ignore[attr-defined]
    await attend(stack, handle.id, "retry")
    assert (await handle.result()).outcome == "released"
    assert (await stack.verified()).differences == []
