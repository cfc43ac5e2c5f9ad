"""A pool through API and page: what the ledger says, in words that are true, and what a change would do."""

from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from activities import lease_time
from activities.lease_policy.state import Device, Held, Part, Policy, PoolState, Request
from api.app import create_app
from api.pool.effects import compared
from everloop.amounts import NO_LIMIT, UNLIMITED, Amount, Counted
from everloop.queues import Queue
from everloop.store import (
    BudgetRow,
    DeviceRow,
    JobTimeRow,
    LeaseMemberRow,
    LeaseRequestRow,
    LeaseRow,
    PoolPolicyRow,
    PriceRow,
    QueueRow,
    ReservationRow,
    Store,
)
from tests import api_parts as parts
from tests import stores


def queue(name: str, parent: str = "", **changes: Any) -> QueueRow:
    return QueueRow(pool="default", id=name, parent=parent, person="ada", updated_at=parts.NOW, **changes)


def request(name: str, queue: str, state: str = "queued", **changes: Any) -> LeaseRequestRow:
    values: dict[str, Any] = {
        "id": f"request-{name}",
        "pool": "default",
        "arrival": len(name),
        "kind": "batch",
        "holder": f"{name}/run",
        "workflow_id": name,
        "run_id": f"run-of-{name}",
        "state": state,
        "requested_at": parts.NOW - timedelta(minutes=20),
        "queue": queue,
        "cores": 2,
        "stage": "train",
        "model": "credit",
    }
    return LeaseRequestRow(**(values | changes))


def lease(token: int, name: str, queue: str, device: str, cores: int = 2, **changes: Any) -> list[Any]:
    values: dict[str, Any] = {
        "pool": "default",
        "token": token,
        "request_id": f"request-{name}",
        "holder": f"{name}/run",
        "workflow_id": name,
        "run_id": f"run-of-{name}",
        "device": device,
        "state": "active",
        "granted_at": parts.NOW - timedelta(minutes=18),
        "queue": queue,
    }
    member = LeaseMemberRow(pool="default", token=token, rank=0, device=device, cores=cores, memory_mib=1024)
    return [LeaseRow(**(values | changes)), member, request(name, queue, "granted", cores=cores)]


def fill(store: Store) -> None:
    """Two machines, a tree of queues, two leases of `vision`, one of `text`, and two who wait."""
    devices = [
        DeviceRow(pool="default", name="cpu0", node="alpha", cores=4, used_cores=4, memory_mib=8192),
        DeviceRow(pool="default", name="cpu1", node="beta", cores=4, used_cores=2, memory_mib=8192, state="draining",
                  why="ada: a new disk"),
        DeviceRow(pool="default", name="cpu2", node="beta", cores=1, light=True),
    ]  # fmt: skip
    waits = [
        request("dora", "text", code="no_room", position=1, detail=[["needs", "2 cores"], ["free", "0 cores"]]),
        request("emil", "text", arrival=9, code="behind", position=2, ahead=1,
                detail=[["needs", "2 cores"], ["free", "0 cores"]]),
    ]  # fmt: skip
    with store.write() as session:
        session.add_all(devices)
        session.add_all([queue("research", quota_cores=6), queue("vision", "research", quota_cores=4)])
        session.add_all([queue("text", "research", quota_cores=2), queue("default")])
        for row in (
            *lease(1, "ada", "vision", "cpu0"),
            *lease(2, "bob", "vision", "cpu0")[:2],
            request("bob", "vision", "granted", cores=2, max_runtime_ms=600_000),
            *lease(3, "cleo", "text", "cpu1", state="noticed", noticed_at=parts.NOW, notice="drain",
                   deadline_at=parts.NOW + timedelta(seconds=60), why="ada drains beta: a new disk"),
            *waits,
        ):  # fmt: skip
            session.add(row)
        session.add(parts.lifecycle("ada"))
        session.add(
            parts.lifecycle(
                "dora",
                wait_what="a free slot",
                wait_since=parts.NOW,
                wait_unblocks="a running job ends, in order of arrival",
            )
        )
        began = lease_time.in_ms(parts.NOW - timedelta(minutes=17))
        session.add(
            JobTimeRow(
                job="run-of-ada/train.1",
                attempt=1,
                token=1,
                stage="train",
                from_ms=began,
                to_ms=began + 600_000,
                done=True,
            )
        )
    with store.write() as session:
        started = lease_time.in_ms(parts.NOW + timedelta(hours=1))
        session.add(
            ReservationRow(
                pool="default",
                request_id="request-dora",
                workflow_id="dora",
                queue="text",
                device="cpu1",
                cores=2,
                idle_cores=1,
                start_ms=started,
                first_start_ms=started - 90_000,
                waits_for=[3],
                from_ms=lease_time.in_ms(parts.NOW - timedelta(minutes=2)),
            )
        )
        session.add(PoolPolicyRow(pool="default", policy={"grace_s": 30}, person="ada", at=parts.NOW))
        session.add(PriceRow(pool="default", from_ms=0, currency="EUR", core_micros=40_000, at=parts.NOW))
        session.add(
            BudgetRow(
                pool="default",
                scope="queue",
                name="vision",
                micros=10_000,
                since_ms=lease_time.in_ms(parts.NOW - timedelta(hours=1)),
                spent=True,
                updated_at=parts.NOW,
            )
        )
        lease_time.inventoried(
            session,
            "default",
            {"cpu0": (4, 0), "cpu1": (4, 0), "cpu2": (1, 0)},
            {"cpu0", "cpu1", "cpu2"},
            lease_time.in_ms(parts.NOW - timedelta(minutes=30)),
        )


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    settings = parts.settings_in(tmp_path_factory.mktemp("pool"))
    store = stores.migrated(settings.database)
    fill(store)
    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as made:
        yield made


def get(client: httpx.Client, path: str, **params: Any) -> Any:
    answer = client.get(f"/api/v1{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_pool_says_who_holds_what_with_queues_and_who_waits_for_which_reason(client):
    found = get(client, "/pools/default")

    assert [(lease["token"], lease["lifecycle"], lease["queue"]) for lease in found["leases"]] == [
        (1, "ada", "vision"),
        (2, "bob", "vision"),
        (3, "cleo", "text"),
    ]
    assert found["leases"][2]["notice"]["why"] == "ada drains beta: a new disk"
    queues = {queue["id"]: queue for queue in found["queues"]}
    assert queues["research"]["use"]["cores"] == 6
    assert queues["vision"]["depth"] == 1
    assert (queues["vision"]["over_quota"], queues["text"]["pending"], queues["research"]["pending"]) == (False, 2, 2)
    (kept,) = found["reservations"]
    assert (kept["lifecycle"], kept["waits_for"], kept["slipped_seconds"]) == ("dora", [3], 90)
    assert kept["sentence"].startswith("dora has 2 cores of cpu1 reserved: it starts by ")
    assert "when lease 3 of cleo has ended or may be taken back; that is 90 s later than at" in kept["sentence"]
    first, second = found["waiting"]
    assert first["sentence"] == "waits for 2 cores in queue text: next, 0 cores free"
    assert first["unblocks"].startswith("a lease ends")
    assert second["sentence"].startswith("waits for 2 cores in queue text: 1 ahead")
    assert {device["name"]: device["state"] for device in found["devices"]} == {
        "cpu0": "ready",
        "cpu1": "draining",
        "cpu2": "ready",
    }


def test_machines_say_what_hinders_them_most(client):
    alpha, beta = get(client, "/nodes")["items"]

    assert (alpha["node"], alpha["state"], alpha["leases"]) == ("alpha", "ready", 2)
    assert (beta["node"], beta["state"], beta["leases"]) == ("beta", "partly draining", 1)


@pytest.mark.parametrize(
    ("of", "says"),
    [
        ("dora", "dora is number 1 in queue text since"),
        ("request-emil", "1 ahead, 0 cores free. Those ahead are served and a lease ends."),
        ("ada", "ada holds lease 1 (2 cores on cpu0) in queue vision since"),
        ("3", "noticed; told to let go: ada drains beta: a new disk by"),
    ],
)
def test_a_lease_is_explained_by_whatever_names_it(client, of, says):
    assert says in get(client, f"/leases/explain/{of}")["sentence"]


def test_a_lifecycle_that_waits_names_the_reason_of_its_queue(client):
    found = get(client, "/lifecycles/dora")

    assert found["wait"].startswith("Waiting for 2 cores in queue text: next, 0 cores free since")
    assert "a lease ends, or one that may be taken back has had the minimum run time" in found["wait"]
    assert "waiting for 2 cores in queue text" in client.get("/lifecycles/dora").text.lower()


def test_a_lease_over_its_declared_time_says_what_follows(client):
    late = get(client, "/leases/explain/2")["sentence"]

    assert "active; it runs " in late
    assert "s longer than the max_runtime of 600 s that was declared: it is the first to let go, at a" in late
    assert get(client, "/leases")["items"][0]["over_runtime_seconds"] == 0


def test_what_nobody_has_is_not_found(client):
    pools = ("/pools/nowhere", "/pools/nowhere/queues", "/pools/nowhere/policy")
    for path in ("/leases/explain/nobody", "/leases/explain/99", *pools):
        answer = client.get(f"/api/v1{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path


def test_a_smaller_quota_says_which_running_leases_could_be_taken_back_and_changes_nothing(client):
    body = {"quota": {"cores": 1}}
    answer = client.patch("/api/v1/pools/default/queues/vision?try=true", json=body).json()

    assert answer["made"] is False
    assert answer["changes"] == ["queue vision: quota 4 cores -> 1 core"]
    assert [(each["token"], each["lifecycle"], each["now"], each["then"]) for each in answer["effects"]] == [
        (1, "ada", "safe", "reclaimable"),
        (2, "bob", "safe", "reclaimable"),
    ]
    assert "queue vision has 4 cores in use, its quota would be 1 core" in answer["effects"][0]["sentence"]
    tree = get(client, "/pools/default/queues")["tree"]
    assert tree["queues"]["research"]["queues"]["vision"] == {"quota": {"cores": 4}}


def test_what_no_other_queue_takes_back_is_not_said_to_be_within_a_quota_that_it_exceeds():
    hour = 3_600_000
    now = 100 * hour

    def sentences(quota: Counted, *held: Held) -> list[tuple[str, str]]:
        before = (Queue("a", limit=Counted(4, NO_LIMIT)), Queue("b"))
        state = PoolState((Device("d1", "n", Amount(8)),), before, (), held)
        effects, _, _ = compared(state, now, Policy(), (Queue("a", quota=quota), Queue("b")))
        return [(each.then, each.sentence) for each in effects]

    def lease_of(cores: int, **changes: Any) -> Held:
        asked = Request("one", 1, now - 2 * hour, "a", Amount(cores), **changes)
        return Held(1, asked, (Part("d1", Amount(cores)),), "active", now - 2 * hour)

    fixed, low = lease_of(6, preemptible=False), lease_of(6, priority=50)
    within = "would be within the quota of queue a: no other queue takes it back"
    assert sentences(Counted(2, NO_LIMIT), fixed) == [
        ("safe", "is not preemptible: it goes on, beyond the quota of queue a")
    ]
    assert sentences(UNLIMITED, fixed) == [("safe", "is not preemptible: it goes on, though queue a has no quota")]
    assert sentences(Counted(8, 0), fixed) == sentences(Counted(8, 0), low) == [("safe", within)]


def test_a_limit_below_what_is_used_takes_nothing_and_says_who_waits_for_it(client):
    answer = client.patch("/api/v1/pools/default/queues/text?try=true", json={"limit": {"cores": 2}}).json()
    less = client.patch("/api/v1/pools/default/queues/vision?try=true", json={"quota": "none", "limit": {"cores": 2}})

    assert answer["effects"] == []
    assert answer["waits"][0] == (
        "dora would wait for 2 cores, 4096 MiB in queue text: next, "
        "queue text would go over its limit (2 cores, 2 cores in use)"
    )
    assert {(each["lifecycle"], each["then"]) for each in less.json()["effects"]} == {
        ("ada", "over_limit"),
        ("bob", "over_limit"),
    }
    assert less.json()["effects"][0]["sentence"].startswith("goes on; once it gives back what it has, it waits: queue")


def test_the_policy_is_shown_with_its_defaults_and_who_changed_it(client):
    found = get(client, "/pools/default/policy")
    page = client.get("/pool?still=true").text

    assert found["person"] == "ada"
    assert datetime.fromisoformat(found["at"]) == parts.NOW
    grace, least = (next(each for each in found["rules"] if each["name"] == name) for name in ("grace", "starving"))
    assert (grace["value"], grace["default"], grace["words"], grace["usual"]) == (30, 60, "30 s", "1 min")
    assert (least["value"], least["words"]) == (least["default"], least["usual"])
    assert "Changed last by ada" in page
    assert '<th scope="row">grace</th><td class="n"><b>30 s</b></td><td class="n">1 min</td>' in page


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"grace": "soon"}, "grace: 'soon' is no time"),
        ({"grace": 0}, "grace: must be from 1 s to 1 d"),
        ({"grace": True}, "grace"),
        ({"minimum_run_time": "1.5s"}, "minimum run time: '1.5s' is no whole number of seconds"),
        ({"minimum_run_time": "-5"}, "minimum run time: '-5' is no time"),
        ({"preemptions_a_day": 1.5}, "preemptions a day: 1.5 is no whole number"),
        ({"preemptions_a_day": "many"}, "preemptions a day: 'many' is no number"),
        ({"usage_weight": "0.0001"}, "usage weight: '0.0001' has more than three places"),
        ({"saturation_percent": "90 %"}, "saturation percent: must be from 100 % to 10000 %"),
        ({"patience": "1h"}, "patience"),
        ({}, "nothing is to be changed"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(client, body, says):
    answer = client.put("/api/v1/pools/default/policy", json=body)

    assert answer.status_code == 422, answer.text
    assert says in answer.json()["detail"]


def test_the_tree_that_is_printed_is_the_tree_that_is_applied(client):
    tree = get(client, "/pools/default/queues")["tree"]

    assert client.put("/api/v1/pools/default/queues?try=true", json=tree).json()["changes"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("PUT", "/queues", {"queues": {"a": {"parent": "b"}, "b": {"parent": "a"}}}, 422, "below each other"),
        ("PUT", "/queues", {"queues": {"a": {"quota": {"cores": 9}}}}, 422, "the pool has 8 cores"),
        ("PUT", "/queues", {"queue": {}}, 422, "queue"),
        ("PATCH", "/queues/text", {"quota": {"cores": 3}}, 422, "queue research has a quota of 6 cores"),
        ("PATCH", "/queues/text", {"quota": {"cores": -1}}, 422, "is not from 0"),
        ("PATCH", "/queues/new", {"parent": "nobody"}, 422, "'nobody' is not there"),
        ("PATCH", "/queues/text", {"weight": 1.5}, 422, "weight"),
        ("PATCH", "/queues/gone", {"remove": True}, 404, "there is no queue gone"),
        ("PATCH", "/queues/default", {"remove": True}, 422, "whoever names no queue waits in it"),
        ("PATCH", "/queues/research", {"remove": True}, 422, "has queues below it"),
        ("PATCH", "/queues/vision", {"remove": True}, 409, "ada, bob run in queue vision, which would be gone"),
        (
            "PATCH",
            "/queues/below",
            {"parent": "text"},
            409,
            "dora, emil wait and cleo runs in queue text, which would have",
        ),
    ],
)
def test_a_tree_that_makes_no_sense_is_refused(client, method, path, body, status, says):  # noqa: PLR0917
    answer = client.request(method, f"/api/v1/pools/default{path}", json=body)

    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]


def test_cost_is_told_by_queue_stage_and_model_and_adds_up(client):
    for by in ("queue", "stage", "model", "lifecycle"):
        found = get(client, "/cost", by=by, since="1h")
        assert found["problem"] == ""
        assert sum(kind["core_ms"] for kind in found["kinds"].values()) == found["capacity"]["core_ms"]
        assert found["capacity"]["core_ms"] == 9 * (found["to_ms"] - found["from_ms"])
        for row in found["rows"]:
            assert sum(kind["core_ms"] for kind in row["kinds"].values()) == row["core_ms"]
    rows = {row["name"]: row for row in get(client, "/cost", by="stage", since="1h")["rows"]}
    assert rows["train"]["kinds"] == {"useful": {"core_ms": 2 * 600_000, "gpu_ms": 0, "micros": 13_333}}
    for since in ("never", "9x", "2999-01-01", "-1d"):
        assert client.get("/api/v1/cost", params={"since": since}).status_code == 422, since


def test_the_page_of_a_pool_shows_the_drawing_the_same_as_a_table_and_buttons(client):
    follows = client.get("/pool")
    page = client.get("/pool?still=1").text

    assert follows.headers["refresh"] == "5"
    assert "<textarea" not in follows.text  # it would forget what is being typed
    assert page.count('class="k-held_idle"') >= 3
    assert "ada, lease 1, queue vision: train (useful)" in page
    assert "dora has 2 cores of cpu1 reserved: it starts by" in page
    assert 'action="/pool/leases/1/revoke"' in page
    assert 'action="/pool/leases/3/revoke"' not in page  # it is told already
    assert 'action="/pool/nodes/alpha/drain"' in page
    assert 'formaction="/pool/nodes/alpha/cordon"' in page
    assert 'action="/pool/nodes/beta/undrain"' in page
    assert "waits for 2 cores in queue text: next, 0 cores free" in page
    assert "told to let go" in page.lower()
    assert "<script" not in page


def test_a_change_of_a_queue_by_its_form_first_shows_what_it_would_do(client):
    page = client.post("/pool/queues/vision", data={"quota_cores": "1", "limit_cores": "", "weight": "1"}).text

    assert "queue vision: quota 4 cores -&gt; 1 core" in page
    assert "could be taken back when another queue is owed" in page
    assert 'name="sure" value="yes"' in page


def test_budgets_say_what_is_spent_of_what_and_what_an_hour_costs(client):
    found = get(client, "/budgets")
    (budget,) = found["items"]

    assert found["prices"]["core_hour"] == 0.04
    assert (budget["name"], budget["spent"], budget["bounds"]) == (
        "vision",
        True,
        {"core_hours": None, "gpu_hours": None, "money": 0.01},
    )
    assert budget["used"]["money"] == pytest.approx(4 * 18 / 60 * 0.04, rel=0.2)  # four cores for 18 minutes
    cost = get(client, "/cost", by="queue", since="1h")
    assert cost["currency"] == "EUR"
    assert cost["capacity"]["micros"] == pytest.approx(cost["capacity"]["core_ms"] / 90, abs=2)  # 0.04 EUR an hour
    page = client.get("/cost").text
    assert "queue vision has spent" in page
    assert 'action="/cost/budgets/queue/vision"' in page
    assert client.put("/api/v1/budgets/queue/research", json={"money": "much"}).status_code == 422
    assert client.put("/api/v1/prices", json={"core_hour": -1}).status_code == 422


def test_the_page_of_cost_shows_each_kind(client):
    page = client.get("/cost?by=lifecycle&since=1h").text

    assert 'href="/lifecycles/ada"' in page
    assert page.count('class="k-') >= 9
