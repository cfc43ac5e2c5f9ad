"""Features: the rows as the model sees them. Each is a job in a child process (compute/features)."""

from temporalio import activity

from activities.jobs.submit import Jobs
from everloop.contracts import FeaturesActivities, PrepareRequest
from everloop.records import Prepared


class FeaturesJobs(FeaturesActivities):
    """Runs on the compute worker."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    @activity.defn(name="everloop.features.prepare")
    async def prepare(self, request: PrepareRequest) -> Prepared:
        return await self._jobs.run("features.prepare", request, Prepared)
