"""The life of a lease, cut into spans without gap or overlap. Pure: integers in, integers out.

What its jobs did is told by compute, whose clock is another and which may be killed before it says how a job ended.
So the lease's own times are the frame, and whatever is told of jobs only divides it: no span begins before the grant
or ends after the members were free, and the lengths add up to the whole whatever was told.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Job(NamedTuple):
    """What is known of a job that ran under the lease. Times are milliseconds since 1970."""

    stage: str
    from_ms: int
    to_ms: int
    """Its end; of a job whose end nobody saw, when it was last known to run."""
    done: bool
    """It ended with a result."""
    checkpointed_ms: int = 0
    """When its newest durable checkpoint was written; 0: it has none."""
    writing_ms: int = 0
    """How long it was busy with writing checkpoints, in all."""


class Life(NamedTuple):
    """The times of a lease, milliseconds since 1970 by the database's clock."""

    granted_ms: int
    ended_ms: int
    """Released or fenced; of a live lease: now."""
    noticed_ms: int = 0
    """When it was told to let go; 0: it was not."""
    free_ms: int = 0
    """When its members were proven free; 0: with its end, or, of one that is still in quarantine, now."""


class Span(NamedTuple):
    """A part of the lease's life, of one kind. Never empty."""

    from_ms: int
    to_ms: int
    kind: str
    stage: str = ""
    """The stage whose job ran; of time without a job: nothing."""


def cut(life: Life, jobs: Iterable[Job]) -> tuple[Span, ...]:
    """The life in order: what jobs did, what lay idle, the notice, the quarantine. The lengths add up to the whole.

    A job's time until its last checkpoint is useful also when the job was killed: the next one goes on from there.
    What came after it is done again. Of the useful time, `writing_ms` is counted as checkpoint; where in the job that
    was is not known, so it stands at the end.
    """
    ended = max(life.granted_ms, life.ended_ms)
    noticed = min(max(life.noticed_ms, life.granted_ms), ended) if life.noticed_ms else ended
    free = max(ended, life.free_ms)
    spans: list[Span] = []
    at = life.granted_ms
    for job in sorted(jobs, key=lambda job: (job.from_ms, job.to_ms, job.stage)):
        begins = min(max(at, job.from_ms), noticed)
        ends = min(max(begins, job.to_ms), noticed)
        spans += [Span(at, begins, "held_idle"), *_worked(job, begins, ends)]
        at = ends
    spans += [Span(at, noticed, "held_idle"), Span(noticed, ended, "notice"), Span(ended, free, "quarantined")]
    return tuple(span for span in spans if span.to_ms > span.from_ms)


def _worked(job: Job, begins: int, ends: int) -> list[Span]:
    kept = ends if job.done else min(max(begins, job.checkpointed_ms), ends)
    wrote = max(begins, kept - max(0, job.writing_ms))
    return [
        Span(begins, wrote, "useful", job.stage),
        Span(wrote, kept, "checkpoint", job.stage),
        Span(kept, ends, "redone", job.stage),
    ]
