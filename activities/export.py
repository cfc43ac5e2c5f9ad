"""Export: one ONNX graph, proven equal to the trained model. Each is a job in a child process (compute/export.py)."""

from temporalio import activity

from activities.jobs.submit import Jobs
from everloop.contracts import ExportActivities, ExportRequest
from everloop.records import Exported


class ExportJobs(ExportActivities):
    """Runs on the compute worker."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    @activity.defn(name="everloop.export.export")
    async def export(self, request: ExportRequest) -> Exported:
        return await self._jobs.run("export.export", request, Exported)
