"""Evidently's report as HTML, made in a process of its own: `python -m api.report OUT < request.json`.

It loads pandas and Evidently, which the API never does, and ends with them.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from everloop import settings as configuration
from everloop.artifacts import Artifacts
from everloop.children import refuse
from everloop.contracts import DriftRequest
from everloop.errors import EverloopError


@dataclass(frozen=True)
class ReportJob:
    """What `activities.compute.drift.render` needs beside its request."""

    artifacts: Artifacts
    predictions_dir: Path
    scratch: Path

    def report(self, step: int, /, **values: float) -> None:
        """Progress, which nobody watches here."""


def main(out: str) -> int:
    """Render the request on standard input into the file *out*. Returns the exit status."""
    from activities.compute.drift import render  # here: what is heavy is loaded in this process only

    settings = configuration.load()
    request = DriftRequest.model_validate_json(sys.stdin.buffer.read())
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = Artifacts(settings.artifacts, settings.disk_floor_bytes)
        job = ReportJob(artifacts, settings.predictions_dir, Path(scratch))
        try:
            html = job.artifacts.get(render(request, job))
        except EverloopError as error:
            return refuse(error)
    Path(out).write_bytes(html)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
