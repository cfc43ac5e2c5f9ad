"""A control worker as a process of its own, that can be told to die between an append's commit and its completion.

`python control_harness.py DATA_DIR TEMPORAL_ADDRESS QUEUE_PREFIX`: while `<data>/die` holds an event type, the
first append that commits such an event removes the file and kills this process with SIGKILL.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from temporalio import activity
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.worker import Worker

from activities.journal import JournalOnControl
from everloop import names
from everloop.artifacts import Artifacts
from everloop.contracts import AppendRequest, ObserveRequest
from everloop.payloads import converter
from everloop.settings import Settings
from everloop.store import Store
from tests.fakes import QuickCompute
from workers import connect, control, process


class DyingJournal(JournalOnControl):
    """Commits, and dies before anybody hears of it."""

    order: Path

    @activity.defn(name=names.JOURNAL_APPEND)
    async def append(self, request: AppendRequest) -> None:
        await super().append(request)
        wanted = self.order.read_text() if self.order.exists() else ""
        if wanted and any(event.type == wanted for event in request.events):
            self.order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


@activity.defn(name="everloop.release.observe")
async def observe(_request: ObserveRequest) -> None:
    """Serve is not part of these tests."""


async def main(data_dir: Path, address: str) -> None:
    settings = Settings(data_dir=data_dir, session=f"harness-{os.getpid()}", temporal_address=address)
    store, artifacts = Store(settings.database), Artifacts(settings.artifacts)
    identity = str(process.identity("control", settings.session))
    client = await Client.connect(address, data_converter=converter, identity=identity)
    journal = DyingJournal(store, artifacts, client)
    journal.order = data_dir / "die"
    light = [
        one for one in control.activities(client, store, artifacts, settings, journal) if one.__name__ != "observe"
    ]
    jobs = Worker(
        client,
        task_queue=names.COMPUTE,
        activities=QuickCompute(artifacts).all(),
        interceptors=[connect.ErrorsCross()],
    )
    async with control.worker(client, [*light, observe]), jobs:
        await start_pool(client)
        (data_dir / "ready").touch()
        await asyncio.Event().wait()


async def start_pool(client: Client) -> None:
    """A pool of one slot and the light one, as compute tells of them."""
    await client.start_workflow(
        names.GPU_POOL,
        names.DEFAULT_POOL,
        id=names.pool_id(names.DEFAULT_POOL),
        task_queue=names.CONTROL,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        start_signal=names.POOL_INVENTORY,
        start_signal_args=[["cpu0", "cpu1:light"]],
    )


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
