"""What the ledger gives never sums to more than there is; what was taken away stays used."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from activities import lease_ledger as ledger
from activities.lease_ledger import record
from activities.lease_ledger.decision import explain
from activities.lease_policy.state import Explain
from everloop.contracts import AcceptRequest, CommitRequest, LeaseRequest
from everloop.errors import Forbidden, LeaseLost
from everloop.store import DeviceRow, LeaseRequestRow, LeaseRow, PoolDecisionRow, PoolRow, Store
from tests.unit.lease_capacity.holders import FOUR, POOL, ask, state, take, used, who


def test_leases_of_several_sizes_share_a_device_and_the_database_refuses_one_core_more(pool: Store) -> None:
    for name, wants in {"a": {"cores": 2}, "b": {"memory_mib": 1500}, "c": {}, "d": {}}.items():
        ask(pool, name, **wants)

    assert ledger.grant(pool, POOL) == 3

    slots = {name: take(pool, name).members[0] for name in ("a", "b", "c")}
    assert {name: (one.device, one.cores, one.memory_mib) for name, one in slots.items()} == {
        "a": ("cpu0", 2, 4000),  # who does not say how much memory has that of its cores
        "b": ("cpu0", 1, 1500),
        "c": ("cpu0", 1, 2000),
    }
    assert used(pool) == (4, 7500)
    for change in ({"used_cores": 5}, {"used_memory_mib": 8001}, {"used_milli_gpu": 1}, {"used_cores": -1}):
        with pytest.raises(IntegrityError), pool.write() as session:
            session.get_one(DeviceRow, (POOL, "cpu0")).sqlmodel_update(change)


def test_what_was_taken_away_is_used_until_it_is_proven_dead(pool: Store) -> None:
    ask(pool, "a", cores=4)
    ledger.grant(pool, POOL)
    slot = take(pool, "a")
    ask(pool, "b", cores=1)

    ledger.end_run(pool, who("a"))

    assert state(pool, slot.token) == "fenced"
    assert used(pool)[0] == 4
    assert ledger.grant(pool, POOL) == 0
    (left,) = ledger.unproven(pool, POOL)
    ledger.note_inventory(pool, POOL, ())  # its worker is away: nobody can be asked
    assert ledger.unproven(pool, POOL) == []
    ledger.note_inventory(pool, POOL, FOUR)
    ledger.proven(pool, POOL, [(left.token, left.rank)])
    assert used(pool) == (0, 0)
    assert ledger.grant(pool, POOL) == 1


def test_a_device_on_which_an_ended_lease_cannot_be_ended_is_closed_until_it_is(pool: Store) -> None:
    ask(pool, "a")
    ledger.grant(pool, POOL)
    slot = take(pool, "a")
    ledger.end_run(pool, who("a"))
    assert ledger.quarantine(pool, POOL) == set()  # there is still time
    with pool.write() as session:
        session.get_one(LeaseRow, (POOL, slot.token)).ended_at = datetime.now(UTC) - timedelta(minutes=5)
    ask(pool, "b")

    assert ledger.quarantine(pool, POOL) == {"cpu0"}
    assert ledger.grant(pool, POOL) == 0
    ledger.drain(pool, POOL, "cpu0", datetime.now(UTC) + timedelta(hours=1))  # an operator's word stands
    with pool.read() as session:
        version = session.get_one(PoolRow, POOL).version
    for _ in range(3):
        assert ledger.quarantine(pool, POOL) == set()
    with pool.read() as session:
        assert session.get_one(PoolRow, POOL).version == version  # a look alone is no change
    ledger.undrain(pool, POOL, "cpu0")
    assert ledger.quarantine(pool, POOL) == {"cpu0"}

    ledger.proven(pool, POOL, [(slot.token, 0)])
    assert ledger.quarantine(pool, POOL) == set()
    assert ledger.grant(pool, POOL) == 1


def test_nobody_who_holds_two_leases_is_fenced_by_the_newer_one(pool: Store) -> None:
    for name in ("first", "second"):
        ledger.enqueue(pool, LeaseRequest(id=name), who("ada"))
    ledger.grant(pool, POOL)
    slots = [
        ledger.accept(pool, AcceptRequest(request_id=row.request_id, token=row.token), who("ada"))
        for row in sorted(ledger.offers(pool, POOL), key=lambda row: row.token)
    ]

    for slot in slots:
        ledger.commit(pool, CommitRequest(slot=slot, stage=str(slot.token), digest="d"), who("ada"))
    ledger.end(pool, POOL, slots[0].token, "released")
    with pytest.raises(LeaseLost):
        ledger.commit(pool, CommitRequest(slot=slots[0], stage="late", digest="d"), who("ada"))
    ledger.end(pool, POOL, slots[1].token, "fenced")
    with pytest.raises(LeaseLost):
        ledger.commit(pool, CommitRequest(slot=slots[1], stage="late", digest="d"), who("ada"))


def test_the_next_run_of_a_workflow_adopts_its_lease_under_a_new_token_and_the_old_one_commits_nothing(
    pool: Store,
) -> None:
    ask(pool, "ada", cores=3)
    ledger.grant(pool, POOL)
    old = take(pool, "ada")
    given, again = AcceptRequest(request_id="ada", token=old.token), who("ada", "run-2")

    with pytest.raises(Forbidden):
        ledger.adopt(pool, given, who("bob"))
    new = ledger.adopt(pool, given, again)

    assert ledger.adopt(pool, given, again) == new
    assert new.token > old.token
    assert new.members == old.members
    assert used(pool)[0] == 3
    ledger.commit(pool, CommitRequest(slot=new, stage="train", digest="d"), again)
    ledger.end_run(pool, who("ada"))  # the run before ends: its lease has gone on
    assert state(pool, new.token) == "active"
    with pool.read() as session:
        assert session.get_one(LeaseRow, (POOL, new.token)).follows == old.token
    ledger.end(pool, POOL, new.token, "released")
    with pytest.raises(LeaseLost):
        ledger.adopt(pool, AcceptRequest(request_id="ada", token=new.token), who("ada", "run-3"))


def test_a_device_that_comes_back_smaller_still_counts_what_is_used_of_it(pool: Store) -> None:
    ask(pool, "a", cores=4)
    ledger.grant(pool, POOL)
    slot = take(pool, "a")

    ledger.note_inventory(pool, POOL, ("cpu0:cores=2:memory_mib=1000",))

    with pool.read() as session:
        assert session.get_one(DeviceRow, (POOL, "cpu0")).cores == 4
    ledger.end(pool, POOL, slot.token, "released")
    ledger.note_inventory(pool, POOL, ("cpu0:cores=2:memory_mib=1000",))
    with pool.read() as session:
        assert session.get_one(DeviceRow, (POOL, "cpu0")).cores == 2


def test_records_are_whole_again_and_old_ones_go_whatever_else_counts_as_a_version(
    pool: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "WHOLE_EVERY", 4)
    wholes = []
    for number in range(6):
        ask(pool, f"a{number}")
        ledger.grant(pool, POOL)
        ledger.end_run(pool, who(f"a{number}"))  # the version between two decisions
        with pool.read() as session:
            newest = session.exec(select(PoolDecisionRow).order_by(col(PoolDecisionRow.version).desc())).first()
            wholes.append((newest.version, newest.whole))
        if number == 2:
            with pool.write() as session:
                for row in session.exec(select(PoolDecisionRow)).all():
                    row.at = datetime.now(UTC) - timedelta(days=8)

    assert {version % 2 for version, _ in wholes} == {wholes[0][0] % 2}
    assert sum(whole for _, whole in wholes) >= 3
    with pool.read() as session:
        records = session.exec(select(PoolDecisionRow).order_by(PoolDecisionRow.version)).all()
        assert len(records) < 6
        assert len(list(record.replayed(records))) == len(records)


def test_who_waits_in_vain_costs_no_version_and_no_record(pool: Store) -> None:
    ask(pool, "held", cores=4)
    ledger.grant(pool, POOL)
    take(pool, "held")
    ask(pool, "waits")
    ask(pool, "large", cores=400)
    ask(pool, "lost", queue="nowhere")

    def written() -> tuple[int, int]:
        with pool.read() as session:
            return session.get_one(PoolRow, POOL).version, len(session.exec(select(PoolDecisionRow)).all())

    ledger.grant(pool, POOL)
    before = written()
    for _ in range(5):
        assert ledger.grant(pool, POOL) == 0
    assert written() == before
    waiting, wake = ledger.outlook(pool, POOL)
    assert waiting == 3
    assert wake is not None
    assert wake > 10
    assert explain(pool, POOL, [one for one in ledger.look(pool, POOL)[2] if isinstance(one, Explain)]) == 0
    with pool.read() as session:
        codes = {row.id: row.code for row in session.exec(select(LeaseRequestRow)).all()}
    assert codes == {"held": "", "waits": "no_room", "large": "infeasible", "lost": "unknown_queue"}
