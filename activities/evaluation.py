"""Evaluation: the candidate on the test part, and against the champion.

Each is a job in a child process (compute/evaluation.py).
"""

from temporalio import activity

from activities.jobs.submit import Jobs
from everloop.contracts import EvaluateRequest, EvaluationActivities
from everloop.records import Evaluation


class EvaluationJobs(EvaluationActivities):
    """Runs on the compute worker."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    @activity.defn(name="everloop.evaluation.evaluate")
    async def evaluate(self, request: EvaluateRequest) -> Evaluation:
        return await self._jobs.run("evaluation.evaluate", request, Evaluation)
