"""How long an attempt of a job ran, written down while it runs: what its lease's time was for is told from that."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from activities.jobs.checkpoints import newest_of
from everloop.store import JobTimeRow, Store

log = logging.getLogger(__name__)

NOTE_SECONDS = 5.0
"""So much of a job's time is not known of at most when this process is killed."""


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


@dataclass
class JobTime:
    """One attempt, under one lease."""

    job: str
    """`<run id>/<activity id>`."""
    attempt: int
    token: int
    checkpoints: Path
    """Folder of the stage's question."""
    depot: str = ""
    """Its URL on the artifact store, where the folder is of another host."""
    began_ms: int = field(default_factory=_now_ms)
    done: bool = False
    """It has a result."""
    used: dict[str, int] = field(default_factory=dict)
    """What it used of its lease, once that is known: `cpu_ms`, `peak_mib`."""
    _noted: float = -NOTE_SECONDS

    async def note_if_due(self, store: Store) -> None:
        if time.monotonic() - self._noted >= NOTE_SECONDS:
            await self.note(store)

    async def note(self, store: Store, *, ended: bool = False) -> None:
        """Write down that it runs, or how it ended. Never fails a job."""
        self._noted = time.monotonic()
        try:
            await asyncio.to_thread(self._write, store, ended=ended)
        except Exception:
            log.warning("the time of %s is not written down", self.job, exc_info=True)

    def _write(self, store: Store, *, ended: bool) -> None:
        checkpointed_ms, writing_ms = newest_of(self.checkpoints, self.token, self.began_ms, self.depot)
        row = JobTimeRow(
            job=self.job,
            attempt=self.attempt,
            token=self.token,
            stage=self.job.rpartition("/")[2].partition(".")[0],
            from_ms=self.began_ms,
            to_ms=_now_ms(),
            done=self.done,
            ended=ended,
            checkpointed_ms=checkpointed_ms,
            writing_ms=writing_ms,
            **self.used,
        )
        with store.write() as session:
            session.merge(row)
