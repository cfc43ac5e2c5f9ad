"""A file of rows, answered piece by piece."""

from abc import ABC, abstractmethod
from datetime import datetime

from temporalio import activity

from everloop.contracts.job import JobRequest
from everloop.records import Champion
from everloop.scores import Chunk, Cut, Form, Joined, Opened, ScoreRequest


class CutRequest(JobRequest):
    """Cut a file of rows into pieces."""

    path: str
    champion: Champion
    chunk_rows: int


class ChunkRequest(JobRequest):
    """Answer one piece."""

    champion: Champion
    chunk: str
    asked_at: datetime
    """What a row without an event time is taken to be of."""


class JoinRequest(JobRequest):
    """Put the pieces together."""

    form: Form
    scored: tuple[str, ...]
    rejects: tuple[str, ...]
    rows: int
    rejected: int


class ScoreJobActivities(ABC):
    @activity.defn(name="everloop.score.cut")
    @abstractmethod
    async def cut(self, request: CutRequest) -> Cut: ...

    @activity.defn(name="everloop.score.chunk")
    @abstractmethod
    async def chunk(self, request: ChunkRequest) -> Chunk: ...

    @activity.defn(name="everloop.score.join")
    @abstractmethod
    async def join(self, request: JoinRequest) -> Joined: ...


class ScoreActivities(ABC):
    @activity.defn(name="everloop.score.open")
    @abstractmethod
    async def open(self, request: ScoreRequest) -> Opened: ...
