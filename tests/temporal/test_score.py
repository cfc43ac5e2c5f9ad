"""Scoring a file: by the version of its beginning, piece by piece, asked of nobody who has not signed for it."""

import uuid

import pytest
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ActivityError, ApplicationError

from everloop import names, scores
from everloop.errors import ComputeLost
from everloop.scores import ScoreAnswer, ScoreProgress, ScoreRequest
from tests.temporal.conftest import Stack
from tests.temporal.test_drift import released


async def scoring(stack: Stack, model: str, key: str, *, signed: bool = True) -> WorkflowHandle[object, ScoreAnswer]:
    """A score, as the API starts it."""
    request = ScoreRequest(project="default", model=model, path="/rows.csv", form="csv", submitted_by="ada")
    name = names.score_id("default", model, key)
    return await stack.client.start_workflow(
        names.SCORE,
        scores.signed(stack.signer, name, request) if signed else request,
        id=name,
        task_queue=names.CONTROL,
        result_type=ScoreAnswer,
    )


@pytest.mark.history
async def test_a_file_is_answered_piece_by_piece_each_once_and_a_lost_job_is_done_again(stack: Stack) -> None:
    model = await released(stack)
    lost = [ComputeLost("the worker is gone")]

    def lose() -> None:
        if stack.compute.stages().count("chunk") == 2 and lost:
            raise lost.pop()

    stack.compute.hooks["chunk"] = lose
    handle = await scoring(stack, model, uuid.uuid4().hex)
    answer = await handle.result()

    assert (answer.version, answer.rows, answer.rejected) == (1, 30, 0)
    assert stack.artifacts.get(answer.out) == b"123"
    assert stack.compute.stages()[-6:] == ["cut", "chunk", "chunk", "chunk", "chunk", "join"]
    told = await handle.query(names.SCORE_PROGRESS, result_type=ScoreProgress)
    assert (told.done, told.chunks, told.rows, told.sentence) == (3, 3, 30, "Done.")
    assert (await stack.verified()).differences == []


async def test_nobody_starts_a_score_but_the_api_and_of_nothing_there_is_none(stack: Stack) -> None:
    model = await released(stack)
    jobs = len(stack.compute.stages())

    for handle, error in (
        (await scoring(stack, model, "by-hand", signed=False), "BadSignature"),
        (await scoring(stack, "nothing", uuid.uuid4().hex), "NotFound"),
    ):
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
        assert isinstance(caught.value.cause, ActivityError)
        assert isinstance(caught.value.cause.cause, ApplicationError)
        assert caught.value.cause.cause.type == error
    assert len(stack.compute.stages()) == jobs
