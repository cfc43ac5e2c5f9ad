"""Data: a source's bytes at one moment, and whether they can be learned from.

Each is a job in a child process (compute/data).
"""

from temporalio import activity

from activities.jobs.submit import Jobs
from everloop.contracts import DataActivities, SnapshotRequest, ValidateRequest
from everloop.records import Snapshot, Validation


class DataJobs(DataActivities):
    """Runs on the compute worker."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    @activity.defn(name="everloop.data.snapshot")
    async def snapshot(self, request: SnapshotRequest) -> Snapshot:
        return await self._jobs.run("data.snapshot", request, Snapshot)

    @activity.defn(name="everloop.data.validate")
    async def validate(self, request: ValidateRequest) -> Validation:
        return await self._jobs.run("data.validate", request, Validation)
