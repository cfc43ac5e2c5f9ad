"""How far a running stage is, and how long the rest may take.

All of it is read from the steps that jobs report (`Context.report`). What they do not say is not guessed.
"""

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel
from sqlmodel import Session, col, select

from api import journal
from api.search import reading as search
from everloop import steps as words
from everloop.durations import span
from everloop.specs import JOB_STAGES
from everloop.store import LifecycleRow, MetricRow, StageRow

MOST_ROWS = 2000
"""Steps that are looked at."""
PACE_SECONDS = 60.0
"""The pace is that of the last minute."""
LEAST_SECONDS = 2.0
"""Steps are written down once a second: of a shorter time no pace can be told."""
SILENT_SECONDS = 15.0
"""A job that reports nothing for longer is said to."""


class Progress(BaseModel):
    """How far the running stage is."""

    stage: str
    sentence: str
    step: int | None = None
    most: int | None = None
    seconds_left: float | None = None
    """At the pace of the last minute, if it goes to the end. None: cannot be told."""


def progress_of(session: Session, row: LifecycleRow, now: datetime | None = None) -> Progress | None:
    """How far the stage is that runs, or None where nothing runs as a job or it waits for something."""
    stages = journal.stage_rows(session, row.id)
    running = stages[-1] if stages and stages[-1].status == "running" else None
    if row.status != "running" or row.wait_what or running is None or running.stage not in JOB_STAGES:
        return None
    now = now or datetime.now(UTC)
    if running.stage == "train" and (searching := _of_a_search(session, row)):
        return searching
    job = journal.job_of(session, row, running.stage)
    steps = _of_this_attempt(session, job or "")
    return _by_steps(running.stage, steps, now) if steps else _by_the_last_time(session, row, running, now)


def _of_a_search(session: Session, row: LifecycleRow) -> Progress | None:
    """How far its search is, while it runs."""
    study = search.study_of(session, row.id)
    if study is None or study.state != "running":
        return None
    left = None if study.seconds is None else max(0.0, study.seconds - study.spent_seconds)
    return Progress(stage="train", sentence=study.sentence, step=study.told, most=study.trials, seconds_left=left)


def _of_this_attempt(session: Session, job: str) -> list[MetricRow]:
    """The steps of the running attempt, newest first. One that began again lower down has not reached older ones."""
    query = select(MetricRow).where(MetricRow.job == job)
    rows = session.exec(query.order_by(col(MetricRow.at).desc(), col(MetricRow.step).desc()).limit(MOST_ROWS)).all()
    found: list[MetricRow] = []
    for row in rows:
        if found and row.step > found[-1].step:
            break
        found.append(row)
    return found


def _by_steps(stage: str, steps: list[MetricRow], now: datetime) -> Progress:
    newest = steps[0]
    known = {name: value for row in reversed(steps) for name, value in row.values.items()}
    most, may_stop = words.most_of(newest.step, known), words.may_stop_early(known)
    pace = _pace(steps)
    left = None if pace is None or most is None else max(0.0, (most - newest.step) / pace)
    sentence = words.told(newest.step, known)
    if left is not None:
        sentence += f", about {span(left)} left"
        sentence += " if it goes to the end; early stopping may end it sooner" if may_stop else ""
    silent = (now - newest.at).total_seconds()
    if silent > SILENT_SECONDS:
        sentence += f"; the last one was reported {span(silent)} ago"
    return Progress(stage=stage, sentence=sentence, step=newest.step, most=most, seconds_left=left)


def _pace(steps: list[MetricRow]) -> float | None:
    """Steps a second over the last minute of reports, or None where that cannot be told yet."""
    newest = steps[0]
    recent = [row for row in steps if newest.at - row.at <= timedelta(seconds=PACE_SECONDS)]
    # Of the steps that were written down at one moment the last one had come by then.
    oldest = next(row for row in recent if row.at == recent[-1].at)
    seconds, done = (newest.at - oldest.at).total_seconds(), newest.step - oldest.step
    return done / seconds if seconds >= LEAST_SECONDS and done > 0 else None


def _by_the_last_time(session: Session, row: LifecycleRow, running: StageRow, now: datetime) -> Progress:
    sentence = f"for {span(max(0.0, (now - running.started_at).total_seconds()))}"
    before = (
        select(StageRow)
        .join(LifecycleRow, col(LifecycleRow.id) == StageRow.lifecycle)
        .where(LifecycleRow.project == row.project, LifecycleRow.model == row.model, LifecycleRow.id != row.id)
        .where(StageRow.stage == running.stage, StageRow.status == "done")
        .order_by(col(StageRow.ended_at).desc())
        .limit(1)
    )
    last = session.exec(before).first()
    if last is not None and last.ran.get("seconds"):
        sentence += f"; the last time for this model it took {span(float(last.ran['seconds']))} ({last.lifecycle})"
    return Progress(stage=running.stage, sentence=sentence)
