"""The release: the model's one rollout at a time, to its end."""

import asyncio
import contextlib
from datetime import timedelta

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ChildWorkflowError, TerminatedError, WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

from everloop import names
from everloop.contracts import ReleaseAnswer, ReleaseRequest
from everloop.records import Version, Wait
from workflows.journal import Journal, heed_a_cancel, until
from workflows.lifecycle.ended import innermost
from workflows.release import Release
from workflows.stage import Stages

ROLLOUT_ATTEMPTS = 3
"""How often a rollout that somebody terminates is begun again before a person is asked."""
USUAL_ROLLOUT = timedelta(seconds=5)
"""A rollout that takes longer says what it waits for."""
ROLLOUT_RETRY = timedelta(seconds=2)
"""After how long a lifecycle looks first whether the model's other rollout has ended."""
ROLLOUT_SELDOM = timedelta(minutes=5)
"""How often it looks at last: each look is in its history, which must last until serve is back."""


class Rollout:
    """Has a child rollout, which goes to its end whatever becomes of the lifecycle."""

    def __init__(self, journal: Journal, stages: Stages) -> None:
        self._journal = journal
        self._stages = stages
        self._rolling = False
        """A rollout of ours runs, and the traffic may have moved."""

    async def released(self, request: ReleaseRequest, *, champion: bool) -> ReleaseAnswer:
        """How it ended: released, or void: then people must decide again. *champion*: a version answers meanwhile."""
        answers = "the version before answers" if champion else "nothing answers"
        hint = f"see serve's log (logs/serve.log); {answers} until a retry succeeds"
        while True:
            self._stages.started("release")
            await self._journal.settle()
            answer = await self._rollout(request)
            if answer.outcome == "rolled_back":
                await self._stages.failed_outright("release", answer.reason, hint)
            elif answer.outcome == "failed":
                await self._stages.failed_outright("release", answer.reason, "retry goes on with the rollout")
            elif answer.outcome == "void":
                self._stages.undone("release", answer.reason)
                return answer
            else:
                self._stages.finished("release", answer.reason)
                return answer

    async def _rollout(self, request: ReleaseRequest) -> ReleaseAnswer:
        """The rollout goes to its end even when this lifecycle is cancelled: half a release is worse than a whole."""
        heed_a_cancel()
        rollout = asyncio.create_task(self._one_rollout(request))
        try:
            if await until(rollout.done, USUAL_ROLLOUT, "the rollout"):
                return await rollout
            with self._journal.waiting(_serve_wait(request.version)) if self._rolling else contextlib.nullcontext():
                return await asyncio.shield(rollout)
        except asyncio.CancelledError:
            if not self._rolling:
                rollout.cancel()
                raise
            with self._journal.waiting(_late_wait(request.version)):
                answer = await rollout
            if answer.outcome != "released":
                raise
            return answer.model_copy(update={"reason": f"{answer.reason}; a cancel came too late"})

    async def _one_rollout(self, request: ReleaseRequest) -> ReleaseAnswer:
        """The model's one rollout at a time; a second waits. What ends it from outside is an answer, not our end."""
        version, ended_by_others, pause = request.version, 0, ROLLOUT_RETRY
        while True:
            self._rolling = True
            try:
                return await workflow.execute_child_workflow(
                    Release.run,
                    request,
                    id=names.release_id(version.project, version.model),
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                    parent_close_policy=ParentClosePolicy.ABANDON,
                    static_summary=f"{version.model}: version {version.number}",
                )
            except WorkflowAlreadyStartedError:
                self._rolling = False
                await self._other_rollout(version.model, pause)
                pause = min(pause * 2, ROLLOUT_SELDOM)
            except ChildWorkflowError as error:
                ended_by_others += isinstance(error.cause, TerminatedError)
                if 0 < ended_by_others < ROLLOUT_ATTEMPTS:
                    continue  # it may have moved the traffic: only a rollout that ends says where it is
                return ReleaseAnswer(outcome="failed", reason=f"the rollout did not end well: {innermost(error)}")

    async def _other_rollout(self, model: str, pause: timedelta) -> None:
        wait = Wait(
            what=f"another rollout of {model} to end",
            since=workflow.now(),
            unblocks="it goes on by itself",
        )
        with self._journal.waiting(wait):
            await workflow.sleep(pause, summary="another rollout of this model")


def _late_wait(version: Version) -> Wait:
    return Wait(
        what=f"the rollout of version {version.number} to end: a cancel came during it",
        since=workflow.now(),
        unblocks="it ends by itself once the prediction server answers; logs/serve.log says why it does not",
    )


def _serve_wait(version: Version) -> Wait:
    return Wait(
        what=f"the prediction server to answer with version {version.number} of {version.model}",
        since=workflow.now(),
        unblocks="it does so by itself once it runs; logs/serve.log says why it does not",
    )
