"""What is written into the journal."""

from abc import ABC, abstractmethod

from temporalio import activity

from everloop import names
from everloop.events import Event
from everloop.records import Record


class AppendRequest(Record):
    """Events of one run, in order of `seq`."""

    events: tuple[Event, ...]


class JournalActivities(ABC):
    @activity.defn(name=names.JOURNAL_APPEND)
    @abstractmethod
    async def append(self, request: AppendRequest) -> None: ...
