"""Leases: one holder per slot, a token that only grows, and nothing committed by who has lost it."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from activities import lease_ledger as ledger
from activities.lease import check_token
from everloop import names
from everloop.errors import LeaseLost
from everloop.records import Slot
from everloop.store import DeviceRow, LeaseRequestRow, LeaseRow, PoolDecisionRow, ResultRow, Store
from tests.temporal.conftest import Stack, eventually

ROOT = Path(__file__).parents[2]


def leases(stack: Stack) -> list[LeaseRow]:
    with stack.store.read() as session:
        return list(session.exec(select(LeaseRow).order_by(col(LeaseRow.token))).all())


async def test_lifecycles_take_the_one_batch_slot_in_turn_and_each_grant_has_a_greater_token(stack: Stack) -> None:
    stack.compute.hooks["train"] = lambda: asyncio.sleep(0.3)

    handles = [await stack.submit(f"turn-{number}") for number in range(3)]
    for handle in handles:
        await stack.gate(handle.id)

    rows = leases(stack)
    assert [row.token for row in rows] == [1, 2, 3]
    assert {row.device for row in rows} == {"cpu0"}  # cpu1 is the light slot
    for before, after in pairwise(rows):
        assert before.ended_at is not None
        assert before.ended_at <= after.granted_at
    with stack.store.read() as session:
        asked = session.exec(select(LeaseRequestRow).order_by(col(LeaseRequestRow.arrival))).all()
    assert [row.workflow_id for row in rows] == [request.workflow_id for request in asked]
    assert {row.workflow_id for row in rows} == {handle.id for handle in handles}


async def test_a_waiting_lifecycle_says_what_it_waits_for_and_what_unblocks_it(stack: Stack) -> None:
    done = asyncio.Event()
    stack.compute.hooks["train"] = done.wait
    await stack.submit("holder")
    await eventually(lambda: "train" in stack.compute.stages())

    waiting = await stack.submit("waiting")

    row = await eventually(lambda: (row := stack.row(waiting.id)) and row.wait_what == "a free slot" and row)
    assert "when a running job ends" in row.wait_unblocks
    done.set()
    await stack.gate(waiting.id)


async def test_a_lease_taken_away_commits_nothing_and_the_stage_runs_again_under_a_new_one(stack: Stack) -> None:
    async def fence() -> None:
        if len(leases(stack)) > 1:
            return
        ledger.end(stack.store, names.DEFAULT_POOL, 1, "fenced")

    stack.compute.hooks["train"] = fence
    handle = await stack.submit()
    await stack.gate(handle.id)

    with stack.store.read() as session:
        tokens = {row.stage: row.token for row in session.exec(select(ResultRow)).all()}
    assert tokens["prepare"] == 1
    assert tokens["train"] == 2
    assert stack.compute.stages().count("train") == 2
    assert stack.compute.stages().count("prepare") == 1
    assert (await stack.verified()).differences == []


def lease_row(token: int, state: str) -> LeaseRow:
    return LeaseRow(
        pool="default",
        token=token,
        request_id=str(token),
        holder="w/r",
        workflow_id="w",
        run_id="r",
        device="cpu0",
        state=state,
        granted_at=datetime.now(UTC),
    )


def test_the_database_itself_refuses_more_than_a_device_has(store: Store) -> None:
    with store.write() as session:
        session.add(DeviceRow(pool="default", name="cpu0", cores=2, memory_mib=100, used_cores=2))
    for used in ({"used_cores": 3}, {"used_memory_mib": 101}, {"used_milli_gpu": 1}, {"used_gpu_mib": 1}):
        with pytest.raises(IntegrityError), store.write() as session:
            session.get_one(DeviceRow, ("default", "cpu0")).sqlmodel_update(used)
    with pytest.raises(IntegrityError), store.write() as session:
        session.get_one(DeviceRow, ("default", "cpu0")).used_cores = -1


def test_an_older_token_of_the_same_holder_is_fenced(store: Store) -> None:
    with store.write() as session:
        session.add_all(lease_row(token, "released") for token in (1, 2))
    with store.read() as session:
        check_token(session, Slot(device="cpu0", token=2, holder="w/r"))
        for slot in (Slot(device="cpu0", token=1, holder="w/r"), Slot(device="cpu0", token=2, holder="w/other")):
            with pytest.raises(LeaseLost):
                check_token(session, slot)


async def test_every_decision_record_replays_to_the_same_decisions_in_another_process(stack: Stack) -> None:
    for number in range(3):
        await stack.submit(f"r-{number}")
    for number in range(3):
        await stack.gate(f"{stack.prefix}-r-{number}")

    with stack.store.read() as session:
        records = session.exec(select(PoolDecisionRow).order_by(col(PoolDecisionRow.version))).all()
    assert [row.whole for row in records] == [True] + [False] * (len(records) - 1)
    assert sum(row.decisions.count("Grant") for row in records) == 3
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", DECIDED_AGAIN, stack.store.url]
        told = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stderr
        assert int(told.stdout) == len(records)


DECIDED_AGAIN = """
import sys
from sqlmodel import col, select
from activities import lease_ledger as ledger
from activities.lease_policy import decide
from everloop.store import PoolDecisionRow, Store

with Store(sys.argv[1]).read() as session:
    records = session.exec(select(PoolDecisionRow).order_by(col(PoolDecisionRow.version))).all()
same = 0
for row, state, policy in ledger.replayed(records):
    assert ledger.said(decide(state, row.now_ms, policy, ledger.FUEL)) == row.decisions, row.version
    same += 1
print(same)
"""


async def test_a_lease_on_a_device_that_stays_away_is_fenced_and_another_is_taken(stack: Stack) -> None:
    async def device_gone() -> None:
        if len(leases(stack)) > 1:
            return
        pool = stack.client.get_workflow_handle(names.pool_id(names.DEFAULT_POOL))
        await pool.signal(names.POOL_INVENTORY, ["cpu2", "cpu1:light"])
        with stack.store.write() as session:
            row = session.exec(select(LeaseRow)).one()
            row.expires_at = datetime.now(UTC)  # the lease has come to its time
            session.add(row)
        await asyncio.sleep(0.5)
        await pool.signal(names.POOL_WAKE)
        await eventually(lambda: leases(stack)[0].state == "fenced")

    stack.compute.hooks["train"] = device_gone
    handle = await stack.submit()
    await stack.gate(handle.id)

    assert [row.device for row in leases(stack)] == ["cpu0", "cpu2"]
