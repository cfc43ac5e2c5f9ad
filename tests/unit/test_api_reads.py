"""The HTTP API reads what control wrote."""

import os

import pytest

from api import journal
from api.app import create_app
from everloop.store import MetricRow
from tests import api_parts as parts
from tests import stores


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    settings = parts.settings_in(tmp_path_factory.mktemp("reads"))
    store = stores.migrated(settings.database)
    parts.fill(store)
    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as client:
        yield settings, store, client


def test_lists_are_newest_first_and_can_be_narrowed(served):
    _, _, client = served

    every = client.get("/api/v1/lifecycles").json()["items"]
    waiting = client.get("/api/v1/lifecycles", params={"status": "waiting_approval", "model": "credit"}).json()["items"]

    assert [row["submitted_at"] for row in every] == sorted((row["submitted_at"] for row in every), reverse=True)
    assert [row["id"] for row in waiting] == ["credit-1"]
    assert len(client.get("/api/v1/lifecycles", params={"limit": 2}).json()["items"]) == 2


@pytest.mark.parametrize("limit", ["0", "201", "-1", "x", str(2**63), str(10**30)])
def test_a_limit_out_of_range_is_refused_by_its_name(served, limit):
    _, _, client = served

    answer = client.get("/api/v1/lifecycles", params={"limit": limit})

    assert answer.status_code == 422
    assert answer.json()["field"] == "limit"
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_lifecycle_shows_its_wait_its_stages_its_gate_and_where_else_to_look(served):
    settings, _, client = served

    found = client.get("/api/v1/lifecycles/credit-1").json()

    assert found["wait"].startswith("Waiting for a decision on version 2 of credit since ")
    assert [stage["stage"] for stage in found["stages"]][-1] == "approve"
    assert found["approval"]["status"] == "open"
    assert found["help"] == "everloop approve credit-1"
    assert found["links"]["temporal"] == f"{settings.temporal_ui_url}/namespaces/default/workflows/credit-1"
    assert found["objective"] == "auc"


def test_a_parked_lifecycle_shows_its_last_log_lines(served):
    settings, _, client = served
    log = settings.logs_dir / "jobs/run-of-prices-b2/validate.1/1.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(f"line {n}\n" for n in range(30)))

    found = client.get("/api/v1/lifecycles/prices-b2").json()
    text = client.get("/api/v1/lifecycles/prices-b2/logs", params={"stage": "validate", "tail": 2})

    assert found["error"]["log_tail"] == [f"line {n}" for n in range(10, 30)]
    assert text.text == "line 28\nline 29\n"
    assert text.headers["content-type"].startswith("text/plain")


def test_a_failed_stage_may_name_the_folder_of_its_attempts(served):
    settings, _, _ = served
    folder = settings.logs_dir / "jobs/some/snapshot.1"
    folder.mkdir(parents=True)

    assert journal._log_at(settings.logs_dir, "jobs/some/none") is None
    assert journal._log_at(settings.logs_dir, "jobs/some/snapshot.1") is None
    for name in ("1.log", "2.log"):
        (folder / name).write_text(name)
    os.utime(folder / "1.log", (0, 0))
    assert journal._log_at(settings.logs_dir, "jobs/some/snapshot.1") == folder / "2.log"


def test_the_log_of_a_running_stage_is_the_newest_of_its_attempts(served):
    settings, store, client = served
    with store.write() as session:
        session.add(parts.lifecycle("busy"))
        session.add(parts.stage("train", 0, "running", lifecycle="busy"))
    folder = settings.logs_dir / "jobs/run-of-busy/train.1"
    folder.mkdir(parents=True)
    (folder / "1.log").write_text("first\n")
    (folder / "2.log").write_text("second\n")

    assert client.get("/api/v1/lifecycles/busy/logs").text == "second\n"


def test_a_lifecycle_id_may_contain_slashes(served):
    _, store, client = served
    long = "retrain/default/credit/20130201T000000Z"
    with store.write() as session:
        session.add(parts.lifecycle(long, status="released"))
        session.add(parts.event("LifecycleSubmitted", 0, long, run_id=f"run-of-{long}"))

    assert (
        client.get(f"/api/v1/lifecycles/{long}")
        .json()["links"]["temporal"]
        .endswith("/workflows/retrain%2Fdefault%2Fcredit%2F20130201T000000Z")
    )
    assert len(client.get(f"/api/v1/lifecycles/{long}/events").json()["items"]) == 1
    assert client.get(f"/lifecycles/{long}").status_code == 200


def test_events_can_be_followed(served):
    _, _, client = served

    every = client.get("/api/v1/lifecycles/credit-1/events").json()["items"]
    later = client.get("/api/v1/lifecycles/credit-1/events", params={"after": every[1]["id"]}).json()["items"]

    assert [event["type"] for event in every][:2] == ["LifecycleSubmitted", "StageStarted"]
    assert later == every[2:]


def test_metrics_are_those_of_the_run(served):
    _, store, client = served
    with store.write() as session:
        for job in ("run-of-credit-1/train.1", "run-of-credit-10/train.1"):
            session.add_all(MetricRow(job=job, step=step, values={"loss": 1 / step}, at=parts.NOW) for step in (1, 2))

    found = client.get("/api/v1/lifecycles/credit-1/metrics").json()["items"]

    assert [(row["stage"], row["step"]) for row in found] == [("train.1", 1), ("train.1", 2)]


def test_open_gates_are_listed_with_their_evidence(served):
    _, _, client = served

    (gate,) = client.get("/api/v1/approvals", params={"status": "open"}).json()["items"]

    assert gate["lifecycle"] == "credit-1"
    assert gate["evidence"]["comparison"]["challenger"] == 0.8312
    assert client.get("/api/v1/approvals/credit-1").json() == gate


def test_a_model_shows_route_versions_checks_and_releases(served):
    _, _, client = served

    found = client.get("/api/v1/models/credit").json()

    assert (found["route"]["version"], found["route"]["approved_by"]) == (1, ["grace"])
    assert [(version["number"], version["live"]) for version in found["versions"]] == [(2, False), (1, True)]
    assert [check["number"] for check in found["checks"]] == list(range(1, 9))
    assert found["monitor"]["share"] == 0.5
    assert client.get("/api/v1/models").json()["items"][0]["versions"] == 2


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/approvals/credit-0",
        "/api/v1/models/nothing",
        "/api/v1/models/credit?project=other",
        "/api/v1/lifecycles/nothing/events",
        "/api/v1/lifecycles/credit-1/logs?stage=register",
        "/api/v1/models/credit/drift/99/report",
        "/api/v1/models/credit/drift/7/report",
        "/api/v1/nothing",
    ],
)
def test_what_is_not_there_is_a_problem_that_says_so(served, path):
    _, _, client = served

    answer = client.get(path)

    assert answer.status_code == 404
    problem = answer.json()
    assert problem["code"] == "not_found"
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_the_api_describes_itself_with_examples(served):
    _, _, client = served

    document = client.get("/api/v1/openapi.json").json()

    body = document["paths"]["/api/v1/lifecycles"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].rsplit("/", 1)[1] in document["components"]["schemas"]
    assert body["examples"]
    references = {part.split('"')[0] for part in str(document).replace("'", '"').split("#/components/schemas/")[1:]}
    assert references <= document["components"]["schemas"].keys()


def test_ready_says_which_part_does_not_answer(served):
    _, _, client = served

    answer = client.get("/readyz")

    assert answer.status_code == 503
    assert answer.json() == {"temporal": "does not answer", "store": "ok"}
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path", ["lifecycles/a%00", "models/%00/labels", "models/m/log?project=%00", "budgets?pool=%00"]
)
def test_what_no_database_can_name_is_not_found(served, path):
    _, _, client = served

    answer = client.get(f"/api/v1/{path}")

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_rows_of_the_log_since_ever_and_orders_to_a_pool_without_a_name_are_no_unexpected_errors(served):
    _, _, client = served

    ever = {"since": "0001-01-01T00:00:00+14:00", "until": "9999-12-31T23:59:59-12:00"}
    assert client.get("/api/v1/models/nobody/log/rows", params=ever).status_code == 404
    refused = client.put("/api/v1/prices", params={"pool": ""}, json={"core_hour": 1})
    assert (refused.status_code, refused.json()["field"]) == (422, "pool")
