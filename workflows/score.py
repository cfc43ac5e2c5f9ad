"""Scoring a file: cut into pieces, each answered by a job, put together; whatever dies, it goes on where it was."""

from typing import Any

from temporalio import workflow

from everloop import names
from everloop.contracts import (
    ChunkRequest,
    CutRequest,
    JoinRequest,
    LeaseNotice,
    Offer,
    ScoreActivities,
    ScoreJobActivities,
    Wants,
)
from everloop.scores import Chunk, ScoreAnswer, ScoreProgress, ScoreRequest
from workflows.job import Job
from workflows.journal import Journal, heed_a_cancel
from workflows.lease import Lease
from workflows.stage import LIGHT_TIMEOUT, RETRY


@workflow.defn(name=names.SCORE)
class Score:
    """One file. Every piece's answer is in the history, so the bytes are the same whoever was killed when."""

    def __init__(self) -> None:
        self._journal = Journal()
        self._lease = Lease(self._journal)
        self._job = Job(self._journal, self._lease)
        self._progress = ScoreProgress(sentence="It begins.")

    @workflow.run
    async def run(self, request: ScoreRequest) -> ScoreAnswer:
        """Ends when the answer is an artifact. Raises what a person must mend: the file, or the model."""
        self._lease.wants = Wants(model=request.model, stage="score")
        try:
            return await self._scored(request)
        finally:
            await self._lease.give_back()
            await self._journal.settle()

    @workflow.query(name=names.SCORE_PROGRESS)
    def progress(self) -> ScoreProgress:
        return self._progress

    @workflow.signal(name=names.LEASE_OFFERED)
    def lease_offered(self, offer: Offer) -> None:
        self._lease.offered(offer)

    @workflow.signal(name=names.LEASE_NOTICED)
    def lease_noticed(self, notice: LeaseNotice) -> None:
        self._job.noticed(notice)

    async def _scored(self, request: ScoreRequest) -> ScoreAnswer:
        opened = await workflow.execute_activity_method(
            ScoreActivities.open,
            request,
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="which version answers",
        )
        champion, asked_at = opened.champion, workflow.now()
        self._say(version=champion.version, sentence=f"Cutting {request.path} into pieces.")
        cut = await self._job.run(
            ScoreJobActivities.cut,
            CutRequest(path=request.path, champion=champion, chunk_rows=request.chunk_rows),
            "cut",
            "score: cut",
        )
        chunks: list[Chunk] = []
        for number, digest in enumerate(cut.chunks, 1):
            heed_a_cancel()
            self._say(chunks=len(cut.chunks), sentence=f"Answering piece {number} of {len(cut.chunks)}.")
            asked = ChunkRequest(champion=champion, chunk=digest, asked_at=asked_at)
            chunks.append(
                await self._job.run(ScoreJobActivities.chunk, asked, f"chunk.{number}", f"score: chunk.{number}")
            )
            rows, rejected = sum(each.rows for each in chunks), sum(each.rejected for each in chunks)
            self._say(done=number, rows=rows, rejected=rejected)
        self._say(sentence="Putting the pieces together.")
        joined = await self._job.run(
            ScoreJobActivities.join,
            JoinRequest(
                form=request.form,
                scored=tuple(each.scored for each in chunks),
                rejects=tuple(each.rejects for each in chunks if each.rejects),
                rows=sum(each.rows for each in chunks),
                rejected=sum(each.rejected for each in chunks),
            ),
            "join",
            "score: join",
        )
        self._say(sentence="Done.")
        return ScoreAnswer(
            version=champion.version,
            rows=joined.rows,
            rejected=joined.rejected,
            out=joined.out,
            rejects=joined.rejects,
        )

    def _say(self, **news: Any) -> None:  # noqa: ANN401  # fields of `ScoreProgress`
        self._progress = self._progress.model_copy(update=news)
        self._journal.say(self._progress.sentence)
