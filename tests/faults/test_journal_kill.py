"""kill -9 between the commit of an append and the completion of its task, with a cancel arriving meanwhile."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from temporalio.client import Client, WorkflowExecutionStatus

from activities.journal import JournalOnControl, verify
from everloop import engine, names, signing, starts
from everloop.artifacts import Artifacts
from everloop.contracts import LifecycleRequest
from everloop.payloads import converter
from everloop.settings import Settings
from everloop.specs import LifecycleSpec
from everloop.store import Store
from tests.temporal.conftest import SPEC, clear, eventually
from workers.takeover import take_over
from workers.temporal import Server

HARNESS = Path(__file__).with_name("control_harness.py")


@contextmanager
def control(data_dir: Path, address: str) -> Iterator["subprocess.Popen[bytes]"]:
    (data_dir / "ready").unlink(missing_ok=True)
    with (data_dir / "control.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(HARNESS), str(data_dir), address],
            env=engine.environment({"PYTHONSAFEPATH": ""}),
            cwd=engine.source(),
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("moment", ["StageFinished", "WaitBegan"])
async def test_a_kill_after_the_commit_and_a_cancel_meanwhile_leave_a_clean_journal(
    temporal_server: Server, store: Store, artifacts: Artifacts, tmp_path: Path, moment: str
) -> None:
    signing.create_keys(tmp_path / "keys")
    client = await Client.connect(temporal_server.address, data_converter=converter)
    await clear(client)
    (tmp_path / "die").write_text(moment)
    spec = LifecycleSpec.model_validate(SPEC | {"model": f"kill-{moment.lower()}"})

    id_ = f"kill-{moment}-{tmp_path.name}"
    request = LifecycleRequest(spec=spec, body_digest="0", submitted_by="ada")

    with control(tmp_path, temporal_server.address) as first:
        await eventually((tmp_path / "ready").exists)
        handle = await client.start_workflow(
            names.LIFECYCLE,
            starts.signed(signing.Signer(tmp_path / "keys"), id_, request),
            id=id_,
            task_queue=names.CONTROL,
        )
        await eventually(lambda: first.poll() is not None)
    await handle.cancel()
    await take_over(client, Settings(data_dir=tmp_path, session="the next life"))  # as `up` does

    with control(tmp_path, temporal_server.address):
        await closed(handle)
        journal = JournalOnControl(store, artifacts, client)
        await journal.sweep()
        found = await verify(client, store, artifacts, models=lambda model: model == spec.model)

    assert not (tmp_path / "die").exists()
    assert found.events > 0
    assert found.differences == []
    await clear(client)


async def closed(handle: object) -> None:
    for _ in range(600):
        described = await handle.describe()  # type: ignore[attr-defined]
        if described.status is not WorkflowExecutionStatus.RUNNING:
            assert described.status is WorkflowExecutionStatus.CANCELED
            return
        await asyncio.sleep(0.1)
    raise TimeoutError("the cancelled lifecycle did not close")
