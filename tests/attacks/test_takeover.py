"""A takeover fails what the proven dead were doing, and nobody else's work on the same Temporal."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import PollActivityTaskQueueRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from everloop import settings as configuration
from everloop import stack
from everloop.settings import Settings
from workers import connect, process
from workers.takeover import take_over

LONG = timedelta(seconds=60)
BOOT = process.boot()


@workflow.defn(name="everloop.Attempts")
class Attempts:
    """One activity on each queue, for as long as the test lasts."""

    @workflow.run
    async def run(self, queues: list[str]) -> None:
        await asyncio.gather(
            *(
                workflow.execute_activity(
                    "everloop.stay",
                    activity_id=queue,
                    task_queue=queue,
                    start_to_close_timeout=LONG,
                    retry_policy=RetryPolicy(initial_interval=LONG),
                )
                for queue in queues
            )
        )


@activity.defn(name="everloop.stay")
async def stay() -> None:
    await asyncio.sleep(LONG.total_seconds())


async def serve(queue: str) -> None:
    """A worker of this machine, in the session that the environment names."""
    client = await connect.connect(configuration.load(), "compute")
    async with Worker(client, task_queue=queue, activities=[stay]):
        await asyncio.Event().wait()


def worker(session: str, queue: str, address: str) -> "subprocess.Popen[bytes]":
    code = f"import asyncio; from tests.attacks.test_takeover import serve; asyncio.run(serve({queue!r}))"
    theirs = {"EVERLOOP_SESSION": session, "EVERLOOP_TEMPORAL_ADDRESS": address}
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | theirs)


async def poll(client: Client, queue: str, identity: str) -> None:
    """Take the attempt as a worker with another identity would."""
    request = PollActivityTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=queue), identity=identity
    )
    assert (await client.workflow_service.poll_activity_task_queue(request)).task_token


async def attempts(handle: WorkflowHandle) -> dict[str, tuple[int, bool]]:
    """Activity to (number of its attempt, is it running)."""
    pending = (await handle.describe()).raw_description.pending_activities
    return {
        each.activity_id: (each.attempt, bool(each.last_started_time.seconds and each.state == 2)) for each in pending
    }


async def test_only_what_is_proven_dead_is_taken_over(temporal_server, tmp_path):
    ours = Settings(data_dir=tmp_path, temporal_address=temporal_server.address, session="up-new")
    (tmp_path / "up.json").write_text(json.dumps({"session": "up-old"}))  # as a killed `up` of any version leaves it
    stack.remember_session(ours)
    client = await connect.connect(ours, "up")
    prefix = uuid.uuid4().hex[:8]
    taken = {
        "reused pid": f"compute@up-other/{process.host()}/{BOOT}/{os.getpid()}-1",
        "before the last boot": f"compute@up-other/{process.host()}/0.1/{os.getpid()}-1",
        "earlier up, old form": "compute@up-old/1",
    }
    left = {
        "another host": f"compute@up-other/0123456789abcdef/{BOOT}/4194304-1",
        "another container": f"compute@up-other/{process.host()}/{BOOT.partition('.')[0]}.1/4194304-1",
        "another up, old form": "compute@up-stranger/4194304",
        "not ours": "4194304@somewhere",
    }
    workers = {name: worker(f"up-{name}", prefix + name, temporal_server.address) for name in ("living", "killed")}
    queues = [prefix + name for name in (*taken, *left, *workers)]
    control = Worker(client, task_queue=prefix, workflows=[Attempts], workflow_runner=UnsandboxedWorkflowRunner())
    try:
        async with control:
            handle = await client.start_workflow("everloop.Attempts", queues, id=prefix, task_queue=prefix)
            for name, identity in (taken | left).items():
                await poll(client, prefix + name, identity)
            for _ in range(400):
                if all(running for _, running in (await attempts(handle)).values()):
                    break
                await asyncio.sleep(0.05)

            before = await take_over(client, ours, jobs_too=False)
            workers["killed"].kill()
            workers["killed"].wait()
            after = await take_over(client, ours, jobs_too=False)
            found = await attempts(handle)
            await handle.terminate()
    finally:
        for each in workers.values():
            each.kill()
            each.wait()

    assert (before, after) == (len(taken), 1)
    again = {name.removeprefix(prefix) for name, (_, running) in found.items() if not running}
    assert again == {*taken, "killed"}
