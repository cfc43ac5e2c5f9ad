"""What Prometheus reads: the ledger as it is, for whoever has the key, and nothing for anybody else."""

import asyncio
from datetime import timedelta

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from activities import lease_time
from activities.lease_policy.state import Device, PoolState, Request
from api import identity
from everloop.amounts import Amount
from everloop.queues import Queue
from everloop.store import LeaseRequestRow, LeaseRow
from tests import api_parts as parts
from tests import stores
from tests.conftest import free_port_base
from tests.unit.test_api_pool import fill
from workers import metrics, pool_gauges


def value(text: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


@pytest.fixture
def store(tmp_path):
    made = stores.migrated(f"sqlite:///{tmp_path}/everloop.db")
    fill(made)
    return made


def test_gauges_say_what_the_ledger_says(store):
    text = metrics.Metrics(store).text().decode()

    assert value(text, "everloop_capacity_cores", pool="default") == 9
    assert value(text, "everloop_allocated_cores", queue="vision") == 4
    assert value(text, "everloop_quota_cores", queue="research") == 6
    assert value(text, "everloop_quota_cores", queue="default") is None  # none is set
    assert value(text, "everloop_requests_pending", queue="text", reason="no_room") == 1
    assert value(text, "everloop_leases", state="noticed") == 1
    assert value(text, "everloop_device_state", device="cpu1", state="draining") == 1
    assert value(text, "everloop_device_state", device="cpu1", state="ready") == 0
    assert value(text, "everloop_starved_seconds_max", queue="text") == 0  # it has its quota
    assert value(text, "everloop_usage_decayed_core_seconds", queue="vision") == pytest.approx(2 * 2 * 18 * 60, abs=600)
    assert value(text, "everloop_usage_decayed_gpu_seconds", queue="vision") is None
    assert value(text, "everloop_lease_renew_age_seconds", pool="default") == pytest.approx(18 * 60, abs=150)
    assert value(text, "everloop_reservation_slip_seconds", queue="text") == 90
    assert value(text, "everloop_budget_spent", scope="queue") > 1
    assert value(text, "everloop_fragmentation", resource="cores") is None  # nothing is free that is open


def test_what_is_free_but_too_small_for_the_usual_request_is_told():
    devices = (
        Device("d0", "n", Amount(4, 4096)),
        Device("d1", "n", Amount(2, 4096)),
        Device("d2", "n", Amount(8), open=False),
    )
    wide, small = Request("r1", 1, 0, "a", Amount(3, 1024)), Request("r2", 2, 0, "a", Amount(1, 1024))
    state = PoolState(devices, (Queue("a"),), (wide, small, wide._replace(id="r3")))

    assert pool_gauges.fragmentation(state) == {"cores": 2 / 6}
    assert pool_gauges.fragmentation(state._replace(waiting=())) == {}


def test_sums_go_on_from_where_the_last_look_came_to(store):
    read = metrics.Metrics(store)
    assert value(read.text().decode(), "everloop_queue_wait_seconds_count") is None

    with store.write() as session:
        first = session.get_one(LeaseRow, ("default", 1))
        gang = session.get_one(LeaseRequestRow, first.request_id)
        gang.members_min = gang.members_max = 2
        session.add(gang)
        again = LeaseRow(**first.model_dump() | {"token": 9, "noticed_at": read.began, "notice": "reclaim"})
        session.add(again)
        lease_time.members_freed(session, first, first.granted_at + timedelta(minutes=18))
    for _ in range(2):
        text = read.text().decode()
        assert value(text, "everloop_queue_wait_seconds_count", queue="vision") == 1
        assert value(text, "everloop_gang_wait_seconds_count", queue="vision") == 1
        assert value(text, "everloop_preemptions_total", queue="vision", reason="reclaim") == 1
        assert value(text, "everloop_leased_core_seconds_total", queue="vision", kind="useful") == 2 * 600


async def test_metrics_are_answered_on_loopback_to_the_key_alone(store, tmp_path):
    settings = parts.settings_in(tmp_path)
    settings = type(settings)(data_dir=tmp_path, port_base=settings.port_base, metrics_port=free_port_base())
    identity.prepare(settings, store)
    serving = asyncio.create_task(metrics.serve(settings, store))
    url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
    headers = {"Authorization": f"Bearer {parts.key_of(settings)}"}
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            for _ in range(100):
                try:
                    answer = await client.get(url, headers=headers)
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
            nobody = await client.get(url)
            rebound = await client.get(url, headers=headers | {"Host": "evil.example"})
    finally:
        serving.cancel()

    assert value(answer.text, "everloop_capacity_cores", pool="default") == 9
    assert value(answer.text, "everloop_reservation_slip_seconds", queue="text") == 90
    assert nobody.status_code == 401
    assert rebound.status_code == 421
