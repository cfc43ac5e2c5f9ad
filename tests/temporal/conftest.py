"""A control worker with its real activities, and compute that answers at once."""

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.journal import Findings, JournalOnControl, verify
from activities.lease import LeaseOnControl
from everloop import names, signing, starts
from everloop.artifacts import Artifacts
from everloop.contracts import LifecycleAnswer, LifecycleRequest, ObserveRequest
from everloop.errors import IntegrityError, Unavailable
from everloop.payloads import converter
from everloop.records import Claim, Decision, Verdict
from everloop.settings import Settings
from everloop.specs import LifecycleSpec
from everloop.store import ApprovalRow, LifecycleRow, StageRow, Store
from tests.fakes import QuickCompute
from workers import connect, control
from workers.ends import Ends
from workers.temporal import Server
from workflows import disk, lease, stage
from workflows.lifecycle import approval, release

HISTORIES = Path(__file__).with_name("histories")
"""A folder per version that landed (test_replay.py)."""

SPEC = {
    "model": "credit",
    "task": "binary",
    "target": "status",
    "source": {"path": "/data/credit.csv"},
    "monitor": None,
}


@dataclass
class Stack:
    """What a temporal test works with."""

    client: Client
    store: Store
    artifacts: Artifacts
    settings: Settings
    compute: QuickCompute
    journal: JournalOnControl
    signer: signing.Signer
    prefix: str

    def spec(self, **changes: Any) -> LifecycleSpec:
        # A model of its own per test: the server is shared, and a release's id is the model's name.
        return LifecycleSpec.model_validate(SPEC | {"model": f"credit-{self.prefix}"} | changes)

    async def submit(self, name: str = "one", **changes: Any) -> WorkflowHandle[Any, LifecycleAnswer]:
        spec = self.spec(**changes)
        id_ = f"{self.prefix}-{name}"
        request = LifecycleRequest(spec=spec, body_digest=signing.digest(spec), submitted_by="ada")
        return await self.client.start_workflow(
            names.LIFECYCLE,
            starts.signed(self.signer, id_, request),
            id=id_,
            task_queue=names.CONTROL,
            result_type=LifecycleAnswer,
        )

    def row(self, lifecycle: str) -> LifecycleRow | None:
        with self.store.read() as session:
            return session.get(LifecycleRow, lifecycle)

    def approval(self, lifecycle: str) -> ApprovalRow | None:
        with self.store.read() as session:
            return session.get(ApprovalRow, names.approval_id(lifecycle))

    def stage_rows(self, lifecycle: str) -> list[StageRow]:
        with self.store.read() as session:
            query = select(StageRow).where(StageRow.lifecycle == lifecycle).order_by(StageRow.position)
            return list(session.exec(query).all())

    async def status(self, lifecycle: str, *wanted: str) -> LifecycleRow:
        """The row, once its status is one of *wanted*."""
        return await eventually(lambda: (row := self.row(lifecycle)) and row.status in wanted and row)

    async def gate(self, lifecycle: str, *, other_than: str = "") -> ApprovalRow:
        """The open gate's row (with another nonce than *other_than*)."""
        return await eventually(
            lambda: (row := self.approval(lifecycle)) and row.status == "open" and row.nonce != other_than and row
        )

    def decision(self, row: ApprovalRow, verdict: Verdict = Verdict.APPROVE, **changes: Any) -> Decision:
        now = datetime.now(UTC)
        claim = Claim(
            gate=row.id,
            nonce=row.nonce,
            evidence_digest=row.evidence_digest,
            model_digest=row.evidence["model_digest"],
            champion_digest=row.evidence["champion_digest"],
            person="grace",
            verdict=verdict,
            comment="looks right",
            decided_at=now,
            expires_at=now + timedelta(hours=1),
            self_approved=False,
            format=2,
        )
        return self.signer.sign(claim.model_copy(update=changes))

    async def decide(self, lifecycle: str, verdict: Verdict = Verdict.APPROVE, **changes: Any) -> None:
        row = await self.gate(lifecycle)
        handle = self.client.get_workflow_handle(row.id)
        await handle.execute_update(names.DECIDE, self.decision(row, verdict, **changes))

    async def verified(self) -> Findings:
        """`journal verify`, of this test's store only."""
        await self.journal.sweep()
        return await self.verified_with(self.client)

    async def verified_with(self, client: Client) -> Findings:
        """The same without a sweep, by the histories that *client* and the archive have."""
        # The server is shared: histories of other tests speak of routes that are in their stores.
        return await verify(client, self.store, self.artifacts, models=lambda model: self.prefix in model)


async def eventually(look: Callable[[], Any], seconds: float = 60) -> Any:
    """What *look* returns, once it is true."""
    for _ in range(int(seconds / 0.05)):
        if found := look():
            return found
        await asyncio.sleep(0.05)
    raise TimeoutError("it did not come true")


class NamespaceServer:
    """The prediction server's word on releases: the one process these tests leave out."""

    def __init__(self) -> None:
        self.refuse = ""
        self.silent = False

    async def observe(self, _request: ObserveRequest) -> None:
        if self.silent:
            raise Unavailable("serve has not loaded the release yet")
        if self.refuse:
            raise IntegrityError(self.refuse)


@contextlib.asynccontextmanager
async def assembled(
    temporal_server: Server, store: Store, artifacts: Artifacts, tmp_path: Path
) -> AsyncIterator[Stack]:
    """All but a control worker: quick compute against the session's Temporal server, and `stack.control` to begin."""
    from temporalio import activity

    settings = Settings(data_dir=tmp_path, session="test", temporal_address=temporal_server.address)
    signing.create_keys(settings.keys_dir)
    client = await Client.connect(temporal_server.address, data_converter=converter, identity="control@test")
    await clear(client)
    compute = QuickCompute(artifacts)
    journal = JournalOnControl(store, artifacts, client)
    serve = NamespaceServer()

    @activity.defn(name="everloop.release.observe")
    async def observe(request: ObserveRequest) -> None:
        await serve.observe(request)

    light = [
        one for one in control.activities(client, store, artifacts, settings, journal) if one.__name__ != "observe"
    ]
    made = Stack(
        client, store, artifacts, settings, compute, journal, signing.Signer(settings.keys_dir), uuid.uuid4().hex[:8]
    )
    made.serve = serve  # type: ignore[attr-defined]
    made.control = lambda: control.worker(client, [*light, observe])  # type: ignore[attr-defined]
    jobs = Worker(
        client,
        task_queue=names.COMPUTE,
        activities=compute.all(),
        interceptors=[connect.ErrorsCross()],
        max_heartbeat_throttle_interval=timedelta(seconds=0.2),
    )
    async with jobs:
        await client.start_workflow(
            names.GPU_POOL,
            names.DEFAULT_POOL,
            id=names.pool_id(names.DEFAULT_POOL),
            task_queue=names.CONTROL,
            start_signal=names.POOL_INVENTORY,
            start_signal_args=[["cpu0", "cpu1:light"]],
        )
        ends = asyncio.create_task(Ends(client, journal, LeaseOnControl(store, client), back=timedelta()).watch())
        yield made
        ends.cancel()
        await clear(client)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workflows that wait seconds for what never comes: before `stack`, and without the sandbox, which has its own."""
    monkeypatch.setattr(connect, "sandbox", UnsandboxedWorkflowRunner)
    waits = {
        (stage, "HEARTBEAT_TIMEOUT"): 4.0,
        (approval, "GATE_OPENS"): 1.0,
        (release, "USUAL_ROLLOUT"): 1.0,
        (lease, "ASK_AGAIN"): 2.0,
        (lease, "PROVE_AGAIN"): 0.5,
        (disk, "FIRST_PAUSE"): 1.0,
    }
    for (module, name), seconds in waits.items():
        monkeypatch.setattr(module, name, timedelta(seconds=seconds))


@pytest.fixture
async def stack(
    temporal_server: Server, store: Store, artifacts: Artifacts, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Stack]:
    """Control with real activities against the session's Temporal server, and quick compute."""
    async with assembled(temporal_server, store, artifacts, tmp_path) as made, made.control():  # type: ignore[attr-defined]
        yield made
        if request.node.get_closest_marker("history") and os.environ.get("EVERLOOP_RECORD"):
            await keep_histories(made, HISTORIES / os.environ["EVERLOOP_RECORD"])


KEPT = (names.LIFECYCLE, names.SEARCH, names.SCORE)


async def keep_histories(stack: Stack, folder: Path) -> None:
    """Those of this test's lifecycles, searches and scores, beside what is in *folder* already."""
    async for execution in stack.client.list_workflows():
        if stack.prefix not in execution.id or execution.workflow_type not in KEPT:
            continue
        history = await stack.client.get_workflow_handle(execution.id, run_id=execution.run_id).fetch_history()
        kind = execution.workflow_type.rsplit(".", 1)[-1].lower()
        number = len(list(folder.glob(f"{kind}-*.json"))) + 1
        stored = {"workflowId": execution.id} | json.loads(history.to_json())
        (folder / f"{kind}-{number}.json").write_text(json.dumps(stored))


async def clear(client: Client) -> None:
    """End and forget everything: the server is shared by the session, the store is not.

    What has ended goes too. A sweep into an empty store archives whatever the server knows, and `verify` reads it:
    with the runs of all earlier tests left there, each test took longer than the one before.
    """
    async for schedule in await client.list_schedules():
        await client.get_schedule_handle(schedule.id).delete()
    found = [execution async for execution in client.list_workflows()]
    await asyncio.gather(*(forget(client, execution.id, execution.run_id) for execution in found))


async def forget(client: Client, workflow_id: str, run_id: str) -> None:
    """Have Temporal delete one run, which ends it first if it is open."""
    execution = WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
    request = DeleteWorkflowExecutionRequest(namespace=client.namespace, workflow_execution=execution)
    try:
        await client.workflow_service.delete_workflow_execution(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:  # what visibility still shows may be gone already
            raise


__all__ = ["LeaseOnControl", "Stack", "eventually"]
