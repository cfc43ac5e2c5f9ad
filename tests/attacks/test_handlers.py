"""Nothing that anybody sends to a workflow wedges it; one that is wedged all the same is said, and a pool replaced."""

import asyncio
import contextlib
import subprocess
from collections.abc import Callable
from itertools import product
from typing import Any

import httpx
import pytest
from sqlmodel import select
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowQueryFailedError
from temporalio.client import WorkflowUpdateFailedError as Refused
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from activities.alarm import Alarms
from activities.lease import LeaseOnControl
from everloop import console, names, terminal
from everloop.records import Verdict
from everloop.store import AlarmRow, DeviceRow
from tests.fakes import at
from tests.temporal.conftest import Stack, eventually
from tests.temporal.test_drift import MONITOR, check, checks, traffic
from tests.temporal.test_replay import replayer
from tests.temporal.test_reset import reset, workflow_task_after
from tests.temporal.test_score import scoring
from workers import control, temporal

BY_THE_SERVER = (
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW,
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND,  # megabytes of signals during one task
)
FEW = asyncio.Semaphore(8)
"""Updates at a time: Temporal takes ten per workflow."""
POOL = names.pool_id(names.DEFAULT_POOL)


def payload(data: bytes, encoding: bytes = b"json/plain", **metadata: bytes) -> RawValue:
    return RawValue(Payload(metadata={"encoding": encoding, **metadata}, data=data))


JUNK: dict[str, list[RawValue]] = {
    "nothing": [],
    "null": [payload(b"", b"binary/null")],
    "a JSON null": [payload(b"null")],
    "a number": [payload(b"5")],
    "a text": [payload(b'"x"')],
    "a list": [payload(b"[1, {}]")],
    "a list of text that is too long": [payload(b'["' + b"x" * 60_000 + b'"]')],
    "an object": [payload(b'{"a": 1}')],
    "broken JSON": [payload(b"{")],
    "no text": [payload(b"\xff\xfe\x00")],
    "nested": [payload(b"[" * 50_000)],
    "bytes": [payload(b"\x00\x01", b"binary/plain")],
    "encrypted": [payload(b"\x00", b"binary/encrypted")],
    "an encoding that is no text": [payload(b"\x00", b"\xff")],
    "no encoding": [RawValue(Payload(data=b"5"))],
    "an unknown message": [payload(b"{}", b"json/protobuf", messageType=b"temporal.No")],
    "a broken message": [payload(b"\xff", b"binary/protobuf", messageType=b"temporal.api.common.v1.Payload")],
    "huge": [payload(b'"' + b"x" * 300_000 + b'"')],
    "a huge offer": [payload(b'{"request_id": "' + b"x" * 30_000 + b'", "device": "cpu0", "token": 1}')],
    "too much": [payload(b'{"a": 1}')] * 40,
}
"""Whatever bytes somebody may send."""


def definition(cls: type) -> Any:
    return workflow._Definition.must_from_class(cls)


HANDLERS = [
    (cls, kind, name)
    for cls in control.WORKFLOWS
    for kind in ("signals", "updates", "queries")
    for name in [*getattr(definition(cls), kind), "no_such_handler"]
]


@pytest.fixture
async def anybody(stack: Stack) -> Client:
    """A client of somebody else: it knows nothing of our types and limits."""
    return await Client.connect(stack.client.service_client.config.target_host)


async def attack(client: Client, stack: Stack, workflow_id: str, cls: type) -> None:
    """Everything there is in `JUNK`, to every handler of *cls* and to one that it does not have."""
    handle = client.get_workflow_handle(workflow_id)
    sent = []
    for owner, kind, name in HANDLERS:
        if owner is cls:
            send = {"signals": signalled, "updates": refused, "queries": unanswered}[kind]
            sent += [send(handle, name, what) for what in JUNK]
    assert len(sent) >= 3 * len(JUNK)
    await asyncio.gather(*sent)
    await unharmed(stack, workflow_id)


async def signalled(handle: WorkflowHandle[Any, Any], name: str, what: str) -> None:
    await handle.signal(name, args=JUNK[what])


async def refused(handle: WorkflowHandle[Any, Any], name: str, what: str) -> None:
    with pytest.raises(Refused) as caught:
        async with FEW:
            await handle.execute_update(name, args=JUNK[what])
    said = str(caught.value.cause)
    assert name in said or "unreadable payload; expected is" in said, (what, said)
    assert len(said) < 700, (what, said)


async def unanswered(handle: WorkflowHandle[Any, Any], name: str, what: str) -> None:
    refused = pytest.raises(WorkflowQueryFailedError)
    if name == names.SCORE_PROGRESS:  # it takes nothing, so it may answer whatever comes
        refused = contextlib.suppress(WorkflowQueryFailedError)
    with refused:
        await handle.query(name, args=JUNK[what])


async def unharmed(stack: Stack, workflow_id: str) -> None:
    """Every task of the workflow succeeded, and a fresh worker reads its history as well (a restart)."""
    handle = stack.client.get_workflow_handle(workflow_id)

    async def at_rest() -> None:
        for _ in range(400):
            if not (await handle.describe()).raw_description.HasField("pending_workflow_task"):
                return
            await asyncio.sleep(0.05)
        raise TimeoutError("a task of the workflow is pending all the time")

    await at_rest()
    history = await handle.fetch_history()
    failed = [
        str(event.workflow_task_failed_event_attributes)
        for event in history.events
        if event.HasField("workflow_task_failed_event_attributes")
        and event.workflow_task_failed_event_attributes.cause not in BY_THE_SERVER
    ]
    assert failed == []
    await at_rest()  # a timer may have woken it meanwhile
    await replayer().replay_workflow(history)


async def test_no_handler_of_any_workflow_is_wedged_by_nothing_junk_or_too_much(stack: Stack, anybody: Client) -> None:
    stack.serve.silent = True  # type: ignore[attr-defined]
    one = await stack.submit("walk", monitor=MONITOR)
    gate = await stack.gate(one.id)
    attacked: set[type] = set()

    async def attacks(workflow_id: str, name: str) -> None:
        cls = next(each for each in control.WORKFLOWS if definition(each).name == name)
        await attack(anybody, stack, workflow_id, cls)
        attacked.add(cls)

    await asyncio.gather(attacks(POOL, names.GPU_POOL), attacks(one.id, names.LIFECYCLE))
    await attacks(gate.id, names.APPROVAL)
    await stack.decide(one.id)
    rollout = names.release_id("default", gate.model)
    await begun(stack, rollout)
    await attacks(rollout, names.RELEASE)
    stack.serve.silent = False  # type: ignore[attr-defined]
    await stack.status(one.id, "released")

    measured = asyncio.Event()
    stack.compute.hooks["measure"] = measured.wait
    traffic(stack, gate.model, at(2026, 1, 1), at(2026, 1, 2))
    checked = asyncio.create_task(check(stack, gate.model))
    await eventually(lambda: "measure" in stack.compute.stages())  # the pool has granted it a slot
    [open_check] = [each.id async for each in stack.client.list_workflows(OPEN_CHECKS) if stack.prefix in each.id]
    await attacks(open_check, names.DRIFT_CHECK)
    measured.set()
    assert await checked == 1
    assert [row.verdict for row in checks(stack, gate.model)] == ["quiet"]

    cutting = asyncio.Event()
    stack.compute.hooks["cut"] = cutting.wait
    scored = await scoring(stack, gate.model, "walk")
    await eventually(lambda: "cut" in stack.compute.stages())
    await attacks(scored.id, names.SCORE)
    cutting.set()
    assert (await scored.result()).rows == 30

    searching = asyncio.Event()
    stack.compute.hooks["trial"] = searching.wait
    sought = await stack.submit("walk-search", until="train", search={"budget": {"trials": 2}, "families": ["linear"]})
    await eventually(lambda: "trial" in stack.compute.stages())
    await attacks(names.search_id(sought.id), names.SEARCH)
    searching.set()
    await stack.status(sought.id, "done")

    # A workflow that is new must be attacked here too. An order is one activity long and listens to nobody.
    deaf = [cls for cls in control.WORKFLOWS if cls not in attacked]
    assert {definition(cls).name for cls in deaf} == {names.ROLL_BACK, names.POOL_ORDER}
    assert not any(each.signals or each.updates or each.queries for each in map(definition, deaf))
    other = await stack.submit("walk-2")
    await stack.gate(other.id)
    await anybody.get_workflow_handle(other.id).signal(names.LEASE_OFFERED)
    await other.cancel()
    await stack.status(other.id, "cancelled")
    third = await stack.submit("walk-3")
    await stack.decide(third.id, Verdict.REJECT, comment="no")
    await stack.status(third.id, "rejected")


async def begun(stack: Stack, workflow_id: str) -> None:
    for _ in range(400):
        with contextlib.suppress(RPCError):  # not yet
            await stack.client.get_workflow_handle(workflow_id).describe()
            return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"{workflow_id} does not begin")


OPEN_CHECKS = f"WorkflowType = '{names.DRIFT_CHECK}' AND ExecutionStatus = 'Running'"


def typed(stack: Stack, *words: str) -> None:
    """What somebody types: Temporal's own command line."""
    address = stack.client.service_client.config.target_host
    subprocess.run(
        [str(temporal.binary()), "workflow", *words, "--address", address], check=True, capture_output=True, timeout=30
    )


async def test_signals_of_temporals_own_command_line_without_input_wedge_nothing_and_a_reset_works(
    stack: Stack,
) -> None:
    one = await stack.submit("typed")
    old = await stack.gate(one.id)

    for workflow_id, name in ((one.id, "lease_offered"), (one.id, "gate_opened"), (POOL, "inventory"), (POOL, "wake")):
        await asyncio.to_thread(typed, stack, "signal", "-w", workflow_id, "--name", name)
    await unharmed(stack, one.id)
    await unharmed(stack, POOL)

    await reset(stack, one.id, await workflow_task_after(stack, one.id, "everloop.training.train"))
    await stack.gate(one.id, other_than=old.nonce)
    await stack.decide(one.id)
    await stack.status(one.id, "released")
    await unharmed(stack, one.id)


async def test_workflows_started_by_hand_with_input_they_cannot_read_end_with_a_sentence(
    stack: Stack, anybody: Client
) -> None:
    async def ends(name: str, what: str) -> None:
        started = await anybody.start_workflow(
            name, args=JUNK[what], id=f"{stack.prefix}-{name}-{what}", task_queue=names.CONTROL
        )
        with pytest.raises(WorkflowFailureError) as caught:
            await started.result()
        cause = caught.value.cause
        assert isinstance(cause, ApplicationError), cause
        expected = {
            names.GPU_POOL: "str",
            names.ROLL_BACK: "SignedRollBack",
            names.POOL_ORDER: "SignedPoolOrder",
        }.get(name, "Request")
        assert expected in cause.message, cause.message
        assert len(cause.message) < 700

    kinds = [definition(cls).name for cls in control.WORKFLOWS]
    readable = {(names.GPU_POOL, "a text")}  # a pool of that name
    await asyncio.gather(*(ends(*each) for each in set(product(kinds, JUNK)) - readable))
    await asyncio.to_thread(
        typed, stack, "start", "--type", names.LIFECYCLE, "--task-queue", names.CONTROL, "-w", f"{stack.prefix}-typed"
    )
    with pytest.raises(WorkflowFailureError) as caught:
        await stack.client.get_workflow_handle(f"{stack.prefix}-typed").result()
    assert "takes request: LifecycleRequest; 0 came" in str(caught.value.cause)


# --- wedged all the same ------------------------------------------------------------------------


def alarms(stack: Stack) -> dict[str, AlarmRow]:
    with stack.store.read() as session:
        return {row.workflow_id: row for row in session.exec(select(AlarmRow))}


async def swept(stack: Stack, done: Callable[[], bool]) -> None:
    """Control's sweeper, until *done*."""
    sweeper = Alarms(stack.store, stack.client, LeaseOnControl(stack.store, stack.client))
    for _ in range(100):
        await sweeper.sweep()
        if done():
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"alarms: {alarms(stack)}")


async def test_a_lifecycle_whose_task_fails_is_an_alarm_everywhere_until_it_goes_on(
    stack: Stack, anybody: Client, api: httpx.AsyncClient
) -> None:
    stuck = asyncio.Event()
    stack.compute.hooks["prepare"] = stuck.wait
    one = await stack.submit("wedged")
    await eventually(lambda: "prepare" in stack.compute.stages())
    described = await one.describe()
    job = anybody.get_async_activity_handle(workflow_id=one.id, run_id=described.run_id, activity_id="prepare.1")
    await job.complete(5)  # no Prepared: the task that reads it fails, for ever
    stuck.set()

    await swept(stack, lambda: one.id in alarms(stack))

    row = alarms(stack)[one.id]
    assert row.run_id == described.run_id
    assert "Prepared" in row.message
    command = f"--workflow-id {one.id}"
    shown = (await api.get(f"/api/v1/lifecycles/{one.id}")).json()
    assert "cannot go on: its workflow task has failed" in shown["alarm"]
    assert "Prepared" in shown["alarm"]
    assert command in shown["help"]
    listed = (await api.get("/api/v1/lifecycles")).json()["items"]
    assert {item["id"]: bool(item["alarm"]) for item in listed} == {one.id: True}
    for path in ("/", f"/lifecycles/{one.id}"):
        page = (await api.get(path)).text
        assert "cannot go on: its workflow task has failed" in page
        assert command in page
    assert command in printed(console.lifecycle(shown))
    for text in (printed(console.lifecycle(shown)), printed(console.lifecycles(listed))):
        assert "ALARM" in text
        assert "Prepared" in text

    del stack.compute.hooks["prepare"]
    await reset(stack, one.id, await workflow_task_after(stack, one.id, "everloop.data.validate"))
    await stack.gate(one.id)
    await swept(stack, lambda: not alarms(stack))
    assert (await api.get(f"/api/v1/lifecycles/{one.id}")).json()["alarm"] == ""


def printed(what: Any) -> str:
    with terminal.out.capture() as captured:
        terminal.out.print(what, soft_wrap=True)
    return captured.get()


async def test_a_wedged_pool_is_replaced_by_itself_and_grants_go_on(stack: Stack, anybody: Client) -> None:
    pool = stack.client.get_workflow_handle(POOL)
    old = (await pool.describe()).run_id
    await eventually(lambda: devices(stack) == {"cpu0", "cpu1"})
    with stack.store.write():  # the pool's step waits for the ledger
        await answered_with_junk(anybody, pool, old)
    waiting = await stack.submit("behind")

    await swept(stack, lambda: POOL in alarms(stack))  # the same sweep replaces it

    assert (await pool.describe()).run_id != old
    await stack.gate(waiting.id)
    await swept(stack, lambda: not alarms(stack))
    closed = await stack.client.get_workflow_handle(POOL, run_id=old).describe()
    assert closed.status is not None
    assert closed.status.name == "TERMINATED"


async def answered_with_junk(anybody: Client, pool: WorkflowHandle[Any, Any], run_id: str) -> None:
    """Answer a step of the pool in control's place."""
    for _ in range(100):
        await pool.signal(names.POOL_INVENTORY, ["cpu0", "cpu1:light"])
        for pending in (await pool.describe()).raw_description.pending_activities:
            step = anybody.get_async_activity_handle(
                workflow_id=POOL, run_id=run_id, activity_id=str(pending.activity_id)
            )
            with contextlib.suppress(RPCError):  # that step had been done without the ledger
                await step.complete("junk")
                return
        await asyncio.sleep(0.05)
    raise TimeoutError("the pool takes no step")


def devices(stack: Stack) -> set[str]:
    with stack.store.read() as session:
        return {row.name for row in session.exec(select(DeviceRow)) if row.present}


async def test_a_pool_that_is_woken_all_the_time_continues_as_new_and_loses_nothing(
    stack: Stack, anybody: Client
) -> None:
    pool = anybody.get_workflow_handle(POOL)
    run = (await pool.describe()).run_id
    for _ in range(14):  # megabytes, after four of which Temporal suggests it
        await pool.signal("no_such_handler", args=JUNK["huge"])

    known = ["cpu0", "cpu1:light"]
    for number in range(400):
        known = ["cpu0", "cpu1:light", f"new{number}"]
        await pool.signal(names.POOL_INVENTORY, known)
        if number % 10 == 0 and (await pool.describe()).run_id != run:
            break

    assert (await pool.describe()).run_id != run
    await eventually(lambda: devices(stack) == {"cpu0", "cpu1", known[-1]})
    await unharmed(stack, POOL)
    await stack.gate((await stack.submit("after")).id)
