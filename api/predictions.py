"""The prediction log through the API: what it holds, and its rows as a file."""

import asyncio
import contextlib
import uuid
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import sqlalchemy
from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session, col, func
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from activities.predictions import child
from activities.predictions.asked import Export, Exported
from activities.predictions.index import LogIndex
from api.dependencies import Here, Parts
from everloop.errors import Invalid, NotFound
from everloop.predictions import LogParts
from everloop.records import Signature, Window
from everloop.specs import LifecycleSpec
from everloop.store import LogHourRow, LogPartRow, MonitorRow

router = APIRouter(tags=["predictions"])

MOST_DAYS = 400
EARLIEST, LATEST = datetime(1500, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
TYPES = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}

Project = Annotated[str, Query(max_length=63)]

_exporting = asyncio.Lock()
"""One file at a time: each takes a core and some hundred MB."""


class LogDay(BaseModel):
    """Rows of one UTC day of event time."""

    day: date
    rows: int


class LogView(BaseModel):
    """What the prediction log of a model holds."""

    project: str
    model: str
    rows: int
    """As counted; a request id that was sent again may count twice until its hour is compacted."""
    torn: int
    """Lines that were cut off or are none: they are passed over."""
    first_event: datetime | None
    last_event: datetime | None
    last_write: datetime | None
    lines_bytes: int
    """Not yet Parquet."""
    parquet_bytes: int
    keep_seconds: float | None
    """How long rows stay (the spec's `log.keep`); null: for ever."""
    removed_rows: int
    """By `log.keep`, so far."""
    days: list[LogDay]
    """The latest 400 that have rows."""


@router.get("/models/{model}/log")
def log(model: str, here: Here, project: Project = "default") -> LogView:
    """What the model's prediction log holds. Raises `NotFound` where nothing was ever logged."""
    with here.store.read() as session:
        found = view(session, here, project, model)
    if found is None:
        raise NotFound(
            f"nothing is logged of {project}/{model}", field="model", hint="what it answers is counted within seconds"
        )
    return found


@router.get("/models/{model}/log/rows", response_class=FileResponse)
async def rows(  # noqa: PLR0917  # FastAPI gives them by name
    model: str,
    here: Here,
    project: Project = "default",
    since: datetime | None = None,
    until: datetime | None = None,
    form: Annotated[Literal["csv", "parquet"], Query(alias="format")] = "csv",
) -> FileResponse:
    """The rows with since <= event time < until (ISO 8601; UTC where nothing else is said), each once, as a file.

    Features by their names and types, united over versions; beside them request id, row, key, times, version,
    prediction and probabilities.
    """
    window = _window(since, until)
    request = await run_in_threadpool(_asked, here, project, model, window, form)
    made = Path(request.out)
    try:
        async with _exporting:
            told = await child.run("export", request, Exported)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    name = f"{model}-log.{form}"
    headers = {"X-Rows": str(told.rows), "X-Torn-Lines": str(told.torn)}
    done = BackgroundTask(made.unlink, missing_ok=True)
    return FileResponse(made, media_type=TYPES[form], filename=name, headers=headers, background=done)


def view(session: Session, here: Parts, project: str, model: str) -> LogView | None:
    """None: nothing was ever logged, or control has not looked yet."""
    index = LogIndex(here.store, here.settings.predictions_dir, project, model)
    files = session.execute(_by_kind(project, model)).all()
    removed = index.state(session).removed_rows
    if not files and not removed:
        return None
    monitor = session.get(MonitorRow, (project, model))
    keep = LifecycleSpec.model_validate_json(monitor.spec).log.keep if monitor else None
    return LogView(
        project=project,
        model=model,
        rows=sum(each.rows for each in files),
        torn=sum(each.torn for each in files),
        first_event=min((each.first for each in files if each.first), default=None),
        last_event=max((each.last for each in files if each.last), default=None),
        last_write=max((each.written for each in files if each.written), default=None),
        lines_bytes=sum(each.bytes for each in files if each.kind == "lines"),
        parquet_bytes=sum(each.bytes for each in files if each.kind == "parquet"),
        keep_seconds=None if keep is None else keep.total_seconds(),
        removed_rows=removed,
        days=_days(session, project, model),
    )


def _by_kind(project: str, model: str) -> Any:  # noqa: ANN401  # sums by the kind of the file
    """The files that count, summed where they lie: there may be many thousands."""
    of = LogPartRow
    sums = (
        col(of.kind),
        func.sum(of.rows).label("rows"),
        func.sum(of.torn).label("torn"),
        func.sum(of.bytes).label("bytes"),
        func.min(of.first_event).label("first"),
        func.max(of.last_event).label("last"),
        func.max(of.logged_until).label("written"),
    )
    counting = (col(of.project) == project, col(of.model) == model, col(of.replaced_at).is_(None))
    return sqlalchemy.select(*sums).where(*counting).group_by(col(of.kind))


def _days(session: Session, project: str, model: str) -> list[LogDay]:
    hour = col(LogHourRow.hour)
    query = sqlalchemy.select(hour, func.sum(LogHourRow.rows))
    query = query.where(col(LogHourRow.project) == project, col(LogHourRow.model) == model).group_by(hour)
    counts: dict[date, int] = {}
    for at, rows in session.execute(query.order_by(hour.desc()).limit(24 * MOST_DAYS)):
        counts[at.date()] = counts.get(at.date(), 0) + rows
    return [LogDay(day=day, rows=counts[day]) for day in sorted(counts)[-MOST_DAYS:]]


def _window(since: datetime | None, until: datetime | None) -> Window:
    bounds = [
        (each or instead) if (each or instead).tzinfo else (each or instead).replace(tzinfo=UTC)
        for each, instead in ((since, EARLIEST), (until, LATEST))
    ]
    start, end = (min(max(each, EARLIEST), LATEST) for each in bounds)  # in UTC the last years would have no end
    if start >= end:
        raise Invalid("since must be before until", field="since")
    return Window(start=start, end=end)


def _asked(here: Parts, project: str, model: str, window: Window, form: Literal["csv", "parquet"]) -> Export:
    index = LogIndex(here.store, here.settings.predictions_dir, project, model)
    parts: LogParts = index.parts(window)
    if not parts.parts:
        raise NotFound(
            f"nothing is logged of {project}/{model} in that time", field="model", hint="see its days: `everloop log`"
        )
    with here.store.read() as session:
        known = index.signatures(session, {0} if not parts.signatures else set(parts.signatures))
    signatures = {
        version: Signature.model_validate_json(here.artifacts.get(blob))
        for version, blob in (known | parts.signatures).items()
    }
    folder = here.settings.scratch_dir / "exports"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():  # of an API that was killed
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < datetime.now(UTC).timestamp() - 2 * child.SECONDS:
                left.unlink()
    return Export(
        folder=str(index.folder),
        parts=parts,
        signatures=signatures,
        window=window,
        form=form,
        out=str(folder / f"{uuid.uuid4().hex}.{form}"),
    )
