"""Leases under attack through Temporal's port: offers that nobody made, workers and workflows that are not ours."""

import asyncio
import json
import subprocess
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import col, select
from temporalio import workflow
from temporalio.client import WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities import lease_ledger
from everloop import names
from everloop.errors import LeaseLost
from everloop.store import LeaseRequestRow, LeaseRow
from tests.temporal.conftest import Stack, eventually
from tests.temporal.test_reset import one_holds_the_slot_that_another_waits_for
from tests.temporal.test_stage import failing
from workers import temporal


@workflow.defn(name=names.LIFECYCLE, sandboxed=False)
class Foreign:
    """Somebody else's workflow, under the name of one of ours: calls any activity of the control queue."""

    @workflow.run
    async def run(self, activity: str, given: Any) -> Any:
        return await workflow.execute_activity(
            activity,
            given,
            task_queue=names.CONTROL,
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )


@workflow.defn(name=names.APPROVAL, sandboxed=False)
class AnotherOfOurs:
    """Under the name of one of ours that holds no lease."""

    @workflow.run
    async def run(self, activity: str, given: Any) -> Any:
        return await Foreign().run(activity, given)


async def foreign(stack: Stack, activity: str, given: Any, kind: str = names.LIFECYCLE) -> str | None:
    """With which error *activity* refuses a worker of somebody else."""
    queue = f"foreign-{uuid.uuid4().hex}"
    async with Worker(
        stack.client,
        task_queue=queue,
        workflows=[Foreign, AnotherOfOurs],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        with pytest.raises(WorkflowFailureError) as refused:
            await stack.client.execute_workflow(kind, args=[activity, given], id=queue, task_queue=queue)
    failure = refused.value.cause
    assert isinstance(failure, ActivityError)
    assert isinstance(failure.cause, ApplicationError)
    return failure.cause.type


def signal_by_hand(stack: Stack, lifecycle: str, offer: dict[str, Any]) -> None:
    """As anybody types it who reaches Temporal's port."""
    command = [str(temporal.binary()), "workflow", "signal", "--address", stack.settings.temporal_address]
    command += ["--workflow-id", lifecycle, "--name", names.LEASE_OFFERED, "--input", json.dumps(offer)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def requests_of(stack: Stack, workflow_id: str) -> list[LeaseRequestRow]:
    with stack.store.read() as session:
        query = select(LeaseRequestRow).where(LeaseRequestRow.workflow_id == workflow_id)
        return list(session.exec(query.order_by(col(LeaseRequestRow.arrival))).all())


def live(stack: Stack) -> list[LeaseRow]:
    with stack.store.read() as session:
        return list(session.exec(select(LeaseRow).where(col(LeaseRow.state).in_(("offered", "active")))).all())


async def test_offers_typed_by_hand_cost_a_lifecycle_neither_its_place_nor_its_slot(stack: Stack) -> None:
    done, holder, waiting = await one_holds_the_slot_that_another_waits_for(stack)
    last = await stack.submit("last")
    await eventually(lambda: requests_of(stack, last.id))
    (mine,), (theirs,) = requests_of(stack, waiting.id), live(stack)

    for request_id, token in (
        (mine.id, 999),  # a token that does not exist
        (mine.id, theirs.token),  # one that another holds
        (theirs.request_id, theirs.token),  # another's offer
        (mine.id, 10**40),  # no number of ours
        (mine.id, -1),
    ):
        offer = {"request_id": request_id, "device": "cpu0" * 300, "token": token}
        await asyncio.to_thread(signal_by_hand, stack, waiting.id, offer)
    await eventually(lambda: "train" in stack.compute.stages())
    done.set()

    for handle in (holder, waiting, last):
        await stack.gate(handle.id)
    assert [(row.id, row.state) for row in requests_of(stack, waiting.id)] == [(mine.id, "done")]
    assert live(stack) == []
    with stack.store.read() as session:
        order = session.exec(select(LeaseRow.workflow_id).order_by(col(LeaseRow.token))).all()
    assert order == [holder.id, waiting.id, last.id]
    assert (await stack.verified()).differences == []


async def test_a_foreign_worker_takes_and_gives_back_nothing_and_a_terminate_frees_the_slot_in_seconds(
    stack: Stack,
) -> None:
    done, holder, waiting = await one_holds_the_slot_that_another_waits_for(stack)
    (lease,), (queued,) = live(stack), requests_of(stack, waiting.id)
    given = {"request_id": lease.request_id, "token": lease.token}
    slot = {"device": lease.device, "token": lease.token, "holder": lease.holder}

    assert {
        "accept": await foreign(stack, "everloop.lease.accept", given),
        "release": await foreign(stack, "everloop.lease.release", given),
        "release without its request": await foreign(stack, "everloop.lease.release", given | {"request_id": ""}),
        "cancel": await foreign(stack, "everloop.lease.cancel", queued.id),
        "request": await foreign(stack, "everloop.lease.request", {"id": "mine"}),
        "another's request": await foreign(stack, "everloop.lease.request", {"id": queued.id, "again": True}),
        "commit": await foreign(stack, "everloop.lease.commit", {"slot": slot, "stage": "train", "digest": "0"}),
        "step": await foreign(stack, "everloop.lease.pool_step", {"pool": "default", "inventory": []}),
        "another type": await foreign(stack, "everloop.lease.accept", given, names.APPROVAL),
    } == {
        "accept": "Forbidden",
        "release": "Forbidden",
        "release without its request": "Forbidden",
        "cancel": "Forbidden",
        "request": "Forbidden",
        "another's request": "Forbidden",
        "commit": "Forbidden",
        "step": "Forbidden",
        "another type": "Forbidden",
    }
    assert live(stack) == [lease]
    assert requests_of(stack, waiting.id) == [queued]

    await holder.terminate(reason="by hand")
    # Not by the lease's end, which is a minute away.
    await eventually(lambda: live(stack) and live(stack)[0].workflow_id == waiting.id, seconds=30)
    await eventually(lambda: (row := stack.row(holder.id)) and row.status == "terminated", seconds=30)
    done.set()
    await stack.gate(waiting.id)


async def test_who_lost_its_lease_gives_it_up_and_a_grant_that_nobody_takes_lapses(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compute worker says that the lease is lost; then the queue holds a request that its workflow has forgotten."""
    stack.compute.hooks["train"] = failing(LeaseLost("the device is another's"), times=1)
    handle = await stack.submit()
    await stack.gate(handle.id)
    assert live(stack) == []
    assert stack.compute.stages().count("train") == 2

    monkeypatch.setattr(lease_ledger.rows, "OFFER_TTL", timedelta(seconds=0.2))
    forgotten = requests_of(stack, handle.id)[0].model_copy(update={"id": "forgotten", "arrival": 9, "state": "queued"})
    with stack.store.write() as session:
        session.add(LeaseRequestRow(**forgotten.model_dump()))
    await stack.client.get_workflow_handle(names.pool_id(names.DEFAULT_POOL)).signal(names.POOL_WAKE)
    (*_, ended) = await eventually(
        lambda: (rows := requests_of(stack, handle.id)) and rows[-1].state == "lapsed" and rows, seconds=15
    )

    assert ended.reason.startswith("cpu0 was offered and not taken")
    assert live(stack) == []
    assert (await stack.verified()).differences == []


async def test_a_workflow_that_takes_no_more_signals_keeps_nobody_from_their_slots(stack: Stack) -> None:
    """Temporal refuses a signal for good after 10,000 of them; here, because the run's id is none."""
    full = f"{stack.prefix}-full"
    now = datetime.now(UTC)
    asked = {"pool": names.DEFAULT_POOL, "holder": f"{full}/run", "workflow_id": full, "run_id": "run"}
    with stack.store.write() as session:
        session.add(LeaseRequestRow(id="full", arrival=0, kind="batch", state="granted", requested_at=now, **asked))
        session.add(
            LeaseRow(
                token=0, request_id="full", device="cpu9", state="offered", granted_at=now,
                expires_at=now + timedelta(minutes=5), **asked,
            )
        )  # fmt: skip

    await stack.gate((await stack.submit()).id)

    (request,) = requests_of(stack, full)
    assert (request.state, live(stack)) == ("lapsed", [])
    assert "Temporal takes no offer for it" in request.reason
