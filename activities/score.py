"""Scoring a file: which version answers (control), and the jobs that cut, answer and join (compute)."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from temporalio import activity

from activities.caller import caller
from activities.registry import champion
from everloop import names, scores, signing
from everloop.contracts import (
    ChunkRequest,
    CutRequest,
    JoinRequest,
    ScoreActivities,
    ScoreJobActivities,
)
from everloop.errors import NotFound
from everloop.scores import Chunk, Cut, Joined, Opened, ScoreRequest
from everloop.store import Store

if TYPE_CHECKING:  # control uses this file too, and starts without Dask
    from activities.jobs.submit import Jobs


class ScoreOnControl(ScoreActivities):
    """Lets a score begin."""

    def __init__(self, store: Store, keys_dir: Path) -> None:
        self._store = store
        self._keys_dir = keys_dir

    @activity.defn(name="everloop.score.open")
    async def open(self, request: ScoreRequest) -> Opened:
        """The version that answers for the whole file: the one on the route now.

        Raises `BadSignature` for a start that the API has not signed, and `NotFound` where nothing is released.
        """
        asks = caller(names.SCORE)
        scores.check(asks.workflow_id, request, signing.trusted_keys(self._keys_dir))
        found = await asyncio.to_thread(champion, self._store, request.project, request.model)
        if found is None:
            raise NotFound(f"nothing is released as {request.model} in project {request.project}", field="model")
        return Opened(champion=found)


class ScoreJobs(ScoreJobActivities):
    """Runs on the compute worker; each is a job in a child process (compute/score.py)."""

    def __init__(self, jobs: "Jobs") -> None:
        self._jobs = jobs

    @activity.defn(name="everloop.score.cut")
    async def cut(self, request: CutRequest) -> Cut:
        return await self._jobs.run("score.cut", request, Cut)

    @activity.defn(name="everloop.score.chunk")
    async def chunk(self, request: ChunkRequest) -> Chunk:
        return await self._jobs.run("score.chunk", request, Chunk)

    @activity.defn(name="everloop.score.join")
    async def join(self, request: JoinRequest) -> Joined:
        return await self._jobs.run("score.join", request, Joined)
