"""Drift: what the checks found, Evidently's report on demand, and a check right now."""

import asyncio
import json
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, JSONResponse, Response

from api import pages
from api.dependencies import RPC_TIMEOUT, Here, Parts, Person, ask
from everloop import engine, names
from everloop.errors import NotFound, Unavailable
from everloop.records import Version
from everloop.store import DriftRow, VersionRow

router = APIRouter(tags=["drift"])
page = APIRouter(include_in_schema=False)

RENDER_SECONDS = 180.0
SANDBOX = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'self'"
)
"""The report carries text from the data and Evidently's own scripts: it gets no origin and no network."""

Project = Annotated[str, Query(max_length=63)]

_rendering = asyncio.Lock()
"""One report at a time: each takes a core and a few hundred MB."""


class DriftView(BaseModel):
    """What one check found in one window."""

    number: int
    """Of the window, by its start, from 1."""
    project: str
    model: str
    version: int
    window_start: datetime
    window_end: datetime
    rows: int
    share: float | None
    drifted: list[str]
    verdict: str
    reason: str
    lifecycle: str
    checked_at: datetime
    links: dict[str, str]


class Checked(BaseModel):
    model: str
    schedule: str
    message: str


@router.post("/models/{model}/check", status_code=202)
async def check(model: str, here: Here, project: Project = "default") -> Checked:
    """Let the model's monitor look now whether a window has closed."""
    schedule = names.monitor_id(project, model)
    handle = here.temporal.get_schedule_handle(schedule)
    await ask(
        handle.trigger(rpc_timeout=RPC_TIMEOUT),
        missing=f"{project}/{model} is not watched",
        hint="a model is watched from its first release, where its spec has a monitor",
    )
    return Checked(model=model, schedule=schedule, message="the monitor looks now; see the model's drift checks")


@router.get("/models/{model}/drift/{window}/report", response_class=HTMLResponse)
async def report(model: str, window: str, here: Here, project: Project = "default") -> Response:
    """Evidently's report as HTML, to be shown in a sandboxed frame. *window*: its number, or its start as
    `20130201T000000Z`. Rendered on demand from the same sample that the check looked at.
    """
    row = await run_in_threadpool(_find, here, project, model, window)
    html = await rendered(here, row)
    return HTMLResponse(html, headers={"Content-Security-Policy": SANDBOX})


@router.get("/models/{model}/drift/{window}/report.json")
def report_json(model: str, window: str, here: Here, project: Project = "default") -> JSONResponse:
    """Evidently's figures as the check kept them: the evidence."""
    row = _find(here, project, model, window)
    if not row.report:
        raise NotFound(f"the check of {window} kept no report ({row.reason})", field="window")
    return JSONResponse(json.loads(here.artifacts.get(row.report)))


@page.get("/models/{model}/drift/{window}")
def report_page(model: str, window: str, here: Here, person: Person, project: Project = "default") -> HTMLResponse:
    """What a check found, with Evidently's report in a frame that can reach nothing."""
    row = _find(here, project, model, window)
    with here.store.read() as session:
        number = next(view.number for view in checks(session, project, model) if view.window_start == row.window_start)
    return pages.render(
        "drift.html", person=person, row=row, number=number, source=report_url(project, model, row.window_start)
    )


def checks(session: Session, project: str, model: str) -> list[DriftView]:
    """Every window that was looked at, oldest first."""
    return [_view(number, row) for number, row in enumerate(_latest(session, project, model), 1)]


def _latest(session: Session, project: str, model: str) -> list[DriftRow]:
    """The check of each window, by its start; of a window that was looked at twice, the last one."""
    query = select(DriftRow).where(DriftRow.project == project, DriftRow.model == model)
    found: dict[datetime, DriftRow] = {}
    for row in session.exec(query.order_by(col(DriftRow.window_start), col(DriftRow.checked_at))):
        found[row.window_start] = row
    return list(found.values())


def report_url(project: str, model: str, start: datetime) -> str:
    return f"/api/v1/models/{quote(model)}/drift/{_stamp(start)}/report?project={quote(project)}"


def _view(number: int, row: DriftRow) -> DriftView:
    links = {"page": f"/models/{quote(row.model)}/drift/{_stamp(row.window_start)}?project={quote(row.project)}"}
    if row.report:
        url = report_url(row.project, row.model, row.window_start)
        links |= {"report": url, "json": url.replace("/report?", "/report.json?")}
    return DriftView(number=number, links=links, **row.model_dump(include=set(DriftView.model_fields) - {"number"}))


def _stamp(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def _find(here: Parts, project: str, model: str, window: str) -> DriftRow:
    """The check of *window* (number or start). Raises `NotFound`."""
    with here.store.read() as session:
        for number, row in enumerate(_latest(session, project, model), 1):
            if window in (str(number), _stamp(row.window_start)):
                return row
    raise NotFound(
        f"no drift check of {project}/{model} is known as {window[:60]}",
        field="window",
        hint="a window is named by its number or its start, as in the model's list of checks",
    )


# --- rendering ----------------------------------------------------------------------------------


async def rendered(here: Parts, row: DriftRow) -> bytes:
    """The report as HTML: rendered once, in a process of its own (it loads pandas), then kept in the scratch folder."""
    if not row.report:
        raise NotFound(f"this check kept no report ({row.reason})", field="window")
    kept = here.settings.scratch_dir / "reports" / f"{row.report}.html"
    async with _rendering:
        if not kept.exists():
            await _render(here, row, kept)
    return await run_in_threadpool(kept.read_bytes)


async def _render(here: Parts, row: DriftRow, kept: Path) -> None:
    reference = await run_in_threadpool(_reference, here, row)
    kept.parent.mkdir(parents=True, exist_ok=True)
    staged = kept.with_name(f"{uuid.uuid4().hex}.part")
    arguments = [row.report, reference, row.project, row.model, _stamp(row.window_start), _stamp(row.window_end)]
    try:
        await _run(here, "activities.compute.drift", *arguments, str(staged))
        staged.replace(kept)
    except FileNotFoundError:
        raise Unavailable("the report was not rendered", hint="try again") from None
    finally:
        staged.unlink(missing_ok=True)


async def _run(here: Parts, module: str, *args: str) -> None:
    """Run a heavy module as one of the engine's processes, to its end. Raises `Unavailable` when it fails."""
    process = await asyncio.create_subprocess_exec(
        *engine.command(module, *args),
        env=engine.environment(here.settings.environment()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=sys.stderr,
    )
    try:
        async with asyncio.timeout(RENDER_SECONDS):
            code = await process.wait()
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise Unavailable("rendering the report took too long", hint="the JSON beside it has the figures") from None
        raise
    if code != 0:
        raise Unavailable(
            "the report could not be rendered", hint="the log of the API says why; the JSON has the figures"
        )


def _reference(here: Parts, row: DriftRow) -> str:
    """SHA-256 of the sample that the version was released with."""
    with here.store.read() as session:
        version = session.get(VersionRow, (row.project, row.model, row.version))
    if version is None:
        raise NotFound(f"version {row.version} of {row.model} is not registered here", field="window")
    return Version.model_validate_json(version.record).exported.reference.sha256


def spark(views: list[DriftView], threshold: float | None) -> list[dict[str, Any]]:
    """The history as bars for the page: height in per cent of a full share."""
    return [
        {
            "height": round(100 * (view.share or 0)),
            "known": view.share is not None,
            "over": threshold is not None and view.share is not None and view.share >= threshold,
            "view": view,
        }
        for view in views
    ]
