"""What was approved is what answers: bytes and what they mean, also for who can write to the data folder."""

import base64
import json
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from api.serve import fleet as fleets
from api.serve import version as served
from everloop import names, signing
from everloop.contracts import LifecycleRequest
from everloop.errors import BadSignature, IntegrityError
from everloop.records import Route, Signature, Version
from everloop.store import JournalRow, RouteRow, VersionRow
from tests import api_parts as parts
from tests.conftest import free_port_base
from tests.temporal.conftest import Stack
from tests.unit.test_api_serve import Deployment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path: Path) -> Deployment:
    """A deployment with one released version of the model `credit`."""
    found = Deployment(tmp_path)
    found.release(1)
    return found


def load(made: Deployment, model: str = "credit") -> served.Served:
    """What serve does when it finds a route."""
    return fleets.Fleet(made.settings, made.store, made.artifacts)._load(("default", model))


def rows(made: Deployment) -> tuple[Route, Version]:
    with made.store.read() as session:
        route = Route.model_validate_json(session.exec(select(RouteRow)).one().record)
        return route, Version.model_validate_json(session.exec(select(VersionRow)).one().record)


def write(made: Deployment, route: Route, version: Version) -> None:
    with made.store.write() as session:
        session.merge(parts.route_row(route))
        row = parts.version_row(version)
        session.merge(row if version.model == "credit" else row.model_copy(update={"run_id": version.model}))


def test_a_model_does_not_answer_with_the_bytes_that_were_approved_for_another(made):
    route, version = rows(made)

    write(made, route.model_copy(update={"model": "fraud"}), version.model_copy(update={"model": "fraud"}))

    with pytest.raises(IntegrityError, match="the model is another than the approved one"):
        load(made, "fraud")
    assert load(made).route.version == 1


def test_another_signature_under_the_approved_bytes_is_refused(made):
    route, version = rows(made)
    signature = Signature.model_validate_json(made.artifacts.get(version.exported.signature))
    turned = signature.model_copy(update={"classes": signature.classes[::-1], "positive": "bad"})
    blob = made.artifacts.put(turned.model_dump_json().encode(), "signature.json")
    exported = version.exported.model_copy(update={"signature": blob})

    write(made, route, version.model_copy(update={"exported": exported}))

    with pytest.raises(IntegrityError, match="the signature is another than the approved one"):
        load(made)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"task": "multiclass"}, "task"),
        ({"number": 1, "lifecycle": "credit-1"}, ""),
        ({"reference": "another sample"}, "reference"),
    ],
)
def test_task_and_reference_are_bound_too(made, changes, what):
    route, version = rows(made)
    if text := changes.pop("reference", ""):
        changes["exported"] = version.exported.model_copy(update={"reference": made.artifacts.put(text.encode())})

    write(made, route, version.model_copy(update=changes))

    if not what:
        assert load(made).route.version == 1
        return
    with pytest.raises(IntegrityError, match=f"the {what} is another"):
        load(made)


def test_a_decision_of_today_cannot_be_dressed_as_one_of_before_that_bound_less(made):
    route, version = rows(made)
    (decision,) = route.decisions
    undressed = decision.model_copy(update={"signed": "", "claim": decision.claim.model_copy(update={"format": 1})})

    write(made, route.model_copy(update={"decisions": (undressed,), "evidence": ""}), version)

    with pytest.raises(BadSignature):
        load(made)


def test_what_was_approved_before_evidence_was_bound_is_served_by_the_rule_of_its_time(made):
    route, version = rows(made)
    claim = route.decisions[0].claim.model_copy(update={"format": 1})
    first = {name: claim.model_dump(mode="json")[name] for name in signing.FIRST_CLAIM}
    text = signing.canonical(first).decode()  # what Everloop 0.1 signed
    signed = base64.b64encode(made.signer._private.sign(text.encode())).decode()
    old = route.decisions[0].model_copy(update={"claim": claim, "signed": "", "signature": signed})
    before = route.model_copy(update={"decisions": (old,), "evidence": ""})
    shown = {"evidence": json.loads(route.evidence), "evidence_digest": claim.evidence_digest}
    with made.store.write() as session:
        session.add(parts.event("ApprovalOpened", 0, claim.gate, "gate-run", **shown))

    write(made, before, version)
    assert load(made).route.version == 1

    write(made, before.model_copy(update={"model": "fraud"}), version.model_copy(update={"model": "fraud"}))
    with pytest.raises(IntegrityError, match="the model is another than the approved one"):
        load(made, "fraud")
    with made.store.write() as session:
        session.delete(session.exec(select(JournalRow)).one())
    with pytest.raises(IntegrityError, match="no evidence"):
        load(made)


def test_after_a_rotation_what_was_approved_before_still_answers_and_gates_take_the_new_key(made):
    route, _ = rows(made)
    open_gate_knows = signing.trusted_keys(made.settings.keys_dir)
    old = made.signer.key_id

    new = signing.rotate(made.settings.keys_dir)
    newer = signing.rotate(made.settings.keys_dir)

    assert load(made).route.version == 1
    assert made.signer.key_id == newer  # a running API follows
    by_new_key = made.signer.sign(route.decisions[0].claim)
    signing.verify(by_new_key, open_gate_knows)
    with pytest.raises(BadSignature):  # nobody vouches for it
        signing.verify(by_new_key.model_copy(update={"endorsements": ()}), open_gate_knows)
    assert [(key["id"], key["state"]) for key in signing.listed(made.settings.keys_dir)] == [
        (newer, "signs"),
        *sorted([(old, "retired"), (new, "retired")]),
    ]


def test_a_key_that_was_lost_and_made_anew_leaves_earlier_decisions_valid(made):
    (made.settings.keys_dir / "signing.key").unlink()

    signing.create_keys(made.settings.keys_dir)

    assert load(made).route.version == 1


LATER = {
    "everloop/records/approval.py": ("Evidence", "Claim"),
    "everloop/records/evaluation.py": ("Comparison",),
    "everloop/records/export.py": ("Signature",),
    "everloop/records/job.py": ("Ran",),
    "everloop/records/registry.py": ("Version",),
    "everloop/records/release.py": ("Route",),
    "everloop/records/wait.py": ("Wait",),
    "everloop/specs/approval.py": ("Gate",),
    "everloop/specs/data.py": ("Source",),
    "everloop/specs/lifecycle.py": ("LifecycleSpec",),
    "everloop/events.py": ("StageFinished", "ModelReleased", "ApprovalOpened", "LifecycleSubmitted"),
    "activities/lease_policy/state.py": ("PoolState", "Device", "Request", "Held", "Policy"),
    "everloop/queues.py": ("Queue",),
}
"""Records to which a later Everloop adds a field with a default."""

READ_BY_A_LATER_EVERLOOP = """
import asyncio, json, sys
from pathlib import Path
import httpx
from sqlmodel import select
from temporalio.client import Client
from everloop import names, records, signing, settings as configuration
from everloop.artifacts import Artifacts
from everloop.payloads import converter
from everloop.store import LifecycleRow, PoolDecisionRow, RouteChangeRow, RouteRow, Store
from activities.execution import Execution
from activities.journal import verify
from activities import lease_ledger as ledger
from activities.lease_policy import decide
from activities.release import ReleaseOnControl
from everloop.contracts import ReleaseRequest
from everloop.errors import IntegrityError
from api.serve import fleet as fleets
from api.serve import version as served
from api.app import create_app
from tests import api_parts as parts

told = json.loads(sys.argv[1])
assert records.Evidence.model_fields["added_later"].default == "x"
settings = configuration.load(
    data_dir=told["folder"], port_base=told["port"], temporal_address=told["temporal"], person="ada"
)
store, artifacts = Store(told["database"]), Artifacts(told["artifacts"])
keys = Path(told["folder"]) / "keys"

async def main():
    client = await Client.connect(told["temporal"], data_converter=converter)
    found = await verify(client, store, artifacts, models=lambda model: model == told["model"])
    assert found.differences == [], found.differences
    assert found.rows > 3
    release = ReleaseOnControl(store, artifacts, settings, client)
    request = ReleaseRequest.model_validate(told["request"])
    with store.write() as session:
        change = session.exec(select(RouteChangeRow)).one()
        rollout = Execution(change.workflow_id, change.run_id, names.RELEASE, names.CONTROL, "", change.at, "", "")
        session.delete(change)
        session.delete(session.exec(select(RouteRow)).one())
        session.get_one(LifecycleRow, told["released"]).status = "running"
    assert release._route(request, rollout).version == 1  # and all is as it was
    with store.write() as session:
        session.get_one(LifecycleRow, told["released"]).status = "released"

try:
    fleets.Fleet(settings, store, artifacts)._load(("default", told["model"]))
except IntegrityError as error:  # quick compute makes no graph: all but that was accepted
    assert "are not a graph" in str(error), error
with store.read() as session:
    decisions = session.exec(select(PoolDecisionRow).order_by(PoolDecisionRow.version)).all()
replayed = list(ledger.replayed(decisions))
assert len(replayed) == len(decisions) > 0
for row, state, policy in replayed:
    assert ledger.said(decide(state, row.now_ms, policy, ledger.FUEL)) == row.decisions
asyncio.run(main())
with parts.running(create_app(settings), told["port"]) as url:
    headers = {"Authorization": f"Bearer {parts.key_of(settings)}"}
    with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as api:
        again = api.post("/api/v1/lifecycles", json=told["spec"], headers={"Idempotency-Key": told["released"]})
        assert again.status_code == 200, again.text
        other = told["spec"] | {"metric": "accuracy"}
        other = api.post("/api/v1/lifecycles", json=other, headers={"Idempotency-Key": told["released"]})
        assert other.status_code == 422, other.text
        decided = api.post(f"/api/v1/approvals/{told['waiting']}/decision", json={"verdict": "approve"})
        assert decided.status_code == 200, decided.text
print("nothing is refused")
"""


async def test_a_later_everloop_with_a_new_field_in_its_records_refuses_nothing_of_before(
    stack: Stack, tmp_path: Path
) -> None:
    first = await stack.submit("one")
    await stack.decide(first.id)
    await first.result()
    await stack.status(first.id, "released")
    with stack.store.read() as session:  # what the rollout was asked, before the champion changes
        route = Route.model_validate_json(session.exec(select(RouteRow)).one().record)
    second = await stack.submit("two", training={"seed": 1})
    await stack.gate(second.id)
    never_begun = await stack.client.start_workflow(
        names.LIFECYCLE,
        LifecycleRequest(spec=stack.spec(), body_digest="0" * 64, submitted_by="ann"),
        id=f"{stack.prefix}-never-begun",
        task_queue=names.CONTROL,
        start_delay=timedelta(hours=1),
    )
    await never_begun.terminate()
    later = later_everloop(tmp_path / "later")
    await stack.journal.sweep()
    assert stack.row(never_begun.id)  # its first fact is made of its input, again and again
    told = {
        "folder": str(stack.settings.data_dir),
        "database": stack.store.url,
        "artifacts": stack.artifacts.root,
        "temporal": stack.settings.temporal_address,
        "port": free_port_base(),
        "model": stack.spec().model,
        "released": first.id,
        "waiting": second.id,
        "spec": stack.spec().model_dump(mode="json"),
        "request": await rollout_request(stack, first.id),
    }
    assert route.version == 1

    done = await run(later, told)

    assert done.endswith("nothing is refused\n"), done
    await stack.status(second.id, "released")


async def rollout_request(stack: Stack, lifecycle: str) -> object:
    async for event in stack.client.get_workflow_handle(lifecycle).fetch_history_events():
        child = event.start_child_workflow_execution_initiated_event_attributes
        if child.workflow_type.name == "everloop.Release":
            return json.loads(child.input.payloads[0].data)
    raise AssertionError("no rollout")


async def run(later: Path, told: dict[str, object]) -> str:
    import asyncio

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READ_BY_A_LATER_EVERLOOP, json.dumps(told),
        cwd=later, env={"PYTHONPATH": f"{later}:{ROOT}", "PATH": "/usr/bin:/bin", "HOME": str(later)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return out.decode()


def later_everloop(folder: Path) -> Path:
    """A copy of the packages in which each record of `LATER` has one more field, with a default."""
    for package in ("everloop", "activities", "api", "workflows", "workers"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, records in LATER.items():
        text = (folder / name).read_text()
        for record in records:
            head = rf"(\nclass {record}\([^\n]*\):\n(?:    \"{{3}}[^\"]*\"{{3}}\n)?)"  # with its docstring
            if f"class {record}(NamedTuple)" in text:  # its fields have an order: a new one is the last
                head = rf"(?s)(\nclass {record}\(NamedTuple\):\n.*?\n)(?=\n\n)"
            text, count = re.subn(head, r'\1    added_later: str = "x"\n', text, count=1)
            assert count == 1, record
        (folder / name).write_text(text)
    return folder
