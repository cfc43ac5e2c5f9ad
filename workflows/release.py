"""A rollout: the route changes once, what serve reports is observed, and a bad one is rolled back."""

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

from everloop import names
from everloop.contracts import ObserveRequest, ReleaseActivities, ReleaseAnswer, ReleaseRequest, RollBackRequest
from everloop.events import ModelReleased, ReleaseRolledBack
from everloop.records import RollBack as Order
from everloop.records import Route, RouteChange, SignedRollBack
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
        change = await _roll_back(
            RollBackRequest(project=route.project, model=route.model, release_seq=route.release_seq)
        )
        journal.record(_undone(route, route.release_seq, change, version=route.version, reason=reason))
        return ReleaseAnswer(outcome="rolled_back", reason=reason, release_seq=route.release_seq)


@workflow.defn(name=names.ROLL_BACK)
class RollBack:
    """A person undoes the latest release. It has the rollout's workflow id: one change of a route at a time."""

    @workflow.run
    async def run(self, order: SignedRollBack) -> RouteChange:
        """The route after it. Fails with `BadSignature` or `Conflict`, and then nothing has changed."""
        told = order.order
        request = RollBackRequest(project=told.project, model=told.model, release_seq=told.release_seq, order=order)
        change = await _roll_back(request)
        if change is None:
            message = f"release {told.release_seq} of {told.model} is not the latest one any more"
            raise ApplicationError(message, "", "look at the model again", type="Conflict", non_retryable=True)
        journal = Journal()
        journal.record(_undone(told, told.release_seq, change, reason=told.reason, person=told.person))
        await journal.settle()
        return change


async def _roll_back(request: RollBackRequest) -> RouteChange | None:
    return await workflow.execute_activity_method(
        ReleaseActivities.roll_back,
        request,
        start_to_close_timeout=LIGHT_TIMEOUT,
        retry_policy=RETRY,
        summary="back to the version before",
    )


def _undone(of: Route | Order, release_seq: int, change: RouteChange | None, **more: Any) -> ReleaseRolledBack:  # noqa: ANN401
    return ReleaseRolledBack(
        project=of.project,
        model=of.model,
        undone_seq=release_seq,
        release_seq=change.release_seq if change else 0,
        back_to=change.version if change else None,
        **more,
    )


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
