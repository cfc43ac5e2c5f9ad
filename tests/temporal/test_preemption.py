"""What others need is asked for, given back at a checkpoint, and waited for again in the old place."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import col, select

from activities import lease_ledger as ledger
from everloop import names
from everloop.contracts import LeaseNotice
from everloop.errors import LeaseLost
from everloop.records import Slot
from everloop.store import DeviceRow, LeaseMemberRow, LeaseRequestRow, LeaseRow, PoolPolicyRow, QueueRow, ResultRow
from tests.temporal.conftest import Stack, eventually
from tests.temporal.test_pause import holding, tell
from tests.temporal.test_reset import reset, workflow_task_after

POOL = names.DEFAULT_POOL


def leases(stack: Stack, lifecycle: str) -> list[LeaseRow]:
    with stack.store.read() as session:
        query = select(LeaseRow).where(LeaseRow.workflow_id == lifecycle).order_by(col(LeaseRow.token))
        return list(session.exec(query).all())


async def wake(stack: Stack) -> None:
    await stack.client.get_workflow_handle(names.pool_id(POOL)).signal(names.POOL_WAKE)


def queues(stack: Stack, **quotas: int) -> None:
    with stack.store.write() as session:
        session.add_all(
            QueueRow(pool=POOL, id=name, quota_cores=cores, updated_at=datetime.now(UTC))
            for name, cores in quotas.items()
        )
        session.add(PoolPolicyRow(pool=POOL, policy={"min_runtime_s": 0, "grace_s": 30}, at=datetime.now(UTC)))


@pytest.mark.history
async def test_a_starved_queue_gets_its_quota_and_the_preempted_training_goes_on_by_itself(stack: Stack) -> None:
    queues(stack, tabular=0, vision=1)
    begun, ends = holding(stack, "train")
    taken = await stack.submit("taken", queue="tabular", model=f"taken-{stack.prefix}")
    await begun.wait()

    starved = await stack.submit("starved", queue="vision", model=f"starved-{stack.prefix}")

    await stack.gate(starved.id)  # it has had the slot
    assert ends == ["cancelled"]
    await stack.gate(taken.id)  # and this one goes on without a word from anybody
    first, second = leases(stack, taken.id)
    assert (first.state, first.notice, first.request_id) == ("released", "reclaim", second.request_id)
    assert first.beneficiary == leases(stack, starved.id)[0].request_id
    assert first.ended_at <= leases(stack, starved.id)[0].granted_at <= second.granted_at
    with stack.store.read() as session:
        request = session.get_one(LeaseRequestRow, first.request_id)
        assert len(request.preempted_ms) == 1
    train = [row for row in stack.stage_rows(taken.id) if row.stage == "train"]
    assert [row.status for row in train] == ["preempted", "done"]
    assert train[0].summary.startswith("cpu0 was taken for others, it goes on by itself: queue vision takes back")
    assert stack.compute.stages().count("prepare") == 2  # nothing before it is done again
    assert (await stack.verified()).differences == []


@pytest.mark.usefixtures("impatient")
async def test_who_does_not_let_go_is_fenced_when_the_grace_is_over_and_nothing_is_free_before_the_proof(
    stack: Stack,
) -> None:
    proofs: list[int] = []

    def prove(members):  # compute finds the processes still alive, twice
        proofs.append(len(members))
        return members if len(proofs) > 2 else ()

    stack.compute.hooks["prove"] = prove
    ends = asyncio.Event()
    runs: list[int] = []

    async def deaf() -> None:
        runs.append(1)
        if len(runs) == 1:
            await ends.wait()

    stack.compute.hooks["train"] = deaf
    handle = await stack.submit()
    await eventually(lambda: runs)

    ledger.revoke(stack.store, 1, by="ada", reason="the machine is needed", grace=timedelta(seconds=0.5))
    await wake(stack)

    (row,) = await eventually(lambda: (rows := leases(stack, handle.id)) and rows[0].state == "killing" and rows)
    slot = Slot(device="cpu0", token=1, holder=row.holder)
    with stack.store.read() as session, pytest.raises(LeaseLost):
        ledger.check_token(session, slot)
    assert row.why == "ada took it away: the machine is needed"
    ends.set()  # its result comes too late
    await stack.gate(handle.id)
    assert len(proofs) == 3
    first, second = leases(stack, handle.id)
    assert (first.state, first.request_id) == ("fenced", second.request_id)
    assert second.granted_at > first.ended_at
    with stack.store.read() as session:
        tokens = {row.stage: row.token for row in session.exec(select(ResultRow)).all()}
    assert (tokens["prepare"], tokens["train"]) == (1, 2)
    assert (await stack.verified()).differences == []


async def test_a_drained_device_is_empty_by_its_deadline_and_takes_nothing_until_it_is_opened(stack: Stack) -> None:
    begun, ends = holding(stack, "train")
    handle = await stack.submit()
    await begun.wait()

    ledger.drain(stack.store, POOL, "cpu0", datetime.now(UTC) + timedelta(seconds=1), by="ada")
    await wake(stack)
    await eventually(lambda: leases(stack, handle.id)[0].state == "released")
    assert ends == ["cancelled"]
    await asyncio.sleep(0.3)
    assert len(leases(stack, handle.id)) == 1

    ledger.undrain(stack.store, POOL, "cpu0")
    await wake(stack)
    await stack.gate(handle.id)
    assert [row.device for row in leases(stack, handle.id)] == ["cpu0", "cpu0"]


@pytest.mark.history
async def test_a_notice_that_comes_before_the_holder_knows_of_its_grant_is_heeded(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, loop, first = ledger.accept, asyncio.get_running_loop(), []

    def accepted(store, request, asks):
        slot = accept(store, request, asks)
        if not first:
            first.append(slot)
            ledger.revoke(store, slot.token, by="ada", reason="at once", grace=timedelta(seconds=60))
            notice = LeaseNotice(token=slot.token, reason="at once", deadline=datetime.now(UTC))
            handle = stack.client.get_workflow_handle(asks.workflow_id)
            asyncio.run_coroutine_threadsafe(handle.signal(names.LEASE_NOTICED, notice), loop).result(30)
        return slot

    monkeypatch.setattr(ledger, "accept", accepted)
    handle = await stack.submit()

    await stack.gate(handle.id)
    taken, second = leases(stack, handle.id)
    assert (taken.state, taken.notice, taken.request_id) == ("released", "revoke", second.request_id)
    with stack.store.read() as session:
        assert {row.token for row in session.exec(select(ResultRow)).all()} == {second.token}
    assert (await stack.verified()).differences == []


@pytest.mark.history
async def test_who_has_waited_for_its_slot_says_so_no_more_while_its_job_runs(stack: Stack) -> None:
    begun, _ = holding(stack, "train")
    first = await stack.submit("first", model=f"first-{stack.prefix}")
    await begun.wait()
    runs, end = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        runs.set()
        await end.wait()

    stack.compute.hooks["snapshot"] = hold
    second = await stack.submit("second", model=f"second-{stack.prefix}")
    await eventually(lambda: (row := stack.row(second.id)) and row.wait_what.startswith(names.A_FREE_SLOT))

    await first.cancel()
    await runs.wait()

    await eventually(lambda: stack.row(second.id).wait_what == "")
    end.set()
    await stack.gate(second.id)
    assert (await stack.verified()).differences == []


@pytest.mark.history
@pytest.mark.usefixtures("impatient")
async def test_a_job_that_is_told_to_end_while_its_machine_is_lost_does_not_take_the_lifecycle_with_it(
    stack: Stack,
) -> None:
    proof, lost, runs = asyncio.Event(), asyncio.Event(), []
    stack.compute.hooks["prove"] = lambda members: members if proof.is_set() else ()

    async def deaf() -> None:
        runs.append(1)
        while len(runs) == 1 and not lost.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await lost.wait()

    stack.compute.hooks["train"] = deaf
    handle = await stack.submit()
    await eventually(lambda: runs)

    ledger.revoke(stack.store, 1, by="ada", reason="needed", grace=timedelta(seconds=90))
    await wake(stack)

    # Its heartbeats end. Nobody has said that its job has ended: what it has is free when that is proven.
    await eventually(lambda: leases(stack, handle.id)[0].state == "fenced")
    with stack.store.read() as session:
        assert session.get_one(DeviceRow, (POOL, "cpu0")).used_cores == 1
    assert len(leases(stack, handle.id)) == 1
    proof.set()
    await stack.gate(handle.id)
    assert [row.token for row in leases(stack, handle.id)] == [1, 2]
    train = [row.status for row in stack.stage_rows(handle.id) if row.stage == "train"]
    assert train == ["preempted", "done"]
    lost.set()
    assert (await stack.verified()).differences == []


@pytest.mark.history
async def test_a_pause_while_a_notice_runs_holds_still_and_the_resume_goes_on_with_a_lease_of_its_own(
    stack: Stack,
) -> None:
    begun, ends = holding(stack, "train")
    handle = await stack.submit()
    await begun.wait()

    ledger.revoke(stack.store, 1, by="bob", reason="the disk", grace=timedelta(seconds=60))
    await tell(stack, handle.id, "pause", "over night")
    await wake(stack)

    row = await eventually(lambda: (row := stack.row(handle.id)) and row.wait_what.startswith(names.A_RESUME) and row)
    assert row.wait_what == "a resume (ada paused it: over night)"
    assert ends == ["cancelled"]
    assert [lease.state for lease in leases(stack, handle.id)] == ["released"]
    await asyncio.sleep(0.3)
    assert len(leases(stack, handle.id)) == 1  # it asks for nothing while it is held still
    await tell(stack, handle.id, "resume")
    await stack.gate(handle.id)
    assert [lease.notice for lease in leases(stack, handle.id)] == ["revoke", ""]
    train = [row.status for row in stack.stage_rows(handle.id) if row.stage == "train"]
    assert train == ["paused", "done"]
    assert stack.compute.stages().count("prepare") == 1
    assert (await stack.verified()).differences == []


@pytest.mark.history
async def test_a_reset_of_a_lifecycle_whose_lease_is_noticed_goes_on_with_another_lease(stack: Stack) -> None:
    begun, ends = holding(stack, "train")
    handle = await stack.submit()
    await begun.wait()
    point = await workflow_task_after(stack, handle.id, "everloop.features.prepare")

    ledger.revoke(stack.store, 1, by="bob", reason="the disk", grace=timedelta(seconds=60))
    await wake(stack)
    await eventually(lambda: ends or leases(stack, handle.id)[0].told_at)
    await reset(stack, handle.id, point)  # the new run replays the old one's lease, and hears the old notice again

    await stack.gate(handle.id)
    first, *later = leases(stack, handle.id)
    assert first.state in ("released", "fenced")
    assert later[-1].state == "released"
    assert all(lease.token > first.token for lease in later)
    with stack.store.read() as session:
        newest = {row.stage: row.token for row in session.exec(select(ResultRow).order_by(ResultRow.token)).all()}
        used = session.get_one(DeviceRow, (POOL, "cpu0")).used_cores
    assert newest["train"] == later[-1].token
    assert used == 0
    assert (await stack.verified()).differences == []


async def test_an_elastic_lease_gets_more_members_at_a_checkpoint_when_nobody_else_waits(stack: Stack) -> None:
    queues(stack)
    begun, ends = holding(stack, "train")
    gang = {"trainer": "mine:fit", "resources": {"members": {"min": 1, "max": 2}}, "until": "train"}
    handle = await stack.submit(**gang)
    await begun.wait()

    pool = stack.client.get_workflow_handle(names.pool_id(POOL))
    await pool.signal(names.POOL_INVENTORY, ["cpu0", "cpu1:light", "cpu2"])

    await handle.result()
    assert ends == ["cancelled"]
    _, one, two = leases(stack, handle.id)  # the first was for what comes before the training
    assert (one.state, two.state, two.follows, two.request_id) == ("released", "released", one.token, one.request_id)
    with stack.store.read() as session:
        members = session.exec(select(LeaseMemberRow).where(LeaseMemberRow.token == two.token)).all()
        results = {row.stage: row.token for row in session.exec(select(ResultRow)).all()}
    assert {(each.rank, each.device) for each in members} == {(0, "cpu0"), (1, "cpu2")}
    assert results["train"] == two.token
    assert (await stack.verified()).differences == []
