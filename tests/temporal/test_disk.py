"""A stage that finds no room on the disk waits without its slot, says so, and goes on by itself."""

from dataclasses import replace
from typing import Any

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import WorkflowHandle

from activities.disk import DiskOnCompute
from everloop import disk
from everloop.errors import StorageLow
from tests.temporal.conftest import Stack, eventually
from tests.temporal.test_stage import failing, live_leases


@pytest.mark.usefixtures("impatient")
async def test_a_stage_without_room_waits_without_a_slot_and_goes_on_when_there_is_room(stack: Stack) -> None:
    full = [True]
    stack.compute.hooks["train"] = failing(StorageLow("3 MiB are free at /d and 256 MiB are needed"), times=1)

    def look() -> None:
        if full and (found := disk.low([stack.settings.data_dir], 1 << 60)):  # as much as there never is
            raise found

    stack.compute.hooks["room"] = look
    handle = await stack.submit()
    row = await eventually(lambda: (row := stack.row(handle.id)) and row.wait_what == "room on the disk" and row)

    assert row.status == "running"
    assert row.wait_unblocks == "3 MiB are free at /d and 256 MiB are needed; it goes on by itself when there is room"
    assert await eventually(lambda: live_leases(stack) == 0)
    assert "Waiting for room on the disk since" in await details(handle)
    other = await stack.submit("other")  # the slot is free for others
    await stack.gate(other.id)

    full.clear()
    await stack.gate(handle.id)
    assert stack.compute.stages().count("train") == 3
    assert (await stack.verified()).differences == []


async def details(handle: WorkflowHandle[Any, Any]) -> str:
    """What Temporal's UI shows as the current details."""
    found = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return str(found.current_details)


async def test_the_look_for_room_asks_the_disk(stack: Stack) -> None:
    await DiskOnCompute(replace(stack.settings, disk_floor_mib=0)).room()
    with pytest.raises(StorageLow, match="MiB are needed"):
        await DiskOnCompute(replace(stack.settings, disk_floor_mib=1 << 40)).room()
