"""Budgets and prices: what is spent is counted exactly, what is spent up holds still until somebody raises it."""

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sqlmodel import select

from activities import lease_budgets
from activities import lease_ledger as ledger
from activities.caller import Caller
from activities.jobs import memory
from activities.lease_time import in_ms
from api import budget as door
from api.advice import found, judged
from api.pool.seen import explained
from everloop import budgets, names
from everloop.amounts import NO_LIMIT
from everloop.budgets import NO_BOUNDS, Bounds, Price
from everloop.contracts import AcceptRequest, LeaseRequest, Wants
from everloop.errors import Invalid, NotFound
from everloop.specs import LifecycleSpec
from everloop.store import BudgetRow, JobTimeRow, LeaseRequestRow, LeaseRow, LifecycleRow, QueueRow, Store
from tests import api_parts as parts
from tests.temporal.conftest import SPEC

POOL = names.DEFAULT_POOL
EUR = Price(0, "EUR", 36_000_000, 3_600_000_000)
"""A core costs 0.01 EUR a second, a GPU 1 EUR."""


@pytest.fixture
def pool(store: Store) -> Store:
    ledger.note_inventory(store, POOL, ("cpu0:cores=4", "cpu1:light"))
    with store.write() as session:
        for name, parent in (("research", ""), ("vision", "research"), ("text", "")):
            session.add(QueueRow(pool=POOL, id=name, parent=parent, updated_at=datetime.now(UTC)))
        lease_budgets.set_prices(session, POOL, EUR, person="ada")
    return store


def who(name: str) -> Caller:
    return Caller(name, f"run-of-{name}", names.LIFECYCLE)


def ask(store: Store, name: str, *, again: bool = False, **more: object) -> None:
    ledger.enqueue(store, LeaseRequest.model_validate({"id": name, "again": again, "cores": 2} | more), who(name))


def lease(store: Store, name: str) -> LeaseRow:
    with store.read() as session:
        return session.exec(select(LeaseRow).where(LeaseRow.request_id == name)).one()


def take(store: Store, name: str) -> int:
    token = lease(store, name).token
    ledger.accept(store, AcceptRequest(request_id=name, token=token), who(name))
    return token


def bound(store: Store, scope: str, name: str, bounds: Bounds, *, restart: bool = False) -> str:
    with store.write() as session:
        at_ms = in_ms(datetime.now(UTC))
        return lease_budgets.change(session, POOL, scope, name, bounds, at_ms, person="ada", restart=restart)


def code(store: Store, name: str) -> str:
    with store.read() as session:
        return session.get_one(LeaseRequestRow, name).code


def test_a_spent_budget_takes_the_lease_at_a_checkpoint_and_holds_back_until_it_is_raised(pool: Store) -> None:
    bound(pool, "queue", "research", Bounds(NO_LIMIT, NO_LIMIT, 1_000))  # 0.001 EUR: 50 ms of two cores
    ask(pool, "a", queue="vision")
    ask(pool, "other", queue="text")
    assert ledger.grant(pool, POOL) == 2
    token = take(pool, "a")
    _, wake = ledger.outlook(pool, POOL)
    assert wake == pytest.approx(0.1, abs=0.01)  # it wakes when that is spent, and not more often than this
    time.sleep(0.07)

    ledger.grant(pool, POOL)

    told = lease(pool, "a")
    assert (told.state, told.notice, lease(pool, "other").state) == ("noticed", "budget", "offered")
    assert told.why.startswith("the budget of queue research is spent: 0.0")
    assert told.why.endswith(" EUR of 0.00 EUR")
    ledger.end(pool, POOL, token, "released")
    ask(pool, "a", again=True, queue="vision")
    search = LeaseRequest(id="b", queue="vision", cores=1)
    ledger.enqueue(pool, search, who(names.search_id("b")))
    ledger.grant(pool, POOL)
    again = Store(str(pool.engine.url))  # everything is started anew
    assert ledger.grant(again, POOL) == 0
    assert (code(again, "a"), code(again, "b")) == ("over_budget", "over_budget")
    waits = explained(again, "a").sentence
    assert "waits for more budget in queue vision: the budget of queue research is spent" in waits
    assert "`everloop budget set research`" in waits

    bound(again, "queue", "research", Bounds(NO_LIMIT, NO_LIMIT, 10_000_000))
    assert ledger.grant(again, POOL) == 1  # there is room for one of them
    assert code(again, "a") == ""
    again.close()


def test_a_budget_that_is_raised_during_the_grace_takes_its_notice_back(pool: Store) -> None:
    bound(pool, "lifecycle", "a", Bounds(0, NO_LIMIT, NO_LIMIT))
    ask(pool, "a", budget_core_ms=7)  # what a person has set stands before what the spec says
    with pool.read() as session:
        assert session.get_one(BudgetRow, (POOL, "lifecycle", "a")).core_ms == 0
    assert ledger.grant(pool, POOL) == 0
    bound(pool, "lifecycle", "a", Bounds(20, NO_LIMIT, NO_LIMIT), restart=True)
    assert ledger.grant(pool, POOL) == 1
    take(pool, "a")
    time.sleep(0.02)
    ledger.grant(pool, POOL)
    assert lease(pool, "a").state == "noticed"

    ledger.enqueue(pool, LeaseRequest(id="trials", cores=1), who(names.search_id("a")))
    ledger.grant(pool, POOL)
    assert code(pool, "trials") == "over_budget"  # its search spends the same budget

    bound(pool, "lifecycle", "a", Bounds(3_600_000, NO_LIMIT, NO_LIMIT))
    assert ledger.grant(pool, POOL) == 1

    assert (lease(pool, "a").state, lease(pool, "a").notice) == ("active", "")
    bound(pool, "lifecycle", "a", Bounds(0, NO_LIMIT, NO_LIMIT))
    ledger.grant(pool, POOL)
    assert lease(pool, "a").state == "noticed"
    assert bound(pool, "lifecycle", "a", NO_BOUNDS) == "lifecycle a has no budget any more"
    ledger.grant(pool, POOL)
    assert lease(pool, "a").state == "active"
    with pytest.raises(NotFound):
        bound(pool, "queue", "nobody", Bounds(1, 1, 1))


def test_a_budget_that_is_taken_away_takes_its_notice_back_also_where_others_have_one(pool: Store) -> None:
    bound(pool, "queue", "text", Bounds(3_600_000, NO_LIMIT, NO_LIMIT))
    bound(pool, "lifecycle", "a", Bounds(20, NO_LIMIT, NO_LIMIT))
    ask(pool, "a")
    ledger.grant(pool, POOL)
    take(pool, "a")
    time.sleep(0.02)
    ledger.grant(pool, POOL)
    assert lease(pool, "a").notice == "budget"

    bound(pool, "lifecycle", "a", NO_BOUNDS)
    ledger.grant(pool, POOL)

    assert (lease(pool, "a").state, lease(pool, "a").notice) == ("active", "")


def test_a_decision_looks_at_no_budget_of_a_lifecycle_that_has_ended(
    pool: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [f"ended-{number}" for number in range(30)]
    for name in ended:
        bound(pool, "lifecycle", name, Bounds(0 if name.endswith("1") else 3_600_000, NO_LIMIT, NO_LIMIT))
    bound(pool, "lifecycle", "a", Bounds(3_600_000, NO_LIMIT, NO_LIMIT))
    ask(pool, "a")
    looked: list[str] = []
    right = lease_budgets._fresh

    def fresh(session, row, tree):
        looked.append(row.name)
        return right(session, row, tree)

    monkeypatch.setattr(lease_budgets, "_fresh", fresh)
    assert ledger.grant(pool, POOL) == 1

    assert set(looked) == {"a"}
    ask(pool, "ended-1")  # it goes on, and its budget with it
    assert ledger.grant(pool, POOL) == 0
    assert code(pool, "ended-1") == "over_budget"
    assert set(looked) == {"a", "ended-1"}


def test_a_spec_names_the_budget_of_its_lifecycle_and_checks_go_on_without(pool: Store) -> None:
    spec = LifecycleSpec.model_validate(SPEC | {"budget": {"core_hours": 0, "money": 2.5}})
    wants = Wants.of(spec, "train")
    assert (wants.budget_core_ms, wants.budget_gpu_ms, wants.budget_micros) == (0, NO_LIMIT, 2_500_000)
    ledger.enqueue(pool, LeaseRequest(id="a", **dict(wants)), who("a"))
    bound(pool, "queue", "default", Bounds(0, 0, 0))
    ledger.enqueue(pool, LeaseRequest(id="check", kind="check"), who("check"))

    assert ledger.grant(pool, POOL) == 1
    assert (code(pool, "a"), code(pool, "check")) == ("over_budget", "")


def test_what_ended_is_counted_once_and_by_the_prices_of_its_time(pool: Store) -> None:
    bound(pool, "queue", "text", Bounds(10**12, NO_LIMIT, NO_LIMIT))
    for number in range(1, 4):
        ask(pool, f"a{number}", queue="text")
        ledger.grant(pool, POOL)
        token = take(pool, f"a{number}")
        time.sleep(0.01)
        ledger.end(pool, POOL, token, "released")
        ledger.grant(pool, POOL)
    with pool.write() as session:
        lease_budgets.set_prices(
            session, POOL, EUR._replace(from_ms=in_ms(datetime.now(UTC)), core_micros=0), person="b"
        )
        with pytest.raises(Invalid, match="prices are in EUR already"):
            lease_budgets.set_prices(session, POOL, EUR._replace(currency="CHF"), person="b")

    with pool.read() as session:
        row = session.get_one(BudgetRow, (POOL, "queue", "text"))
        used = lease_budgets.used(session, POOL, row, in_ms(datetime.now(UTC)))
        seen = door.seen(session, POOL)
    leases = [lease(pool, f"a{number}") for number in range(1, 4)]
    whole = sum(2 * (in_ms(one.ended_at) - in_ms(one.granted_at)) for one in leases)
    assert (row.used_core_ms, used.core_ms, used.micros) == (whole, whole, whole * 10)
    assert seen.prices.core_hour == 0
    assert seen.items[0].used["core_hours"] == pytest.approx(whole / 3_600_000)


@given(
    prices=some.lists(some.builds(Price, some.integers(0, 100), some.just("EUR"), some.integers(0, 9**9),
                                  some.integers(0, 9**9)), max_size=4),
    begin=some.integers(0, 120), length=some.integers(0, 60), cores=some.integers(0, 64), gpu=some.integers(0, 8000),
)  # fmt: skip
def test_each_millisecond_is_priced_by_the_list_of_its_time(
    prices: list[Price], begin: int, length: int, cores: int, gpu: int
) -> None:
    known = sorted({price.from_ms: price for price in prices}.values())

    found = budgets.spent(known, begin, begin + length, cores, gpu)

    slowly = 0
    for at in range(begin, begin + length):
        valid = [price for price in known if price.from_ms <= at]
        slowly += (cores * valid[-1].core_micros * 1000 + gpu * valid[-1].gpu_micros) if valid else 0
    assert 0 <= slowly - found.micros * 3_600_000_000 < 3_600_000_000 * (len(known) + 1)
    assert (found.core_ms, found.gpu_ms) == (cores * length, gpu * length)


@pytest.mark.parametrize("value", ["-1", "NaN", "many", True, "1e30", [1]])
def test_what_is_no_amount_is_refused(value: object) -> None:
    with pytest.raises(Invalid):
        budgets.hours(value, "core_hours")


def test_amounts_that_no_column_holds_are_refused_and_sums_stop_before_it() -> None:
    with pytest.raises(Invalid, match="gpu_hours: 1e12 is too much"):
        door._bounds(door.BudgetAsked(gpu_hours="1e12"), NO_BOUNDS)
    with pytest.raises(Invalid, match="too much"):
        budgets.money(2**62 / 10**6, "core_hour")
    dear = Price(0, "EUR", 2**61, 2**61)
    spent = budgets.spent([dear], 0, 10 * budgets.HOUR_MS, 64, 8000)
    assert budgets.plus(Bounds(), spent).micros == budgets.MOST < 2**63


@pytest.mark.parametrize(
    ("cores", "used", "memory_mib", "peak_mib", "kind", "says"),
    [
        (4, 1.2, 8192, 812, "over", "`cpus: 2` and `memory: 1024MiB` would do"),
        (4, 3.9, 8192, 6000, "under", "`cpus: 8` may make it faster"),
        (1, 0.99, 8192, 6000, "under", "a second core (`cpus: 2`) may make it faster"),
        (4, 2.5, 1024, 1000, "under", "close to being ended for its memory; `memory: 1536MiB`"),
        (2, 1.5, 2048, 1500, "fits", "that fits"),
        (1, 0.2, 0, 300, "fits", "that fits"),
    ],
)
def test_advice_says_what_to_write_into_the_spec(  # noqa: PLR0917
    cores: int, used: float, memory_mib: int, peak_mib: int, kind: str, says: str
) -> None:
    told, sentence = judged(cores, used, memory_mib, peak_mib)

    assert (told, says in sentence) == (kind, True), sentence


def test_advice_is_by_model_and_stage_from_jobs_that_were_measured(pool: Store) -> None:
    ask(pool, "a", cores=4)
    ledger.grant(pool, POOL)
    take(pool, "a")
    now = datetime.now(UTC)
    with pool.write() as session:
        session.add(LifecycleRow(**parts.lifecycle("a").model_dump() | {"model": "churn"}))
        for number, seconds in ((1, 60), (2, 1)):  # the short one says nothing
            row = JobTimeRow(job=f"run-of-a/train.{number}", attempt=1, token=1, stage="train", from_ms=in_ms(now),
                             to_ms=in_ms(now) + 1000 * seconds, done=True, cpu_ms=61_000, peak_mib=900)  # fmt: skip
            session.add(row)

    with pool.read() as session:
        (told,) = found(session, POOL, now - timedelta(hours=1))

    assert (told.model, told.stage, told.jobs, told.cores, told.cores_used, told.kind) == (
        "churn",
        "train",
        1,
        4,
        1.02,
        "over",
    )
    assert (
        told.sentence
        == "train of churn used 1.0 of 4 cores and 900 MiB: `cpus: 2` would do, and others could run beside it"
    )


def test_a_jobs_processor_time_and_memory_are_measured_while_it_runs() -> None:
    busy = "import time; x = bytearray(64 << 20); t = time.process_time()\nwhile time.process_time() - t < 30: pass"
    child = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"]
    )
    try:
        watched = memory.Memory(1 << 40)
        watched.reaper = child.pid
        deadline = time.monotonic() + 60
        while watched.cpu_ms < 300 and time.monotonic() < deadline:
            watched.look()
            time.sleep(0.05)
    finally:
        for pid in [*memory.below(child.pid), child.pid]:
            subprocess.run(["kill", "-9", str(pid)], check=False)
        child.wait()

    measured = watched.measured()
    assert measured["cpu_ms"] >= 300
    assert 64 <= measured["peak_mib"] < 400
