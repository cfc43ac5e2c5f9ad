"""Who is asked to let go, who gets its place back, and who waits for it."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import select

from activities import lease_ledger as ledger
from activities.lease_ledger import decision
from api.pool import seen
from everloop.contracts import CommitRequest, LeaseRequest
from everloop.errors import Conflict, NotFound
from everloop.store import LeaseRequestRow, LeaseRow, QueueRow, Store
from tests.unit.lease_capacity.holders import FOUR, POOL, ask, rules, state, take, used, who


def test_who_lets_go_after_a_notice_gets_its_old_place(pool: Store) -> None:
    rules(pool, min_runtime_s=0)
    with pool.write() as session:
        for name, quota in (("low", 0), ("high", 4)):
            session.add(QueueRow(pool=POOL, id=name, quota_cores=quota, updated_at=datetime.now(UTC)))
    ask(pool, "victim", queue="low", cores=4)
    ledger.grant(pool, POOL)
    slot = take(pool, "victim")
    ask(pool, "other", queue="low", cores=4)
    ask(pool, "starved", queue="high", cores=4)

    assert ledger.grant(pool, POOL) == 0
    assert state(pool, slot.token) == "noticed"
    ledger.end(pool, POOL, slot.token, "released")
    ledger.enqueue(pool, LeaseRequest(id="victim", queue="low", cores=4, again=True), who("victim"))
    assert ledger.grant(pool, POOL) == 1

    starved = take(pool, "starved")
    ledger.commit(pool, CommitRequest(slot=starved, stage="train", digest="d"), who("starved"))
    ledger.end(pool, POOL, starved.token, "released")
    ledger.grant(pool, POOL)
    assert take(pool, "victim").token > starved.token  # before `other`, which came later
    with pool.read() as session:
        victim = session.get_one(LeaseRequestRow, "victim")
        assert (victim.arrival, len(victim.preempted_ms)) == (1, 1)
        starved_since = session.get_one(LeaseRequestRow, "starved").requested_at
        assert victim.requested_at > starved_since  # it waits since it let go, not since it first came


def test_who_was_told_to_leave_a_drained_device_may_stay_when_it_is_drained_no_more(pool: Store) -> None:
    ledger.note_inventory(pool, POOL, (*FOUR, "cpu2:node=there:cores=2:memory_mib=4000"))
    for name, cores in (("stays", 4), ("goes", 2)):
        ask(pool, name, cores=cores)
    ledger.grant(pool, POOL)
    stays, goes = take(pool, "stays"), take(pool, "goes")
    soon = datetime.now(UTC) + timedelta(seconds=30)
    for device in ("cpu0", "cpu2"):
        ledger.drain(pool, POOL, device, soon)
    ledger.grant(pool, POOL)
    assert {state(pool, stays.token), state(pool, goes.token)} == {"noticed"}

    ledger.undrain(pool, POOL, "cpu0")

    assert (state(pool, stays.token), state(pool, goes.token)) == ("active", "noticed")
    ledger.grant(pool, POOL)
    with pool.read() as session:
        row = session.get_one(LeaseRow, (POOL, stays.token))
        assert (row.state, row.notice, row.deadline_at) == ("active", "", None)


def test_who_is_too_far_back_for_a_written_reason_is_told_one_when_it_asks(
    pool: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision, "MOST_EXPLAINED", 1)
    for name in ("holds", "next", "later"):
        ask(pool, name, cores=4)
    ledger.grant(pool, POOL)
    with pool.read() as session:
        written = [session.get_one(LeaseRequestRow, name).code for name in ("next", "later")]

    told = seen.explained(pool, "later")

    assert written == ["no_room", ""]
    assert "waits for 4 cores, 8000 MiB in queue default: 1 ahead, 0 cores, 0 MiB free" in told.sentence
    with pool.read() as session:
        assert session.get_one(LeaseRequestRow, "later").code == ""  # what is written is the pool's


def test_a_drained_node_gets_nothing_new_and_a_revoked_lease_is_killed_after_its_grace(pool: Store) -> None:
    ask(pool, "a")
    ledger.grant(pool, POOL)
    slot = take(pool, "a")

    assert ledger.drain(pool, POOL, "here", datetime.now(UTC) + timedelta(hours=1), by="ada") == ["cpu0", "cpu1"]
    ask(pool, "b")
    assert ledger.grant(pool, POOL) == 0
    assert state(pool, slot.token) == "active"  # there is time
    assert ledger.undrain(pool, POOL, "cpu0") == ["cpu0"]
    assert ledger.grant(pool, POOL) == 1
    with pytest.raises(NotFound):
        ledger.drain(pool, POOL, "nowhere", datetime.now(UTC))

    assert ledger.revoke(pool, slot.token, by="ada", reason="needed", grace=timedelta()) == POOL
    with pytest.raises(Conflict):
        ledger.revoke(pool, slot.token, by="ada", reason="again", grace=timedelta())
    time.sleep(0.01)
    ledger.grant(pool, POOL)
    assert state(pool, slot.token) == "killing"
    assert used(pool)[0] == 2
    ledger.proven(pool, POOL, [(slot.token, 0)])
    assert (state(pool, slot.token), used(pool)[0]) == ("fenced", 1)


def two_queues(store: Store, **policy: int) -> None:
    rules(store, min_runtime_s=0, **policy)
    with store.write() as session:
        for name, quota in (("low", 0), ("high", 4)):
            session.add(QueueRow(pool=POOL, id=name, quota_cores=quota, updated_at=datetime.now(UTC)))


def test_whom_a_kill_makes_way_for_waits_for_it_and_nobody_else_is_asked_to_let_go(pool: Store) -> None:
    two_queues(pool, grace_s=60)
    for name in ("deaf", "other"):
        ask(pool, name, queue="low", cores=2)
    ledger.grant(pool, POOL)
    slots = {name: take(pool, name) for name in ("deaf", "other")}
    ask(pool, "starved", queue="high", cores=2)
    ledger.grant(pool, POOL)
    (told,) = [name for name in slots if state(pool, slots[name].token) == "noticed"]
    (spared,) = {*slots} - {told}
    with pool.write() as session:
        session.get_one(LeaseRow, (POOL, slots[told].token)).deadline_at = datetime.now(UTC)
    time.sleep(0.01)

    ledger.grant(pool, POOL)  # its grace is over, and it is not proven dead yet
    ledger.grant(pool, POOL)

    assert state(pool, slots[told].token) == "killing"
    assert state(pool, slots[spared].token) == "active"
    with pool.read() as session:
        left = session.get_one(LeaseRow, (POOL, slots[told].token)).deadline_at - datetime.now(UTC)
        assert timedelta(seconds=100) < left <= timedelta(seconds=120)  # two graces
        assert session.get_one(LeaseRequestRow, "starved").code == "waits_for_notice"
    ledger.proven(pool, POOL, [(slots[told].token, 0)])
    assert ledger.grant(pool, POOL) == 1
    assert take(pool, "starved")


def test_the_pool_wakes_for_the_notices_of_a_drain_and_for_its_end(pool: Store) -> None:
    ask(pool, "a")
    ledger.grant(pool, POOL)
    slot = take(pool, "a")
    with pool.write() as session:  # its holder was found alive so often that it is looked for seldom
        session.get_one(LeaseRow, (POOL, slot.token)).expires_at = datetime.now(UTC) + timedelta(minutes=32)

    ledger.drain(pool, POOL, "cpu0", datetime.now(UTC) + timedelta(seconds=300))
    _, wake = ledger.outlook(pool, POOL)
    assert wake is not None
    assert 200 < wake <= 240  # one grace before

    ledger.drain(pool, POOL, "cpu0", datetime.now(UTC) + timedelta(seconds=50))
    _, wake = ledger.outlook(pool, POOL)
    assert wake is not None
    assert 30 < wake <= 50
    ledger.end(pool, POOL, slot.token, "released")
    assert ledger.outlook(pool, POOL) == (0, None)  # it is empty


def test_a_queue_that_was_left_out_while_its_lease_ran_stays_out(pool: Store) -> None:
    two_queues(pool)
    ask(pool, "a", queue="low", cores=2)
    ask(pool, "b", cores=1)
    ledger.grant(pool, POOL)
    slots = [take(pool, name) for name in ("a", "b")]
    with pool.write() as session:
        session.delete(session.get_one(QueueRow, (POOL, "low")))
    time.sleep(0.01)

    for slot in slots:
        ledger.end(pool, POOL, slot.token, "released")

    with pool.read() as session:
        queues = {row.id: row.usage_cores for row in session.exec(select(QueueRow)).all()}
    assert sorted(queues) == ["default", "high"]
    assert queues["default"] > 0
    assert used(pool) == (0, 0)


def test_a_lease_of_a_queue_that_is_gone_can_be_taken_back_like_one_of_the_default_queue(pool: Store) -> None:
    two_queues(pool)
    ask(pool, "a", queue="low", cores=4)
    ledger.grant(pool, POOL)
    slot = take(pool, "a")
    with pool.write() as session:
        session.delete(session.get_one(QueueRow, (POOL, "low")))
    ask(pool, "owed", queue="high", cores=4)

    ledger.grant(pool, POOL)

    assert state(pool, slot.token) == "noticed"


def test_a_holder_hears_of_its_notice_and_that_it_is_withdrawn_whatever_process_dies_between(pool: Store) -> None:
    two_queues(pool, grace_s=60)
    ask(pool, "a", queue="low", cores=4)
    ledger.grant(pool, POOL)
    slot = take(pool, "a")
    assert ledger.untold(pool, POOL) == []
    ask(pool, "owed", queue="high", cores=4)
    ledger.grant(pool, POOL)

    (notice,) = ledger.untold(pool, POOL)  # control dies before the signal: it is found again
    assert (notice.token, notice.state) == (slot.token, "noticed")
    ledger.told(pool, POOL, slot.token, notice.deadline_at)
    assert ledger.untold(pool, POOL) == []
    ledger.cancel(pool, "owed", who("owed"))
    ledger.grant(pool, POOL)

    (withdrawn,) = ledger.untold(pool, POOL)
    assert (withdrawn.token, withdrawn.state, withdrawn.deadline_at) == (slot.token, "active", None)
    ledger.told(pool, POOL, slot.token, None)
    assert ledger.untold(pool, POOL) == []
