"""Training: on the train part, and again on all rows. Each is a job in a child process (compute/training.py)."""

from temporalio import activity

from activities.jobs.submit import Jobs
from everloop.contracts import RefitRequest, TrainingActivities, TrainRequest
from everloop.records import Refitted, Trained


class TrainingJobs(TrainingActivities):
    """Runs on the compute worker."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    @activity.defn(name="everloop.training.train")
    async def train(self, request: TrainRequest) -> Trained:
        return await self._jobs.run("training.train", request, Trained)

    @activity.defn(name="everloop.training.refit")
    async def refit(self, request: RefitRequest) -> Refitted:
        return await self._jobs.run("training.refit", request, Refitted)
