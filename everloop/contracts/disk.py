"""Whether there is room on the disk."""

from abc import ABC, abstractmethod

from temporalio import activity


class DiskActivities(ABC):
    """On compute's queue, where jobs write; no job and no slot."""

    @activity.defn(name="everloop.disk.room")
    @abstractmethod
    async def room(self) -> None: ...
