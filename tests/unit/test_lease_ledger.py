"""The lease ledger in SQL: its hot questions use an index, and older folders keep their tokens in order."""

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.dialects import postgresql
from sqlmodel import SQLModel, select

from activities import lease_ledger as ledger
from activities.caller import Caller
from activities.lease import check_token
from everloop import names
from everloop.contracts import AcceptRequest, LeaseRequest
from everloop.errors import Forbidden, LeaseLost
from everloop.records import Slot
from everloop.store import LEASE_TOKENS, CounterRow, LeaseRequestRow, LeaseRow, Store, TriggerRow

POOL = names.DEFAULT_POOL
ADA, BOB = Caller("ada", "run-1", names.LIFECYCLE), Caller("bob", "run-2", names.LIFECYCLE)


def ask(store: Store, asks: Caller, *, again: str = "") -> str:
    request_id = again or str(uuid.uuid4())
    ledger.enqueue(store, LeaseRequest(id=request_id, again=bool(again)), asks)
    return request_id


def offered(store: Store, request_id: str) -> LeaseRow:
    with store.read() as session:
        return session.exec(select(LeaseRow).where(LeaseRow.request_id == request_id)).one()


def state_of(store: Store, request_id: str) -> tuple[str, str]:
    with store.read() as session:
        row = session.get_one(LeaseRequestRow, request_id)
        return row.state, row.reason


def come_to_its_time(store: Store, token: int) -> None:
    with store.write() as session:
        row = session.get_one(LeaseRow, (POOL, token))
        row.expires_at = datetime.now(UTC) - timedelta(seconds=1)
        session.add(row)


@pytest.fixture
def pool(store: Store) -> Store:
    ledger.note_inventory(store, POOL, ("cpu0",))
    return store


def test_an_offer_that_nobody_takes_lapses_and_the_next_in_the_queue_gets_the_slot(pool: Store) -> None:
    first, second = ask(pool, ADA), ask(pool, BOB)
    ledger.grant(pool, POOL)
    token = offered(pool, first).token

    renewals = 0
    while state_of(pool, first)[0] == "granted":
        come_to_its_time(pool, token)
        ledger.renew(pool, POOL, token)
        renewals += 1
        assert renewals < 10, "the offer is renewed for ever"

    assert renewals == ledger.RENEWALS + 1
    state, reason = state_of(pool, first)
    assert state == "lapsed"
    assert reason.startswith("cpu0 was offered and not taken for")
    assert ledger.grant(pool, POOL) == 1
    assert offered(pool, second).state == "offered"


def test_a_holder_that_lives_keeps_its_lease_however_often_it_comes_to_its_time(pool: Store) -> None:
    request = ask(pool, ADA)
    ledger.grant(pool, POOL)
    token = offered(pool, request).token
    ledger.accept(pool, AcceptRequest(request_id=request, token=token), ADA)

    for _ in range(20):
        come_to_its_time(pool, token)
        ledger.renew(pool, POOL, token)

    assert offered(pool, request).state == "active"


def test_who_comes_late_to_a_lapsed_offer_is_told_why_and_waits_in_its_old_place(pool: Store) -> None:
    first = ask(pool, ADA)
    ledger.grant(pool, POOL)
    for _ in range(ledger.RENEWALS + 1):
        ledger.renew(pool, POOL, 1)
    second = ask(pool, BOB)

    with pytest.raises(LeaseLost):
        ledger.accept(pool, AcceptRequest(request_id=first, token=1), ADA)
    reason = ledger.enqueue(pool, LeaseRequest(id=first, again=True), ADA)

    assert "not taken" in reason
    assert ledger.enqueue(pool, LeaseRequest(id=first, again=True), ADA) == ""
    ledger.grant(pool, POOL)
    assert (state_of(pool, first)[0], state_of(pool, second)[0]) == ("granted", "queued")


def test_only_the_run_that_was_granted_a_lease_takes_it_and_only_its_workflow_gives_it_back(pool: Store) -> None:
    request = ask(pool, ADA)
    ledger.grant(pool, POOL)
    token = offered(pool, request).token
    another_run = Caller("ada", "run-9", names.LIFECYCLE)

    for asks, given in (
        (BOB, AcceptRequest(request_id=request, token=token)),
        (another_run, AcceptRequest(request_id=request, token=token)),
        (ADA, AcceptRequest(request_id="another", token=token)),
        (ADA, AcceptRequest(request_id=request, token=token + 1)),
        (ADA, AcceptRequest(request_id=request, token=10**30)),
    ):
        with pytest.raises(LeaseLost):
            ledger.accept(pool, given, asks)
    assert offered(pool, request).state == "offered"

    for asks, given in (
        (BOB, AcceptRequest(request_id=request, token=token)),
        (BOB, AcceptRequest(request_id="", token=token)),
        (ADA, AcceptRequest(request_id="another", token=token)),
    ):
        with pytest.raises(Forbidden):
            ledger.held(pool, given, asks)
    with pytest.raises(Forbidden):
        ledger.cancel(pool, request, BOB)
    with pytest.raises(Forbidden):
        ask(pool, BOB, again=request)
    assert offered(pool, request).state == "offered"

    for asks in (ADA, another_run):  # after a Reset the new run has replayed the lease; older workers name no request
        for named in (request, ""):
            found = ledger.held(pool, AcceptRequest(request_id=named, token=token), asks)
            assert found is not None
            assert found.token == token


def test_a_reset_queues_the_request_for_the_new_run_and_the_old_grant_ends_without_ending_it(pool: Store) -> None:
    request = ask(pool, ADA)
    ledger.grant(pool, POOL)
    again = Caller("ada", "run-9", names.LIFECYCLE)

    ask(pool, again, again=request)
    assert ledger.end_run(pool, ADA) == {POOL}

    assert state_of(pool, request)[0] == "queued"
    assert ledger.grant(pool, POOL) == 1
    with pool.read() as session:
        rows = session.exec(select(LeaseRow).order_by(LeaseRow.token)).all()
    assert [(row.run_id, row.state) for row in rows] == [("run-1", "fenced"), ("run-9", "offered")]


def test_all_pools_of_the_deployment_draw_from_one_counter(pool: Store) -> None:
    ledger.note_inventory(pool, "gpu", ("gpu0",))
    tokens = []
    for number in range(4):
        name = ("gpu", POOL)[number % 2]
        asks = Caller(f"w{number}", "r", names.LIFECYCLE)
        ledger.enqueue(pool, LeaseRequest(id=str(number), pool=name), asks)
        assert ledger.grant(pool, name) == 1
        row = offered(pool, str(number))
        tokens.append(row.token)
        ledger.end(pool, name, row.token, "released")

    assert tokens == [1, 2, 3, 4]


def config(store: Store) -> Config:
    made = Config()
    made.set_main_option("script_location", str(Path("everloop/migrations").absolute()))
    made.attributes["engine"] = store.engine
    return made


def test_a_folder_of_before_goes_on_with_greater_tokens_and_keeps_its_decided_windows(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'old.db'}")
    command.upgrade(config(store), "0001")
    with store.write() as session:
        for name, token in (("default", 7), ("gpu", 41)):
            session.connection().execute(sa.text(f"INSERT INTO pool VALUES ('{name}', 3, {token})"))
        session.connection().execute(
            sa.text(
                "INSERT INTO lease VALUES ('default', 7, 'r', 'ada/run-1', 'ada', 'run-1', 'cpu0', 'cpu0', 'active', "
                "'2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000', NULL)"
            )
        )
        session.connection().execute(
            sa.text(
                "INSERT INTO \"trigger\" VALUES ('default', 'credit', '2026-01-01 00:00:00.000000', "
                "'2026-01-02 00:00:00.000000', 1, 0.9, "
                "'retrain', 'drifted', 'retrain/default/credit/20260101T000000Z', '2026-01-02 00:00:00.000000')"
            )
        )

    store.migrate()

    with store.read() as session:
        assert session.get_one(CounterRow, LEASE_TOKENS).value == 41
        key = ("default", "credit", datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
        assert session.get_one(TriggerRow, key).lifecycle == "retrain/default/credit/20260101T000000Z"
        check_token(session, Slot(device="cpu0", token=7, holder="ada/run-1"))
    ledger.note_inventory(store, POOL, ("cpu0", "cpu1"))
    request = ask(store, BOB)
    ledger.grant(store, POOL)
    assert offered(store, request).token == 42
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []
    command.downgrade(config(store), "0001")
    store.migrate()
    store.close()


def test_the_hot_questions_to_the_ledger_use_an_index(pool: Store) -> None:
    """Recorded while the ledger's functions run: every SELECT on leases and requests, with its plan."""
    asked: list[tuple[str, tuple[object, ...]]] = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        asked.append((statement, parameters))

    sa.event.listen(pool.engine, "before_cursor_execute", note)
    request = ask(pool, ADA)
    ask(pool, ADA, again=request)
    ledger.grant(pool, POOL)
    token = offered(pool, request).token
    given = AcceptRequest(request_id=request, token=token)
    slot = ledger.accept(pool, given, ADA)
    with pool.read() as session:
        check_token(session, slot)
    ledger.held(pool, given, ADA)
    ledger.due(pool, POOL)
    ledger.offers(pool, POOL)
    ledger.outlook(pool, POOL)
    ledger.renew(pool, POOL, token)
    ledger.cancel(pool, request, ADA)
    ledger.end_run(pool, ADA)
    sa.event.remove(pool.engine, "before_cursor_execute", note)

    selects = [(text, values) for text, values in asked if text.startswith("SELECT") and "lease" in text]
    assert len(selects) > 15
    with pool.engine.connect() as connection:
        for text, values in selects:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
            said = "; ".join(row[3] for row in plan)
            assert "SCAN" not in said, f"{said}\n{text}"
            assert "TEMP B-TREE" not in said or "ORDER BY lease.granted_at" in text, f"{said}\n{text}"


def test_no_token_is_looked_up_that_postgres_cannot_compare(pool: Store) -> None:
    """There a larger one is an error of the driver, which the activity would try again for ever."""
    column = LeaseRow.__table__.c.token.type.compile(dialect=postgresql.dialect())  # type: ignore[attr-defined]

    assert {"INTEGER": 2**31, "BIGINT": 2**63}[column] > ledger.LARGEST
    with pytest.raises(LeaseLost):
        ledger.accept(pool, AcceptRequest(request_id=ask(pool, ADA), token=ledger.LARGEST + 1), ADA)
