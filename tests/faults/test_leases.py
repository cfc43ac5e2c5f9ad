"""Leases on the real stack: shares between queues, exclusion by amounts, and fences that hold after a standstill."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlmodel import select

from activities import lease_ledger as ledger
from everloop import names, stack
from everloop import settings as configuration
from everloop.client import Client
from everloop.settings import Settings
from everloop.store import LeaseRow, MetricRow, PoolPolicyRow, ResultRow, StageRow, Store
from tests.conftest import free_port_base
from tests.faults import leases_harness as harness
from tests.faults.leases_harness import eventually
from tests.faults.test_kill_each_stage import SEED, spec_of, up, write_table
from tests.loop.test_stack import everloop

POOL = names.DEFAULT_POOL
ROUNDS = 3000


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """One stack for all of these tests, so that each begins on what the one before has left: nothing."""
    made = configuration.load(data_dir=tmp_path_factory.mktemp("leases") / "data", port_base=free_port_base())
    yield made
    stack.down(made)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table"), random.Random(SEED))


@pytest.fixture(scope="module")
def store(here: Settings) -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERLOOP_SLOTS", "4")
        patch.setenv("EVERLOOP_SLOT_CORES", "2")
        patch.setenv("EVERLOOP_CHECKPOINT_SECONDS", "0.2")
        patch.setenv("EVERLOOP_AWAY_SECONDS", "8")  # less than a person waits, more than a slot takes to come back
        up(here)
    opened = Store(here.database)
    yield opened
    opened.close()


def long_training(table: Path, model: str, **more: Any) -> dict[str, Any]:
    training = {"rounds": ROUNDS, "early_stopping": 1000, "learning_rate": 0.001, "leaves": 31}
    params = {"bagging_fraction": 0.8, "feature_fraction": 0.8}
    return spec_of(table, model) | {"training": training, "params": params, "until": "train"} | more


def lease_of(store: Store, lifecycle: str, number: int = 0) -> LeaseRow | None:
    with store.read() as session:
        query = select(LeaseRow).where(LeaseRow.workflow_id == lifecycle).order_by(LeaseRow.token)
        found = session.exec(query).all()
        return found[number] if len(found) > number else None


def kept(here: Settings, token: int) -> list[Path]:
    return sorted(here.checkpoints_dir.glob(f"*/training.train/*/{token}/[0-9]*"))


@pytest.mark.timeout(600)
def test_jobs_of_several_sizes_never_use_more_than_a_device_has_and_leave_nothing_behind(
    here: Settings, store: Store, table: Path, tmp_path: Path
) -> None:
    print(f"EVERLOOP_TEST_SEED={SEED}")
    records = tmp_path / "records"

    harness.run(here, table, records, lifecycles=6, kills=4, seed=SEED, pause=(1, 3))

    assert harness.overlaps(records, cores=2) == []
    assert len(harness.spans(records)) >= 6
    assert eventually(lambda: not harness.leaks(here), 60), harness.leaks(here)
    assert harness.unaccounted(here) == []


@pytest.mark.timeout(300)
def test_a_job_whose_device_is_lost_goes_on_on_another_one(here: Settings, store: Store, table: Path) -> None:
    with Client(data_dir=here.data_dir) as client:
        client.submit(spec_of(table, "lost") | {"until": "prepare"}, "lost")
        lease = eventually(lambda: lease_of(store, "lost"), 60)
        job = eventually(lambda: harness.job_on(here, lease.device, "features.prepare"), 60)
        slot = slot_of(here, lease.device)
        os.kill(job, signal.SIGSTOP)  # it has not ended when its device goes
        os.kill(slot, signal.SIGSTOP)  # nobody starts the Dask worker again
        os.kill(psutil.Process(slot).children()[0].pid, signal.SIGKILL)
        try:
            began = time.monotonic()
            found = client.wait("lost", until="gate", timeout=150)
        finally:
            os.kill(slot, signal.SIGCONT)

    assert found["status"] == "done", found
    assert stack.start_time(job) == 0
    other = lease_of(store, "lost", 1)
    assert (lease_of(store, "lost").state, other.state) == ("fenced", "released")
    assert other.device != lease.device
    print(f"prepared {time.monotonic() - began:.0f} s after the loss")
    assert everloop(here, "journal", "verify").returncode == 0


def slot_of(here: Settings, device: str) -> int:
    """The process above the device's Dask worker."""
    named = (each.pid for each in stack.members(here) if each.command.endswith(f"slot {device}"))
    return next(pid for pid in named if psutil.Process(pid).children())


@pytest.mark.timeout(600)
def test_who_stands_still_past_the_end_of_its_lease_writes_nothing_when_it_goes_on(
    here: Settings, store: Store, table: Path
) -> None:
    with Client(data_dir=here.data_dir) as client:
        client.submit(long_training(table, "still"), "still")
        lease = eventually(lambda: lease_of(store, "still"), 60)
        eventually(lambda: kept(here, lease.token), 120)
        slot = slot_of(here, lease.device)
        tree = psutil.Process(slot).children(recursive=True)  # Dask worker, warm process, reaper and job
        for process in tree:
            process.send_signal(signal.SIGSTOP)
        try:
            ledger.revoke(store, lease.token, by="ada", reason="", grace=timedelta(seconds=1))
            harness.wake(here)
            taken = eventually(lambda: (row := lease_of(store, "still")) and row.state == "killing" and row, 60)
            other = eventually(lambda: lease_of(store, "still", 1), 60)
            assert other.device != lease.device  # nothing of the other is free before it is proven dead
            eventually(lambda: kept(here, other.token), 120)
            before, steps = kept(here, lease.token), metrics(store, lease)
            assert steps
        finally:
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):  # the first to go on ends those below it
                    process.send_signal(signal.SIGCONT)
        eventually(lambda: lease_of(store, "still").state == "fenced", 90)  # the proof
        client.cancel("still")

    assert taken.ended_at is not None
    assert kept(here, lease.token) in (before, [])
    with store.read() as session:
        results = session.exec(select(ResultRow).where(ResultRow.workflow_id == "still", ResultRow.stage == "train"))
        assert results.all() == []
    assert metrics(store, lease) == steps
    assert eventually(lambda: not harness.leaks(here), 60)


@pytest.mark.timeout(600)
def test_what_an_operator_orders_happens_as_the_door_said_and_the_training_goes_on_from_its_checkpoints(
    here: Settings, store: Store, table: Path
) -> None:
    """A training is drained from its device, then gives way to a quota, to a limit, and for its max_runtime."""
    policy(store, min_runtime_s=0, grace_s=60, reserve_after_s=1)
    with Client(data_dir=here.data_dir) as client:
        client.apply_queues({"queues": {"tabular": {"quota": {"cores": 6}}, "vision": {}}})
        client.submit(long_training(table, "moved", queue="tabular", max_runtime="PT1S"), "moved")
        first = held_at_a_checkpoint(here, store, "moved", 0)

        # A device is drained: it moves, and nothing else is placed there.
        told = everloop(here, "node", "drain", first.device, "--grace", "60", "--reason", "a new disk")
        assert "1 lease on it told to let go within 60 s" in told.stdout, told
        second = held_at_a_checkpoint(here, store, "moved", 1)
        assert second.device != first.device
        assert (lease_of(store, "moved").notice, lease_of(store, "moved").state) == ("drain", "released")
        others = {"cpu0", "cpu1", "cpu2"} - {first.device, second.device}
        client.drain(others.pop())
        client.submit(short(table, "owed", queue="vision"), "owed")
        eventually(lambda: waits(client, "owed", "no_room"), 60)
        assert lease_of(store, "owed") is None

        # A quota below what is used: the door says who is told to let go, and that happens.
        tree = {"queues": {"tabular": {"quota": {"cores": 0}}, "vision": {"quota": {"cores": 2}}}}
        said = client.apply_queues(tree, only_try=True)
        assert [(each["lifecycle"], each["then"]) for each in said["effects"]] == [("moved", "noticed")]
        assert "moved" not in [row.workflow_id for row in noticed(store)]  # it was only tried
        client.apply_queues(tree)
        client.wait("owed", timeout=120)
        third = held_at_a_checkpoint(here, store, "moved", 2)
        assert lease_of(store, "moved", 1).notice == "reclaim"
        assert lease_of(store, "owed").device == third.device == second.device
        assert lease_of(store, "moved", 1).checkpoint_at is not None
        eventually(lambda: f"from a checkpoint of token {second.token}" in client.logs("moved", "train"), 60)

        # A limit below what is used takes nothing, and keeps it waiting once it has given back what it has.
        said = client.set_queue("tabular", {"limit": {"cores": 1}})
        assert [(each["lifecycle"], each["then"]) for each in said["effects"]] == [("moved", "over_limit")]
        client.revoke(third.token, "to see it wait", 60)
        eventually(lambda: waits(client, "moved", "over_limit"), 120)
        assert "queue tabular would go over its limit" in client.explain("moved")["sentence"]
        client.set_queue("tabular", {"limit": "none", "quota": {"cores": 4}})
        fourth = held_at_a_checkpoint(here, store, "moved", 3)

        # Longer than its declared max_runtime: it says so, and is the first to let go for who has waited.
        eventually(lambda: "longer than the max_runtime of 1 s" in client.explain(str(fourth.token))["sentence"], 30)
        client.submit(short(table, "patient", queue="tabular"), "patient")
        eventually(lambda: waits(client, "patient", "no_room"), 60)
        time.sleep(1)
        harness.wake(here)  # the pool would look again within a minute
        client.wait("patient", timeout=120)
        assert lease_of(store, "moved", 3).notice == "over_runtime"

        # A device is closed: nothing is told to let go there.
        assert "no new leases" in everloop(here, "node", "cordon", "cpu2", "-m", "a noisy fan").stdout
        (closed,) = [each for each in client.nodes()[0]["devices"] if each["state"] == "cordoned"]
        assert (closed["name"], "a noisy fan" in closed["why"]) == ("cpu2", True)
        client.undrain("cpu2")

        # All of a machine is drained: who waits says so, and goes on where it was when it is opened.
        fifth = held_at_a_checkpoint(here, store, "moved", 4)
        (node,) = client.nodes()
        client.drain(node["node"], "the machine goes to the workshop")
        eventually(lambda: client.nodes()[0]["state"] == "drained", 60)
        eventually(lambda: client.show("moved")["wait"].startswith("Waiting for 2 cores"), 60)
        assert "leases again" in everloop(here, "node", "undrain", node["node"]).stdout
        sixth = held_at_a_checkpoint(here, store, "moved", 5)
        eventually(lambda: f"from a checkpoint of token {fifth.token}" in client.logs("moved", "train"), 60)
        client.cancel("moved")

    assert len({row.request_id for row in (first, second, third, fourth, fifth, sixth)}) == 1  # always its first place
    preempted = [row.summary for row in stages(store, "moved") if row.status == "preempted"]
    assert len(preempted) == 5
    assert "it runs longer than the max_runtime that was declared, and others wait" in preempted[3]
    assert eventually(lambda: not harness.leaks(here), 60)
    assert harness.unaccounted(here) == []


def short(table: Path, model: str, **more: Any) -> dict[str, Any]:
    return spec_of(table, model) | {"until": "snapshot"} | more


def policy(store: Store, **rules: int) -> None:
    with store.write() as session:
        session.merge(PoolPolicyRow(pool=POOL, policy=rules, at=datetime.now(UTC)))


def held_at_a_checkpoint(here: Settings, store: Store, lifecycle: str, number: int) -> LeaseRow:
    """Its lease of that number, once its training has kept something under it."""
    lease = eventually(lambda: (row := lease_of(store, lifecycle, number)) and row.state == "active" and row, 120)
    eventually(lambda: kept(here, lease.token), 120)
    return lease


def waits(client: Client, lifecycle: str, code: str) -> bool:
    return any(each["lifecycle"] == lifecycle and each["code"] == code for each in client.pool()["waiting"])


def noticed(store: Store) -> list[LeaseRow]:
    with store.read() as session:
        return list(session.exec(select(LeaseRow).where(LeaseRow.state == "noticed")).all())


def stages(store: Store, lifecycle: str) -> list[StageRow]:
    with store.read() as session:
        query = select(StageRow).where(StageRow.lifecycle == lifecycle).order_by(StageRow.position)
        return list(session.exec(query).all())


def metrics(store: Store, lease: LeaseRow) -> list[tuple[int, datetime]]:
    """Steps that its first start has written. The next start, under another token, is train.2."""
    query = select(MetricRow).where(MetricRow.job == f"{lease.run_id}/train.1").order_by(MetricRow.step)
    with store.read() as session:
        return [(row.step, row.at) for row in session.exec(query).all()]
