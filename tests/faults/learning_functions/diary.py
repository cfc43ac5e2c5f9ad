"""What a training of the tests writes down of itself."""

import os
import time
from pathlib import Path
from typing import Any

from activities.jobs.context import ThisJob


class Diary:
    """The job's context; every round that begins is a line in a file: what, pid, moment, round, device."""

    def __init__(self, job: ThisJob, path: Path, pace: float) -> None:
        self._job, self._path, self._pace = job, path, pace
        self.round = 0
        self.note("begin")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        found = self._job.restore()
        self.round = found[0] if found else 0
        self.note("resume")
        return found

    def should_stop(self) -> bool:
        """Called once as each round begins."""
        stop = self._job.should_stop()
        if not stop:
            self.note("round")
            self.round += 1
            time.sleep(self._pace)
        return stop

    def note(self, what: str) -> None:
        line = f"{what} {os.getpid()} {time.time():.4f} {self.round} {self._job.lease.members[0].device}\n"
        with self._path.open("a") as target:
            target.write(line)
