"""Two who change the same lease at once, what stands in nobody's way, and what is asked for in an old place."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import select

from activities import lease_ledger as ledger
from activities.lease_ledger import decision, rows
from activities.lease_policy.state import Kill
from everloop.contracts import AcceptRequest, CommitRequest, LeaseRequest
from everloop.errors import LeaseLost
from everloop.store import LeaseMemberRow, LeaseRequestRow, LeaseRow, PoolRow, QueueRow, Store
from tests.unit.lease_capacity.holders import FOUR, POOL, ask, rules, state, take, used, who


def meanwhile(store: Store, change: Callable[[object], None], does: Callable[[], object]) -> list[object]:
    """What *does* returns or raises that begins while a transaction is about to commit *change*."""
    told: list[object] = []

    def run() -> None:
        try:
            told.append(does())
        except Exception as error:  # noqa: BLE001  # it is looked at
            told.append(error)

    other = threading.Thread(target=run)
    with store.write() as session:
        session.get(PoolRow, POOL, with_for_update=True)  # as each step of the pool begins
        change(session)
        session.flush()
        other.start()
        time.sleep(0.5)  # it has read by now what it reads without waiting
    other.join(30)
    assert not other.is_alive()
    return told


def offered(store: Store, name: str) -> LeaseRow:
    ask(store, name, cores=4)
    ledger.grant(store, POOL)
    (row,) = ledger.offers(store, POOL)
    return row


def test_an_offer_is_not_taken_that_a_step_of_the_pool_has_just_withdrawn(pool: Store) -> None:
    offer = offered(pool, "a")
    taken = AcceptRequest(request_id="a", token=offer.token)
    kill = Kill(offer.token, 0)

    told = meanwhile(
        pool,
        lambda session: decision._kill(session, POOL, kill, rows.ms(rows.now())),
        lambda: ledger.accept(pool, taken, who("a")),
    )

    assert [type(one) for one in told] == [LeaseLost]
    assert (state(pool, offer.token), used(pool)) == ("fenced", (0, 0))


def test_a_lease_is_given_back_once_though_it_is_killed_and_released_at_the_same_time(pool: Store) -> None:
    offered(pool, "a")
    slot = take(pool, "a")

    told = meanwhile(
        pool,
        lambda session: decision._kill(session, POOL, Kill(slot.token, 0), rows.ms(rows.now())),
        lambda: ledger.end(pool, POOL, slot.token, "released"),
    )

    assert told == [False]  # it had ended
    assert used(pool) == (4, 8000)  # until its processes are proven dead
    assert [(row.token, row.rank) for row in ledger.unproven(pool, POOL)] == [(slot.token, 0)]


def test_a_result_that_waits_for_a_kill_is_refused(pool: Store) -> None:
    offered(pool, "a")
    slot = take(pool, "a")

    told = meanwhile(
        pool,
        lambda session: decision._kill(session, POOL, Kill(slot.token, 0), rows.ms(rows.now())),
        lambda: ledger.commit(pool, CommitRequest(slot=slot, stage="train", digest="d"), who("a")),
    )

    assert [type(one) for one in told] == [LeaseLost]


def test_another_stage_that_asks_in_an_old_place_gets_what_it_asks_for(pool: Store) -> None:
    rules(pool, min_runtime_s=0)
    ask(pool, "a", cores=1, memory_mib=1000, stage="prepare")
    ask(pool, "b", cores=4)
    ledger.grant(pool, POOL)
    slot = take(pool, "a")
    ledger.revoke(pool, slot.token, by="ada", reason="", grace=timedelta(seconds=60))
    ledger.end(pool, POOL, slot.token, "released")

    wants = LeaseRequest(id="a", cores=4, memory_mib=8000, stage="train", again=True)
    ledger.enqueue(pool, wants, who("a"))
    ledger.grant(pool, POOL)

    (member,) = take(pool, "a").members
    assert (member.cores, member.memory_mib) == (4, 8000)
    with pool.read() as session:
        request = session.get_one(LeaseRequestRow, "a")
    assert (request.stage, request.arrival) == ("train", 1)


def test_members_that_cannot_be_proven_dead_do_not_keep_those_on_other_devices_from_it(pool: Store) -> None:
    ledger.note_inventory(pool, POOL, (*FOUR, "cpu2:node=hung:cores=60:memory_mib=8000"))
    for number in range(60):
        ask(pool, f"a{number:02}", cores=1, memory_mib=1)
    ledger.grant(pool, POOL)
    for offer in ledger.offers(pool, POOL):
        ledger.accept(pool, AcceptRequest(request_id=offer.request_id, token=offer.token), who(offer.workflow_id))
        ledger.end(pool, POOL, offer.token, "fenced")

    asked = Counter(row.device for row in ledger.unproven(pool, POOL))

    assert asked == {"cpu0": 4, "cpu2": 46}


def test_who_is_too_far_back_for_a_reason_to_be_written_has_no_old_one(
    pool: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision, "MOST_EXPLAINED", 3)
    offered(pool, "a")
    ask(pool, "late")
    ledger.grant(pool, POOL)
    for number in range(4):
        ask(pool, f"b{number}", priority=90)
    ledger.grant(pool, POOL)

    with pool.read() as session:
        waiting = session.exec(select(LeaseRequestRow).where(LeaseRequestRow.state == "queued")).all()
    assert {row.id: row.code for row in waiting} == {
        "b0": "no_room",
        "b1": "behind",
        "b2": "behind",
        "b3": "",
        "late": "",
    }


def test_who_was_told_to_leave_a_drained_device_has_until_the_drain_that_counts_now(pool: Store) -> None:
    offered(pool, "a")
    slot = take(pool, "a")
    soon, later = (datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (30, 7200))
    ledger.drain(pool, POOL, "cpu0", soon)
    ledger.grant(pool, POOL)
    assert state(pool, slot.token) == "noticed"
    (row,) = ledger.untold(pool, POOL)
    ledger.told(pool, POOL, slot.token, row.deadline_at)

    ledger.drain(pool, POOL, "cpu0", later)

    (row,) = ledger.untold(pool, POOL)
    assert row.deadline_at == later
    ledger.grant(pool, POOL)
    assert state(pool, slot.token) == "noticed"


def test_a_view_stays_as_it_was_while_others_write(pool: Store) -> None:
    with pool.read() as session:
        before = len(session.exec(select(LeaseMemberRow)).all())
        offered(pool, "a")
        assert len(session.exec(select(LeaseMemberRow)).all()) == before
    with pool.read() as session:
        assert len(session.exec(select(LeaseMemberRow)).all()) == before + 1


def test_a_chain_that_hands_its_lease_on_keeps_its_clock_and_is_charged_once(pool: Store) -> None:
    """Else a search of short trials, which hands on every few minutes, could never be taken back."""
    ask(pool, "a", cores=4)
    ledger.grant(pool, POOL)
    first = take(pool, "a")
    begun = datetime.now(UTC) - timedelta(seconds=1000)
    with pool.write() as session:
        session.get_one(LeaseRow, (POOL, first.token)).granted_at = begun
        session.get_one(LeaseMemberRow, (POOL, first.token, 0)).since_ms = rows.ms(begun)

    second = ledger.adopt(pool, AcceptRequest(request_id="a", token=first.token), who("a", "run-2"))

    with pool.read() as session:
        row = session.get_one(LeaseRow, (POOL, second.token))
        assert row.granted_at == begun
        queue = session.get(QueueRow, (POOL, row.queue))
        assert queue is None or queue.usage_cores == 0
    ledger.end(pool, POOL, second.token, "released")
    with pool.read() as session:
        used_ms = session.get_one(QueueRow, (POOL, row.queue)).usage_cores
    assert 4 * 1_000_000 <= used_ms < 4 * 1_100_000
