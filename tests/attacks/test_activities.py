"""Anybody on Temporal's port can schedule an activity of ours: it serves our own workflows, and nobody else's."""

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import SQLModel, select
from temporalio import activity, workflow
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.execution import Execution
from activities.release import ReleaseOnControl
from everloop import names, signing, views
from everloop.contracts import ReleaseRequest
from everloop.errors import BadSignature, EvidenceChanged
from everloop.records import RollBack, SignedRollBack
from everloop.store import JournalRow, LifecycleRow, RouteChangeRow, RouteRow
from tests.temporal.conftest import Stack
from tests.temporal.test_score import scoring
from workers import control

FOREIGN = "foreign"


@workflow.defn(dynamic=True)
class Foreign:
    """A stranger's workflow of whatever type: it asks our control worker for what it was told to."""

    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> dict[str, str]:
        (orders,) = (workflow.payload_converter().from_payload(raw.payload, list) for raw in args)
        return {
            f"{place} {kind} {name}": await self._one(kind, name, given)
            for place, (kind, name, given) in enumerate(orders)
        }

    async def _one(self, kind: str, name: str, given: Any) -> str:
        once = RetryPolicy(maximum_attempts=1)
        try:
            if kind == "gate":
                await workflow.execute_child_workflow(
                    name, given, id=names.approval_id(workflow.info().workflow_id),
                    task_queue=names.CONTROL, retry_policy=once,
                )  # fmt: skip
            elif kind == "child":
                await workflow.execute_child_workflow(
                    name, given, id=names.release_id(given["version"]["project"], given["version"]["model"]),
                    task_queue=names.CONTROL, retry_policy=once,
                )  # fmt: skip
            else:
                await workflow.execute_activity(
                    name, given, task_queue=names.CONTROL, start_to_close_timeout=timedelta(seconds=20),
                    retry_policy=once,
                )  # fmt: skip
        except (ActivityError, ChildWorkflowError) as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, ApplicationError):
                cause = cause.__cause__
            return cause.type or "" if isinstance(cause, ApplicationError) else repr(error)
        return "done"


@asynccontextmanager
async def foreign_worker(stack: Stack) -> AsyncIterator[None]:
    """Thirty lines of a stranger: a worker on a queue of its own."""
    async with Worker(
        stack.client, task_queue=FOREIGN, workflows=[Foreign], workflow_runner=UnsandboxedWorkflowRunner()
    ):
        yield


async def foreign(stack: Stack, kind: str, workflow_id: str, orders: list[Any]) -> dict[str, str]:
    """What the stranger's workflow of type *kind* was answered."""
    return await stack.client.execute_workflow(
        kind, orders, id=workflow_id, task_queue=FOREIGN, result_type=dict, execution_timeout=timedelta(seconds=60)
    )


async def released(stack: Stack, name: str, **changes: Any) -> str:
    handle = await stack.submit(name, **changes)
    await stack.decide(handle.id)
    await handle.result()
    await stack.status(handle.id, "released")
    return handle.id


async def recorded(stack: Stack, *workflow_ids: str) -> dict[str, Any]:
    """The input of each activity in these workflows' histories, as Temporal shows it to everybody."""
    found: dict[str, Any] = {}
    for workflow_id in workflow_ids:
        history = await stack.client.get_workflow_handle(workflow_id).fetch_history()
        for event in history.events:
            scheduled = event.activity_task_scheduled_event_attributes
            if scheduled.activity_type.name and scheduled.task_queue.name == names.CONTROL:
                found[scheduled.activity_type.name] = json.loads(scheduled.input.payloads[0].data)
    return found


def everything(stack: Stack) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    with stack.store.read() as session:
        return {
            table.name: sorted(map(repr, session.connection().execute(select(table)).all()))
            for table in SQLModel.metadata.sorted_tables
            if table.name not in ("pool", "device")  # the pool looks at its devices all the time
        }


def route_of(stack: Stack) -> tuple[int, int]:
    with stack.store.read() as session:
        row = session.exec(select(RouteRow)).one()
    return row.version, row.release_seq


async def test_a_foreign_worker_that_calls_every_activity_in_turn_changes_nothing(stack: Stack) -> None:
    # Checked by nobody meanwhile: the schedule of a shorter time might fire while the activities are called.
    first = await released(stack, "one", monitor={"every": "P7D"})
    second = await released(stack, "two", monitor={"every": "P7D"})
    model = stack.spec().model
    release = names.release_id("default", model)
    sought = await stack.submit("sought", until="train", search={"budget": {"trials": 2}, "families": ["linear"]})
    await sought.result()
    scored = await scoring(stack, model, "scored")
    await scored.result()
    known = await recorded(
        stack, first, second, names.approval_id(second), release, names.pool_id(names.DEFAULT_POOL),
        names.search_id(sought.id), scored.id,
    )  # fmt: skip
    undo = {"project": "default", "model": model, "release_seq": 2}
    asked = known | {
        "everloop.release.roll_back": undo,
        "everloop.lease.cancel": known["everloop.lease.request"]["id"],
        "everloop.lease.adopt": known["everloop.lease.accept"],
        "everloop.pool.order": {
            "order": {
                "action": "undrain", "pool": "default", "person": "ada", "node": "cpu0",
                "ordered_at": "2026-01-01T00:00:00Z", "expires_at": "2036-01-01T00:00:00Z",
            },
            "signed": "{}", "key_id": "", "signature": "",
        },
        "everloop.lifecycle.kept": {"lifecycle": first, "run_id": "", "stage": "prepare", "question": {}},
        "everloop.drift.next_window": {"project": "default", "model": model},
        "everloop.labels.due": {"project": "default", "model": model},
        "everloop.labels.judge": {
            "project": "default", "model": model, "version": 2, "labels_bytes": 1 << 40,
            "report": {"windows": [], "labels": 9, "joined": 9, "corrected": 9},
            "spec": known["everloop.registry.register"]["spec"],
        },
        "everloop.drift.trigger": {
            "project": "default", "model": model, "version": 2, "share": 1.0, "threshold": 0.5,
            "window": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"},
            "spec": known["everloop.registry.register"]["spec"],
        },
    }  # fmt: skip
    ours = control.activities(stack.client, stack.store, stack.artifacts, stack.settings, stack.journal)
    every = {activity._Definition.must_from_callable(one).name for one in ours}
    assert every - asked.keys() <= {"everloop.release.observe"}  # reads serve's status only
    await stack.journal.sweep()
    before = everything(stack)

    async with foreign_worker(stack):
        orders = [["activity", name, given] for name, given in sorted(asked.items())]
        answers = {}
        for kind, workflow_id in (
            ("Stranger", f"{stack.prefix}-stranger"),
            (names.LIFECYCLE, first),  # closed, so its id is free
            (names.RELEASE, release),
            (names.APPROVAL, f"{first}/approval"),
            (names.DRIFT_CHECK, f"monitor/default/{model}/check-1"),
            (names.GPU_POOL, f"pool/{stack.prefix}"),
            (names.SEARCH, names.search_id(sought.id)),  # closed too
            (names.SCORE, scored.id),
        ):
            answers |= {(kind, name): said for name, said in (await foreign(stack, kind, workflow_id, orders)).items()}
    await stack.journal.sweep()

    assert set(answers.values()) == {"Forbidden"}
    assert everything(stack) == before
    assert route_of(stack) == (2, 2)
    assert (await stack.verified()).differences == []


async def test_under_the_id_of_a_closed_lifecycle_its_recorded_release_is_not_played_again(stack: Stack) -> None:
    first, _second = await released(stack, "one"), await released(stack, "two")
    (request,) = [await release_request(stack, first)]

    async with foreign_worker(stack):
        answers = await foreign(stack, names.LIFECYCLE, first, [["child", names.RELEASE, request]])

    assert list(answers.values()) == ["BadSignature"]
    assert route_of(stack) == (2, 2)
    assert (await stack.verified()).differences == []


async def test_a_foreign_gate_under_the_id_of_a_closed_lifecycle_leaves_no_trace(stack: Stack) -> None:
    lifecycle = await released(stack, "one")
    request: dict[str, Any] = {}
    async for event in stack.client.get_workflow_handle(lifecycle).fetch_history_events():
        child = event.start_child_workflow_execution_initiated_event_attributes
        if child.workflow_type.name == names.APPROVAL:
            request = json.loads(child.input.payloads[0].data)
    forged = request["evidence"] | {"metrics": {"auc": 1.0}}
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    await stack.journal.sweep()
    before = everything(stack)

    async with foreign_worker(stack):
        order = ["gate", names.APPROVAL, request | {"evidence": forged, "deadline": soon}]
        answers = await foreign(stack, names.LIFECYCLE, lifecycle, [order])
    await stack.journal.sweep()

    assert list(answers.values()) == ["Forbidden"]
    assert everything(stack) == before
    assert (await stack.verified()).differences == []


async def release_request(stack: Stack, lifecycle: str) -> dict[str, Any]:
    """The input of the rollout that *lifecycle* started, as its history has it."""
    async for event in stack.client.get_workflow_handle(lifecycle).fetch_history_events():
        child = event.start_child_workflow_execution_initiated_event_attributes
        if child.workflow_type.name == names.RELEASE:
            return json.loads(child.input.payloads[0].data)
    raise AssertionError("no rollout")


async def rollout_of(stack: Stack, request: ReleaseRequest, **changes: Any) -> Execution:
    """The run that made the release, as if it asked once more."""
    with stack.store.read() as session:
        row = session.exec(select(RouteChangeRow).where(RouteChangeRow.lifecycle == request.version.lifecycle)).first()
    return Execution(
        workflow_id=row.workflow_id, run_id="another", workflow_type=names.RELEASE, task_queue=names.CONTROL,
        first_run_id="another", started_at=datetime.now(UTC), parent_id=row.lifecycle, parent_run_id="",
    )  # fmt: skip


async def test_an_approval_is_spent_also_for_who_passes_for_our_control_worker(stack: Stack) -> None:
    lifecycle = await released(stack, "one")
    request = ReleaseRequest.model_validate(await release_request(stack, lifecycle))
    rollout = await rollout_of(stack, request)
    release = ReleaseOnControl(stack.store, stack.artifacts, stack.settings, stack.client)
    with stack.store.write() as session:  # all that the attacker would need beside
        session.delete(session.exec(select(RouteRow)).one())
        session.get_one(LifecycleRow, lifecycle).status = "running"

    with pytest.raises(BadSignature, match="used for an earlier release"):
        release._route(request, rollout)

    with stack.store.read() as session:
        assert session.exec(select(RouteRow)).all() == []


async def test_an_expired_approval_releases_nothing(stack: Stack) -> None:
    lifecycle = await released(stack, "one")
    request = ReleaseRequest.model_validate(await release_request(stack, lifecycle))
    rollout = await rollout_of(stack, request)
    release = ReleaseOnControl(stack.store, stack.artifacts, stack.settings, stack.client)
    expired = request.decisions[0].claim.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(seconds=1)})
    late = request.model_copy(update={"decisions": (stack.signer.sign(expired),)})
    with stack.store.write() as session:  # as if it had not been released yet
        session.delete(session.exec(select(RouteRow)).one())
        session.delete(session.exec(select(RouteChangeRow)).one())
        session.get_one(LifecycleRow, lifecycle).status = "running"

    with pytest.raises(EvidenceChanged, match="expired"):
        release._route(late, rollout)
    assert release._route(request, rollout).release_seq == 1


async def test_numbers_of_releases_never_come_again_and_a_retry_may_use_its_approval(stack: Stack) -> None:
    stack.serve.refuse = "the bytes are not what the export said"  # type: ignore[attr-defined]
    handle = await stack.submit()
    await stack.decide(handle.id)
    await stack.status(handle.id, "needs_attention")
    with stack.store.read() as session:
        assert session.exec(select(RouteRow)).all() == []  # the first release, undone

    stack.serve.refuse = ""  # type: ignore[attr-defined]
    await handle.execute_update(names.ATTEND, {"action": "retry", "person": "ada"})
    await stack.status(handle.id, "released")

    assert route_of(stack) == (1, 3)  # release, roll back, release
    assert (await stack.verified()).differences == []


async def test_only_a_signed_order_rolls_back_and_it_is_journaled(stack: Stack) -> None:
    await released(stack, "one")
    await released(stack, "two")
    model = stack.spec().model
    now = datetime.now(UTC)
    order = RollBack(
        project="default", model=model, release_seq=2, person="grace", reason="it refuses everybody",
        ordered_at=now, expires_at=now + timedelta(minutes=1),
    )  # fmt: skip
    good = stack.signer.order(order)
    other = stack.signer.order(order.model_copy(update={"release_seq": 1}))
    late = stack.signer.order(order.model_copy(update={"expires_at": now - timedelta(seconds=1)}))
    for bad in (
        SignedRollBack(order=order, key_id=good.key_id, signature="AAAA", signed=good.signed),
        good.model_copy(update={"order": order.model_copy(update={"person": "mallory"})}),
        other.model_copy(update={"order": order}),
        late,
    ):
        with pytest.raises(WorkflowFailureError) as caught:
            await ordered(stack, bad)
        assert "BadSignature" in repr(caught.value.cause.cause) or caught.value.cause.cause.type == "BadSignature"
    assert route_of(stack) == (2, 2)

    await ordered(stack, good)

    assert route_of(stack) == (1, 3)
    with pytest.raises(WorkflowFailureError):  # the same order again finds nothing to undo
        await ordered(stack, good)
    assert route_of(stack) == (1, 3)
    with stack.store.read() as session:
        events = [views.parse(row) for row in session.exec(select(JournalRow)).all() if row.type == "ReleaseRolledBack"]
    assert [(event.person, event.undone_seq, event.release_seq, event.back_to) for event in events] == [
        ("grace", 2, 3, 1)
    ]
    assert (await stack.verified()).differences == []


async def test_a_key_that_was_rotated_out_decides_nothing_new(stack: Stack, tmp_path: Path) -> None:
    """Somebody may have it: that is what a rotation is for."""
    shutil.copytree(stack.settings.keys_dir, tmp_path / "stolen")
    thief = signing.Signer(tmp_path / "stolen")
    signing.rotate(stack.settings.keys_dir)
    handle = await stack.submit()
    gate = await stack.gate(handle.id)
    forged = thief.sign(stack.decision(gate).claim)

    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await stack.client.get_workflow_handle(gate.id).execute_update(names.DECIDE, forged)
    assert refused.value.cause.type == "BadSignature"
    await stack.decide(handle.id)
    await stack.status(handle.id, "released")
    now = datetime.now(UTC)
    order = RollBack(
        project="default", model=stack.spec().model, release_seq=1, person="grace", reason="mine",
        ordered_at=now, expires_at=now + timedelta(minutes=1),
    )  # fmt: skip
    with pytest.raises(WorkflowFailureError) as caught:
        await ordered(stack, thief.order(order))
    assert caught.value.cause.cause.type == "BadSignature"


async def ordered(stack: Stack, order: SignedRollBack) -> None:
    workflow_id = names.release_id(order.order.project, order.order.model)
    await stack.client.execute_workflow(names.ROLL_BACK, order, id=workflow_id, task_queue=names.CONTROL)
