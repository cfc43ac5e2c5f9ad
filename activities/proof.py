"""Proof that nothing of a lease that was taken away still runs: only then its parts are free for others."""

from temporalio import activity

from activities.caller import caller
from activities.jobs.submit import Jobs
from everloop import names
from everloop.contracts import ProofActivities, ProveAnswer, ProveRequest


class ProofOnCompute(ProofActivities):
    """Asks the devices."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    @activity.defn(name="everloop.lease.prove")
    async def prove(self, request: ProveRequest) -> ProveAnswer:
        """What is left of the members after the time that an orderly end takes is killed."""
        caller(names.GPU_POOL)
        return ProveAnswer(dead=tuple(await self._jobs.prove(request.members)))
