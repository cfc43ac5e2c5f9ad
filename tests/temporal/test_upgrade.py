"""An upgrade with open lifecycles: workers of another build finish what those of an older one have begun.

The older build is ours with every patch off (`patched` answers no), so it makes the histories of before the patches.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

from everloop import engine
from everloop.artifacts import Artifacts
from everloop.errors import ParityFailed
from everloop.store import Store
from tests.temporal.conftest import Stack, assembled, eventually
from tests.temporal.test_stage import attend, failing
from workers import control
from workers.temporal import Server

OLDER = "0.0.9+000000000000"


@contextmanager
def older_build(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers that are made in the block are of an older build."""
    with monkeypatch.context() as patch:
        patch.setattr(engine, "build", lambda: OLDER)
        patch.setattr(control, "Worker", partial(Worker, patch_activation_callback=lambda _: False))
        yield


@pytest.fixture
async def parts(temporal_server: Server, store: Store, artifacts: Artifacts, tmp_path: Path) -> AsyncIterator[Stack]:
    """All but a control worker: the test begins one after the other."""
    async with assembled(temporal_server, store, artifacts, tmp_path) as made:
        yield made


async def test_workers_of_a_new_build_finish_the_lifecycles_of_an_older_one(
    parts: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        training.set()
        await go_on.wait()

    with older_build(monkeypatch):
        older = parts.control()  # type: ignore[attr-defined]
    async with older:
        asked = await parts.submit("asked", model=f"{parts.prefix}-asked")
        await parts.gate(asked.id)
        parts.compute.hooks["export"] = failing(ParityFailed("3 rows differ"), times=1)
        parked = await parts.submit("parked", model=f"{parts.prefix}-parked")
        await parts.status(parked.id, "needs_attention")
        parts.compute.hooks["train"] = wait
        busy = await parts.submit("busy", model=f"{parts.prefix}-busy")
        await training.wait()
        queued = await parts.submit("queued", model=f"{parts.prefix}-queued")
        await eventually(lambda: (row := parts.row(queued.id)) and "slot" in row.wait_what)
    del parts.compute.hooks["train"]

    async with parts.control():  # type: ignore[attr-defined]
        go_on.set()
        await attend(parts, parked.id, "retry")
        for each in (asked, parked, busy, queued):
            await parts.decide(each.id)
            await parts.status(each.id, "released")

    for each in (asked, parked, busy, queued):
        builds, failures, patches = await told(each)
        assert failures == []
        assert builds[0] == OLDER
        assert builds[-1] == engine.build()
        assert not any("signed-start" in patch for patch in patches)  # it began as the older build did
    assert parts.compute.stages().count("train") == 4  # nothing was done twice
    assert (await parts.verified()).differences == []


async def told(handle: WorkflowHandle) -> tuple[list[str], list[str], list[str]]:
    """What a history says: the build of each workflow task, the tasks that failed, the patches that were made."""
    builds, failures, patches = [], [], []
    for event in (await handle.fetch_history()).events:
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            done = event.workflow_task_completed_event_attributes
            builds.append(done.worker_version.build_id or done.deployment_version.build_id)
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            failures.append(event.workflow_task_failed_event_attributes.failure.message)
        if event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED:
            patches.append(str(event.marker_recorded_event_attributes.details))
    return builds, failures, patches
