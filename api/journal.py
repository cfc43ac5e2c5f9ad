"""What happened, as it was written down: events, logs, metrics of a lifecycle."""

import json
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session, col, select
from starlette.responses import PlainTextResponse

from api.dependencies import Here
from everloop import names
from everloop.errors import NotFound
from everloop.store import JournalRow, LifecycleRow, MetricRow, StageRow

router = APIRouter(tags=["journal"])

LOG_BYTES = 1 << 20
WIDTH = 2000
"""Of a line of a log, where a few of them are shown beside other things: every look would carry all of it."""
"""No more of a log than its last MiB is looked at."""
FAILURE_LINES = 20


class EventView(BaseModel):
    """One domain event."""

    id: int
    workflow_id: str
    run_id: str
    seq: int
    type: str
    at: datetime
    body: dict[str, Any]


class EventList(BaseModel):
    items: list[EventView]


class MetricView(BaseModel):
    """One step of a stage's progress."""

    stage: str
    step: int
    values: dict[str, float]
    at: datetime


class MetricList(BaseModel):
    items: list[MetricView]


@router.get("/lifecycles/{id:path}/events")
def events(id: str, here: Here, after: Annotated[int, Query(ge=0, lt=2**63)] = 0) -> EventList:  # noqa: A002
    """Every event of the lifecycle's latest run and of its gates, in order of their journal ids.

    `after`: only events with a larger id, to follow a lifecycle.
    """
    with here.store.read() as session:
        return EventList(items=events_of(session, lifecycle_row(session, id), after))


@router.get("/lifecycles/{id:path}/logs", response_class=PlainTextResponse)
def logs(
    id: str,  # noqa: A002
    here: Here,
    stage: str = "",
    tail: Annotated[int, Query(ge=1, le=10_000)] = 200,
    rank: Annotated[int, Query(ge=0, le=10_000)] = 0,
) -> str:
    """The last lines of a stage's log: of the stage named, else of the one that runs or ran last; of a gang, of that
    rank.
    """
    with here.store.read() as session:
        row = lifecycle_row(session, id)
        path = log_path(session, row, stage, here.settings.logs_dir)
    if path is not None and rank:
        of_rank = path.with_name(f"{path.stem}.{rank}.log")
        path = below(here.settings.logs_dir, str(of_rank.relative_to(here.settings.logs_dir.resolve())))
    if path is None:
        where = f"{f'rank {rank} in ' if rank else ''}{f'stage {stage}' if stage else 'any stage'}"
        raise NotFound(f"no log of {where} of {id} is here", field="stage", hint="stages without a job have no log")
    return "\n".join(tail_of(path, tail)) + "\n"


@router.get("/lifecycles/{id:path}/metrics")
def metrics(id: str, here: Here, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000) -> MetricList:  # noqa: A002
    """Progress of the lifecycle's latest run: per stage attempt and step, the latest *limit*."""
    with here.store.read() as session:
        row = lifecycle_row(session, id)
        prefix = f"{row.run_id}/"
        query = select(MetricRow).where(col(MetricRow.job).startswith(prefix, autoescape=True))
        found = session.exec(query.order_by(col(MetricRow.at).desc(), col(MetricRow.step).desc()).limit(limit)).all()
    return MetricList(
        items=[
            MetricView(stage=step.job.removeprefix(prefix), step=step.step, values=step.values, at=step.at)
            for step in reversed(found)
        ]
    )


def lifecycle_row(session: Session, id: str) -> LifecycleRow:  # noqa: A002
    """The lifecycle's row. Raises `NotFound`."""
    row = session.get(LifecycleRow, id)
    if row is None:
        raise NotFound(f"there is no lifecycle {id[:200]}", field="id", hint="`everloop list` shows what there is")
    return row


def events_of(session: Session, row: LifecycleRow, after: int = 0) -> list[EventView]:
    """Events of the latest run and of every opening of its gate. A Reset copies the events before it."""
    mine = (col(JournalRow.workflow_id) == row.id) & (col(JournalRow.run_id) == row.run_id)
    gate = col(JournalRow.workflow_id) == names.approval_id(row.id)
    query = select(JournalRow).where(mine | gate, col(JournalRow.id) > after).order_by(col(JournalRow.id))
    return [
        EventView(
            id=found.id or 0,
            workflow_id=found.workflow_id,
            run_id=found.run_id,
            seq=found.seq,
            type=found.type,
            at=found.at,
            body=json.loads(found.body),
        )
        for found in session.exec(query)
    ]


def stage_rows(session: Session, lifecycle: str) -> list[StageRow]:
    query = select(StageRow).where(StageRow.lifecycle == lifecycle).order_by(col(StageRow.position))
    return list(session.exec(query))


def job_of(session: Session, row: LifecycleRow, stage: str) -> str | None:
    """The key of the steps of a stage's last start: `<run id>/<activity id>`."""
    rows = [each for each in stage_rows(session, row.id) if each.stage == stage]
    if not rows:
        return None
    named = str(rows[-1].ran.get("log") or "").split("/")
    return "/".join(named[1:3]) if len(named) == 4 else f"{row.run_id}/{stage}.{len(rows)}"  # noqa: PLR2004  # jobs/run/activity/attempt


def log_path(session: Session, row: LifecycleRow, stage: str, logs_dir: Path) -> Path | None:
    """Where the log is, or None. The path comes from a row, so it is held below *logs_dir* all the same."""
    rows = [found for found in stage_rows(session, row.id) if not stage or found.stage == stage]
    for place, found in reversed(list(enumerate(rows))):
        if found.status == "running":
            return _newest(logs_dir, row.run_id, found.stage)
        named = str(found.error.get("log") or found.ran.get("log") or "")
        if named:
            return _log_at(logs_dir, named)
        tried = sum(each.stage == found.stage for each in rows[: place + 1])
        # It ended without an end of its own: cancelled, paused, or begun again.
        if (log := _log_at(logs_dir, f"jobs/{row.run_id}/{found.stage}.{tried}")) is not None:
            return log
    return None


def tail_of(path: Path, lines: int, width: int | None = None) -> list[str]:
    """The last *lines* lines, without what a terminal would obey; of a line longer than *width* both ends."""
    with path.open("rb") as source:
        size = source.seek(0, 2)
        source.seek(max(0, size - LOG_BYTES))
        text = source.read(LOG_BYTES).lstrip(b"\0").decode("utf-8", "replace")  # zeros: what was dropped
    return [plain(_short(line, width)) for line in deque(text.splitlines(), maxlen=lines)]


def _short(line: str, width: int | None) -> str:
    if width is None or len(line) <= width:
        return line
    return f"{line[: width // 2]} [{len(line) - width:,} characters] {line[len(line) - width // 2 :]}"


def _log_at(logs_dir: Path, name: str) -> Path | None:
    """The log that a row names: a file, or a folder with a log for each attempt, of which the newest counts."""
    path = below(logs_dir, name)
    if path is None or not path.is_dir():
        return path
    newest = max(_first_ranks(path.glob("*.log")), key=lambda log: log.stat().st_mtime, default=None)
    return None if newest is None else below(logs_dir, f"{name}/{newest.name}")


def _newest(logs_dir: Path, run_id: str, stage: str) -> Path | None:
    """The log that is being written: a running stage has no record of it yet."""
    folder = below(logs_dir, f"jobs/{run_id}")
    if folder is None:
        return None
    every = _first_ranks(folder.glob("*/*.log"))
    found = [path for path in every if path.parent.name.split(".")[0] == stage] or every
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else below(logs_dir, str(newest.relative_to(logs_dir)))


def _first_ranks(logs: Iterable[Path]) -> list[Path]:
    """Of gangs rank 0's alone: `<attempt>.log`, and not `<attempt>.<rank>.log`."""
    return [path for path in logs if "." not in path.stem]


def below(root: Path, name: str) -> Path | None:
    """*name* below *root*, links followed; None when it leads outside or is not there."""
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, ValueError):
        return None
    return path if path.is_relative_to(root.resolve()) else None


def plain(line: str) -> str:
    """*line* without what a terminal would obey."""
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in line)
