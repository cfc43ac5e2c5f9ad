"""The API against real workflows: submit once, decide once, tell a parked one; 503 when control is down."""

import asyncio
import dataclasses
import re
import time
from collections.abc import Iterator

import httpx
import pytest
from sqlmodel import select
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api.app import create_app
from everloop import names, signing
from everloop.contracts import AppendRequest, ApprovalAnswer, ApprovalRequest
from everloop.payloads import converter
from everloop.store import ApprovalRow, Store, StudyRow
from tests import api_parts as parts
from tests.conftest import free_port_base
from tests.temporal.conftest import Stack, eventually
from tests.temporal.test_drift import released
from workflows.approval import Approval


@pytest.fixture
async def api(stack: Stack) -> Iterator[httpx.AsyncClient]:
    """The API of the stack's deployment under a real uvicorn, as its owner."""
    settings = dataclasses.replace(stack.settings, port_base=free_port_base(), person="ada")
    manager = parts.running(create_app(settings), settings.port_base)
    url = await asyncio.to_thread(manager.__enter__)
    headers = {"Authorization": f"Bearer {parts.key_of(settings)}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
        yield client
    await asyncio.to_thread(manager.__exit__, None, None, None)


async def submit(api: httpx.AsyncClient, stack: Stack, key: str, **changes: object) -> httpx.Response:
    body = stack.spec(**changes).model_dump(mode="json")
    return await api.post("/api/v1/lifecycles", json=body, headers={"Idempotency-Key": key})


async def test_the_same_key_and_body_is_one_lifecycle_however_often_it_is_sent(api, stack):
    key = f"{stack.prefix}-same"

    answers = await asyncio.gather(*(submit(api, stack, key) for _ in range(20)))
    await stack.gate(key)
    later = await submit(api, stack, key)

    assert {answer.status_code for answer in answers} <= {200, 202}
    assert len({answer.text for answer in (*answers, later)}) == 1
    assert answers[0].json()["id"] == key
    assert later.status_code == 200
    runs = [run async for run in stack.client.list_workflows(f"WorkflowId = '{key}'")]
    assert len(runs) == 1


async def test_the_same_key_with_another_body_is_refused_before_and_after_it_is_journaled(api, stack):
    key = f"{stack.prefix}-other"

    assert (await submit(api, stack, key)).status_code == 202
    at_once = await submit(api, stack, key, target="other")
    await stack.gate(key)
    later = await submit(api, stack, key, target="other")

    for answer in (at_once, later):
        assert answer.status_code == 422
        assert answer.json()["code"] == "idempotency_mismatch"


async def test_a_lifecycle_can_be_looked_at_the_moment_it_is_accepted(api, stack):
    key = f"{stack.prefix}-early"
    await submit(api, stack, key)

    found = (await api.get(f"/api/v1/lifecycles/{key}")).json()

    assert found["status"] in ("running", "waiting_approval")
    assert found["model"] == stack.spec().model
    assert (await api.get(f"/lifecycles/{key}")).status_code == 200
    assert (await api.get("/api/v1/lifecycles/nothing-of-that-name")).status_code == 404


async def test_a_signed_approval_releases_and_its_repeat_answers_the_same(api, stack):
    key = f"{stack.prefix}-approve"
    await submit(api, stack, key)
    gate = await stack.gate(key)
    body = {"verdict": "approve", "comment": "looks right", "evidence_digest": gate.evidence_digest}

    first = await api.post(f"/api/v1/approvals/{key}/decision", json=body)
    at_once = await api.post(f"/api/v1/approvals/{key}/decision", json=body)
    await stack.status(key, "released")
    later = await api.post(f"/api/v1/approvals/{key}/decision", json=body)
    other = await api.post(f"/api/v1/approvals/{key}/decision", json={"verdict": "reject", "comment": "no"})

    assert first.status_code == 200, first.text
    assert first.json()["self_approved"] is True  # ada submitted it, too
    assert at_once.json() == first.json() == later.json()
    assert (other.status_code, other.json()["code"]) == (409, "gate_closed")
    assert len(stack.approval(key).decisions) == 1


async def test_only_one_of_two_opposite_decisions_counts(api, stack):
    key = f"{stack.prefix}-race"
    await submit(api, stack, key)
    await stack.gate(key)
    made = (await api.post("/api/v1/credentials", json={"person": "grace hopper"})).json()["key"]

    yes, no = await asyncio.gather(
        api.post(f"/api/v1/approvals/{key}/decision", json={"verdict": "approve"}),
        api.post(
            f"/api/v1/approvals/{key}/decision",
            json={"verdict": "reject", "comment": "no"},
            headers={"Authorization": f"Bearer {made}"},
        ),
    )

    assert sorted((yes.status_code, no.status_code)) == [200, 409]
    await stack.status(key, "released" if yes.status_code == 200 else "rejected")


async def test_other_evidence_than_was_looked_at_is_a_conflict_and_the_gate_stays_open(api, stack):
    key = f"{stack.prefix}-evidence"
    await submit(api, stack, key)
    await stack.gate(key)

    answer = await api.post(
        f"/api/v1/approvals/{key}/decision", json={"verdict": "approve", "evidence_digest": "0" * 64}
    )

    assert (answer.status_code, answer.json()["code"]) == (409, "evidence_changed")
    assert stack.approval(key).status == "open"


async def test_a_form_on_the_page_decides_too(api, stack):
    key = f"{stack.prefix}-form"
    await submit(api, stack, key)
    gate = await stack.gate(key)

    answer = await api.post(
        f"/approvals/{key}",
        data={"verdict": "reject", "comment": "the target leaks", "evidence_digest": gate.evidence_digest},
    )
    await stack.status(key, "rejected")

    assert (answer.status_code, answer.headers["location"]) == (303, f"/approvals/{key}")
    assert "the target leaks" in (await api.get(f"/approvals/{key}")).text


async def test_budgets_and_prices_are_set_by_the_api_and_by_the_form_on_the_page(api, stack):
    name = f"retrain/default/{stack.prefix}/20260101T000000Z"  # of a lifecycle that a drift check has started
    priced = await api.put("/api/v1/prices", json={"core_hour": 0.04, "gpu_hour": "2"})
    made = await api.put(f"/api/v1/budgets/lifecycle/{name}", json={"core_hours": 2, "money": 5})
    answer = await api.post(f"/cost/budgets/lifecycle/{name}", data={"core_hours": "3.5", "gpu_hours": "", "money": ""})
    found = (await api.get("/api/v1/budgets")).json()
    page = (await api.get("/cost")).text
    gone = await api.post(f"/cost/budgets/lifecycle/{name}", data={"core_hours": "", "gpu_hours": "", "money": ""})

    assert priced.json()["done"] == "a core costs 0.04 EUR an hour, a GPU 2.00 EUR, from now on"
    assert made.json()["done"] == f"lifecycle {name} may spend 2.000 core-hours, 5.00 EUR"
    assert answer.status_code == 303, answer.text
    assert [(each["name"], each["bounds"]) for each in found["items"]] == [
        (name, {"core_hours": 3.5, "gpu_hours": None, "money": None})
    ]
    assert f'action="/cost/budgets/lifecycle/{name}"' in page
    assert gone.status_code == 303
    assert (await api.get("/api/v1/budgets")).json()["items"] == []
    assert (await api.put("/api/v1/budgets/queue/nobody", json={"core_hours": 1})).status_code == 404


async def test_the_policy_of_a_pool_is_set_by_the_api(api, stack):
    path = "/api/v1/pools/default/policy"
    made = await api.put(path, json={"grace": "30s", "minimum_run_time": "10m", "usage_weight": 1.5})
    same = await api.put(path, json={"grace": 30})
    found = (await api.get(path)).json()
    usual = await api.put(path, json={"grace": "default", "usage_weight": "default"})

    assert made.json()["done"] == "the policy of pool default: grace 1 min -> 30 s, usage weight 1 -> 1.5"
    assert same.json()["done"] == "the policy of pool default is as it was"
    assert {each["name"]: each["value"] for each in found["rules"] if each["value"] != each["default"]} == {
        "grace": 30,
        "usage_weight": 1500,
    }
    assert found["person"]
    assert usual.json()["done"] == "the policy of pool default: grace 30 s -> 1 min, usage weight 1.5 -> 1"
    assert (await api.put("/api/v1/pools/nowhere/policy", json={"grace": 30})).status_code == 404


async def test_a_parked_lifecycle_is_told_what_to_do(api, stack):
    key = f"{stack.prefix}-parked"
    await submit(api, stack, key)
    await stack.gate(key)

    not_parked = await api.post(f"/api/v1/lifecycles/{key}/retry")
    unknown = await api.post("/api/v1/lifecycles/nothing/retry", json={})
    cancelled = await api.post(f"/api/v1/lifecycles/{key}/cancel", json={"reason": "enough"})
    await stack.status(key, "cancelled")
    ended = await api.post(f"/api/v1/lifecycles/{key}/cancel")

    assert (not_parked.status_code, not_parked.json()["code"]) == (409, "not_waiting")
    assert unknown.status_code == 404
    assert cancelled.status_code == 202
    assert (ended.status_code, ended.json()["code"]) == (409, "not_waiting")


async def test_other_workflows_cannot_be_cancelled_through_the_door_of_lifecycles(api, stack):
    pool = names.pool_id(names.DEFAULT_POOL)

    answer = await api.post(f"/api/v1/lifecycles/{pool}/cancel")

    assert answer.status_code == 404
    assert (await stack.client.get_workflow_handle(pool).describe()).status.name == "RUNNING"


async def test_a_model_that_is_not_watched_cannot_be_checked(api, stack):
    answer = await api.post("/api/v1/models/nothing/check")

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@workflow.defn
class Asking:
    """Opens a gate and waits for it, as a lifecycle does: a gate without its lifecycle is nobody's."""

    @workflow.run
    async def run(self, request: ApprovalRequest) -> ApprovalAnswer:
        gate = names.approval_id(request.lifecycle)
        return await workflow.execute_child_workflow(Approval.run, request, id=gate)


async def test_while_no_worker_answers_a_decision_is_503_and_the_same_one_settles_it(
    temporal_server, store: Store, tmp_path
):
    settings = parts.settings_in(tmp_path, temporal_server.address)
    signing.create_keys(settings.keys_dir)
    client = await Client.connect(temporal_server.address, data_converter=converter)
    evidence = parts.evidence(lifecycle=f"down-{time.monotonic_ns()}")
    gate = parts.gate(evidence)
    request = ApprovalRequest(
        lifecycle=evidence.lifecycle,
        evidence=evidence,
        evidence_digest=gate.evidence_digest,
        keys=signing.trusted_keys(settings.keys_dir),
        deadline=gate.deadline,
    )
    queue = f"queue-{evidence.lifecycle}"
    opened = asyncio.Queue()

    @activity.defn(name=names.JOURNAL_APPEND)
    async def append(request: AppendRequest) -> None:
        for event in request.events:
            opened.put_nowait(event)

    handle = await client.start_workflow(Asking.run, request, id=evidence.lifecycle, task_queue=queue)
    async with Worker(
        client,
        task_queue=queue,
        workflows=[Approval, Asking],
        activities=[append],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        nonce = (await asyncio.wait_for(opened.get(), 60)).nonce
        await asyncio.sleep(0.2)  # the append's task completes
    with store.write() as session:
        session.add(parts.gate(evidence, nonce=nonce))
        session.add(parts.lifecycle(evidence.lifecycle, status="waiting_approval"))
    manager = parts.running(create_app(settings), settings.port_base)
    url = await asyncio.to_thread(manager.__enter__)
    headers = {"Authorization": f"Bearer {parts.key_of(settings)}"}
    decision = {"verdict": "approve", "comment": "looks right"}
    try:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as api:
            down = await api.post(f"/api/v1/approvals/{evidence.lifecycle}/decision", json=decision)
            said = store_says(store, gate.id)
            async with Worker(
                client,
                task_queue=queue,
                workflows=[Approval, Asking],
                activities=[append],
                workflow_runner=UnsandboxedWorkflowRunner(),
            ):
                settled = await api.post(f"/api/v1/approvals/{evidence.lifecycle}/decision", json=decision)
                answer = await asyncio.wait_for(handle.result(), 60)
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)

    assert (down.status_code, down.json()["code"]) == (503, "unavailable")
    assert down.headers["retry-after"]
    assert said == "open"
    assert settled.status_code == 200, settled.text
    assert answer.outcome == "approved"
    assert len(answer.decisions) == 1


def store_says(store: Store, gate: str) -> str:
    with store.read() as session:
        return session.get(ApprovalRow, gate).status


async def test_while_temporal_is_down_nothing_is_acknowledged(store: Store, tmp_path):
    settings = parts.settings_in(tmp_path)
    manager = parts.running(create_app(settings), settings.port_base)
    url = await asyncio.to_thread(manager.__enter__)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as api:
            answer = await api.post(
                "/api/v1/lifecycles",
                json=parts.SPEC,
                headers={"Authorization": f"Bearer {parts.key_of(settings)}", "Idempotency-Key": "down"},
            )
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)

    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_a_person_rolls_back_a_release_once_and_only_to_a_version_before(api, stack):
    model = stack.spec().model
    for name in ("one", "two"):
        handle = await stack.submit(name)
        await stack.decide(handle.id)
        await handle.result()
        await stack.status(handle.id, "released")

    def undo(**body):
        return api.post(f"/api/v1/models/{model}/roll-back", json={"reason": "it refuses everybody"} | body)

    missing = await api.post("/api/v1/models/nothing/roll-back", json={"reason": "why not"})
    unsaid = await undo(reason="  ")
    beyond = [await undo(release_seq=number) for number in (0, -1, 2**31, 10**30)]
    stale = await undo(release_seq=1)
    done = await undo(release_seq=2)
    repeated = await undo(release_seq=2)
    further = await undo(release_seq=3)

    assert (missing.status_code, unsaid.status_code) == (404, 422)
    assert {answer.status_code for answer in beyond} == {422}
    assert (stale.status_code, stale.json()["code"], stale.json()["field"]) == (409, "conflict", "release_seq")
    assert done.json() == {
        "model": model, "project": "default", "version": 1, "release_seq": 3, "undone_seq": 2, "person": "ada",
    }  # fmt: skip
    assert repeated.json() == done.json()
    assert (further.status_code, "no version before" in further.json()["detail"]) == (409, True)
    shown = (await api.get(f"/api/v1/models/{model}")).json()
    assert (shown["route"]["version"], shown["route"]["back_to"]) == (1, None)
    assert [release["rolled_back"] for release in shown["releases"]] == ["by ada: it refuses everybody", ""]
    assert (await stack.verified()).differences == []


IDS = ("", "%20", "'", "o'brien", "x" * 1500, "%00", "%0a", "%ff", "%F0%9F%90%88", "a//b", "/", "' OR ''='")


async def test_an_id_that_nobody_has_is_not_found_at_every_address(api, stack):
    description = (await api.get("/api/v1/openapi.json")).json()
    walked = 0
    for path, methods in description["paths"].items():
        of_a_lifecycle = path.startswith(("/api/v1/lifecycles/", "/api/v1/approvals/"))
        has_page = of_a_lifecycle and not path.endswith("/fork")
        for place in (path, path.removeprefix("/api/v1")) if has_page else (path,):
            for method in methods if "{" in place else ():
                for id in IDS:  # noqa: A001
                    where = re.sub(r"\{[^}]+\}", lambda _: id, place.replace("{action}", "retry"))  # noqa: B023
                    body = {"verdict": "approve"} if where.endswith("/decision") else {"reason": "x"}
                    body = {"stage": "train"} if where.endswith("/fork") else body
                    sent = {"json" if place == path else "data": body} if method in ("post", "put", "patch") else {}
                    answer = await api.request(method, where, **sent)
                    walked += 1
                    allowed = (404, 405) if of_a_lifecycle else (200, 307, 404, 405, 422)  # without a name: the list
                    assert answer.status_code in allowed, (method, where[:100], answer.text)
    assert walked > 150


async def test_a_queue_that_takes_no_requests_is_refused_when_it_is_submitted_to(api, stack):
    refused = await submit(api, stack, f"{stack.prefix}-nowhere", queue="nowhere")

    assert refused.status_code == 422
    assert refused.json()["detail"] == "queue 'nowhere' is not there"
    assert refused.json()["field"] == "queue"
    assert "name one of default" in refused.json()["hint"]


async def test_a_person_with_an_apostrophe_submits_signs_and_is_shown(api, stack):
    key, name = f"{stack.prefix}-obrien", "Miles O'Brien"
    made = await api.post("/api/v1/credentials", json={"person": name})
    assert made.status_code == 201, made.text
    api.headers["Authorization"] = f"Bearer {made.json()['key']}"
    assert (await submit(api, stack, key, target="the state's", positive="it's")).status_code == 202
    await stack.gate(key)

    decided = await api.post(f"/api/v1/approvals/{key}/decision", json={"verdict": "reject", "comment": "it's no good"})

    assert decided.status_code == 200, decided.text
    row = await stack.status(key, "rejected")
    assert row.submitted_by == name
    page = (await api.get(f"/lifecycles/{key}")).text
    assert "Miles O&#39;Brien" in page
    runs = [run async for run in stack.client.list_workflows(f"WorkflowId = '{key}'")]
    assert (await runs[0].memo())["submitted_by"] == name


async def test_the_best_so_far_is_taken_with_the_button_of_its_page_and_only_while_a_search_runs(api, stack):
    key, plain = f"{stack.prefix}-searches", f"{stack.prefix}-plain"
    searching = {"search": {"budget": "1h", "families": ["linear"]}, "until": "train"}
    await submit(api, stack, key, **searching)
    await submit(api, stack, plain)
    await eventually(lambda: _trials(stack, key) >= 3)

    running = (await api.get(f"/api/v1/lifecycles/{key}/search")).json()
    button = f'formaction="/lifecycles/{key}/take_best"'
    page = (await api.get(f"/search/{key}")).text
    pressed = await api.post(f"/lifecycles/{key}/take_best", data={"reason": "good enough"})
    await stack.status(key, "done")
    ended = (await api.get(f"/api/v1/lifecycles/{key}/search")).json()
    await stack.gate(plain)
    refused = await api.post(f"/api/v1/lifecycles/{plain}/take_best")

    assert running["can_take_best"] and button in page
    assert pressed.status_code == 303
    assert (ended["state"], ended["can_take_best"]) == ("person", False)
    assert "good enough" in ended["sentence"]
    assert ended["leaders"][0]["rank"] == 1
    assert button not in (await api.get(f"/search/{key}")).text
    assert (refused.status_code, refused.json()["code"]) == (409, "not_waiting")


def _trials(stack, lifecycle):
    with stack.store.read() as session:
        study = session.exec(select(StudyRow).where(StudyRow.lifecycle == lifecycle)).first()
        return study.told if study else 0


async def test_a_scored_file_has_a_page_and_is_on_the_models_list(api, stack):
    model, key = await released(stack), f"{stack.prefix}-file"
    body = {"path": "/rows & more.csv", "format": "csv"}
    asked = await api.post(f"/api/v1/models/{model}/score", json=body, headers={"Idempotency-Key": key})
    assert asked.status_code == 202
    await told(api, f"/api/v1/models/{model}/scores/{key}", '"status":"done"')

    page = (await api.get(f"/models/{model}/scores/{key}")).text

    assert "30 rows are answered, 0 are rejected" in page
    assert f"/api/v1/models/{model}/scores/{key}/out" in page
    assert "/rows &amp; more.csv" in page
    await told(api, f"/models/{model}/scores", f"/models/{model}/scores/{key}")  # Temporal lists a moment later
    assert (await api.get(f"/models/{model}/scores/none")).status_code == 404
    assert (await api.get("/models/it's/scores")).status_code == 404


async def told(api: httpx.AsyncClient, path: str, text: str) -> None:
    """Until the answer has *text* in it."""
    while True:
        if text in (await api.get(path)).text:
            return
        await asyncio.sleep(0.1)
