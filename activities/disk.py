"""Disk: whether there is room for a job. Runs on the compute worker, on no slot."""

import asyncio

from temporalio import activity

from everloop import disk
from everloop.contracts import DiskActivities
from everloop.settings import Settings


class DiskOnCompute(DiskActivities):
    """Looks where jobs write."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @activity.defn(name="everloop.disk.room")
    async def room(self) -> None:
        """Return when there is room. Raises `StorageLow` until then: Temporal asks again."""
        settings = self._settings
        found = await asyncio.to_thread(disk.low, settings.written, settings.disk_floor_bytes)
        if found is not None:
            raise found
