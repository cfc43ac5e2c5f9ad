"""A rollout: the route changes once, what serve reports is observed, and a bad one is rolled back."""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

from everloop import names
from everloop.contracts import ObserveRequest, ReleaseActivities, ReleaseAnswer, ReleaseRequest, RollBackRequest
from everloop.events import ModelReleased, ReleaseRolledBack
from everloop.records import Route
from workflows.journal import Journal
from workflows.stage import LIGHT_TIMEOUT, RETRY

CANCELLED = "the rollout was cancelled in Temporal"
OBSERVE_RETRY = RetryPolicy(initial_interval=timedelta(seconds=0.5), maximum_interval=timedelta(seconds=5))


@workflow.defn(name=names.RELEASE)
class Release:
    """The one rollout that a model may have at a time (its workflow id says which)."""

    def __init__(self) -> None:
        self._cancelled = False

    @workflow.run
    async def run(self, request: ReleaseRequest) -> ReleaseAnswer:
        journal = Journal()
        try:
            route = await self._routed(request)
        except ActivityError as error:
            if isinstance(error.cause, ApplicationError) and error.cause.type == "EvidenceChanged":
                return ReleaseAnswer(outcome="void", reason=error.cause.message)
            raise
        journal.record(_released(route))
        journal.post()
        answer = await self._observed(route, journal)
        await journal.settle()
        return answer

    async def _routed(self, request: ReleaseRequest) -> Route:
        routing = workflow.start_activity_method(
            ReleaseActivities.route,
            request,
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary=f"route traffic of **{request.version.model}** to version {request.version.number}",
        )
        try:
            return await asyncio.shield(routing)
        except asyncio.CancelledError:  # it may have moved the traffic: only its own word tells
            self._cancelled = True
            return await routing

    async def _observed(self, route: Route, journal: Journal) -> ReleaseAnswer:
        if self._cancelled:
            return await self._rolled_back(route, journal, CANCELLED)
        journal.say(f"Waiting for serve to report version {route.version}; it does so within a second of running.")
        try:
            await workflow.execute_activity_method(
                ReleaseActivities.observe,
                ObserveRequest(project=route.project, model=route.model, release_seq=route.release_seq),
                start_to_close_timeout=LIGHT_TIMEOUT,
                retry_policy=OBSERVE_RETRY,
                summary="until serve answers with it",
            )
        except ActivityError as error:
            if isinstance(error.cause, CancelledError):
                return await self._rolled_back(route, journal, CANCELLED)
            if not isinstance(error.cause, ApplicationError):
                raise
            return await self._rolled_back(route, journal, error.cause.message)
        return ReleaseAnswer(
            outcome="released", reason=f"version {route.version} takes the traffic", release_seq=route.release_seq
        )

    async def _rolled_back(self, route: Route, journal: Journal, reason: str) -> ReleaseAnswer:
        await workflow.execute_activity_method(
            ReleaseActivities.roll_back,
            RollBackRequest(project=route.project, model=route.model, release_seq=route.release_seq),
            start_to_close_timeout=LIGHT_TIMEOUT,
            retry_policy=RETRY,
            summary="back to the version before",
        )
        journal.record(
            ReleaseRolledBack(project=route.project, model=route.model, version=route.version, reason=reason)
        )
        return ReleaseAnswer(outcome="rolled_back", reason=reason, release_seq=route.release_seq)


def _released(route: Route) -> ModelReleased:
    return ModelReleased(
        project=route.project,
        model=route.model,
        lifecycle=route.lifecycle,
        version=route.version,
        release_seq=route.release_seq,
        model_digest=route.model_digest,
        approved_by=tuple(decision.claim.person for decision in route.decisions),
    )
