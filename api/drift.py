"""Drift: what the checks found, Evidently's report on demand, and a check right now."""

import asyncio
import json
import logging
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict
from sqlmodel import Session, and_, col, func, or_, select
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from activities.drift.quarantine import accepting
from activities.predictions.index import LogIndex
from api import pages, watch
from api.bodies import body_schema, json_body, read_form
from api.dependencies import RPC_TIMEOUT, Here, Parts, Person, ask
from everloop import children, engine, names
from everloop.contracts import DriftRequest
from everloop.durations import span
from everloop.errors import NotFound, Unavailable
from everloop.records import Break, Champion, Version, Window
from everloop.specs import Monitor, Retrain
from everloop.store import DriftRow, MonitorRow, RouteRow, TriggerRow, VersionRow
from workflows.drift import SAMPLE_SEED

log = logging.getLogger(__name__)
router = APIRouter(tags=["drift"])
page = APIRouter(include_in_schema=False)

WATCHED = "a model is watched from its first release, where its spec has a monitor"
RENDER_SECONDS = 180.0
SANDBOX = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'self'"
)
"""The report carries text from the data and Evidently's own scripts: it gets no origin and no network."""

Project = Annotated[str, Query(max_length=63)]
Key = tuple[datetime, datetime]
"""A window's start and end."""
MOST_CHECKS = 200
"""Windows of one answer, and of the model's page."""
ORDER = (col(DriftRow.window_start), col(DriftRow.window_end), col(DriftRow.checked_at))
"""Of a window that was looked at twice, the last time comes last."""

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
    late_rows: int = 0
    """Rows of the window that came after it had been checked: no check has seen them."""
    share: float | None
    drifted: list[str]
    verdict: str
    reason: str
    lifecycle: str
    checked_at: datetime
    report: str = ""
    """SHA-256 of the figures that were kept, or empty."""
    links: dict[str, str]
    measures: list[dict[str, Any]] = []
    """What was looked at beside the drift of columns: name, value, threshold, over, why."""
    broken: list[dict[str, Any]] = []
    """Columns that are broken rather than moved: column, kind, why."""

    @property
    def key(self) -> Key:
        return self.window_start, self.window_end


class Checked(BaseModel):
    model: str
    schedule: str
    message: str


class Rearmed(BaseModel):
    model: str
    message: str


class DriftList(BaseModel):
    items: list[DriftView]
    """Oldest window first."""
    before: int | None
    """To ask for those ahead of these; null: there are none."""


@router.get("/models/{model}/checks")
def listed(
    model: str,
    here: Here,
    project: Project = "default",
    before: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_CHECKS)] = MOST_CHECKS,
) -> DriftList:
    """The last windows that were looked at; with *before*, those ahead of the window of that number."""
    with here.store.read() as session:
        found = checks(session, project, model, limit, before)
    return DriftList(items=found, before=found[0].number if found and found[0].number > 1 else None)


@router.post("/models/{model}/check", status_code=202)
async def check(model: str, here: Here, project: Project = "default") -> Checked:
    """Let the model's monitor look now whether a window has closed."""
    schedule = names.monitor_id(project, model)
    handle = here.temporal.get_schedule_handle(schedule)
    await ask(
        handle.trigger(rpc_timeout=RPC_TIMEOUT),
        missing=f"{project}/{model} is not watched",
        hint=WATCHED,
    )
    return Checked(model=model, schedule=schedule, message="the monitor looks now; see the model's drift checks")


@router.post("/models/{model}/rearm")
def rearm(model: str, here: Here, person: Person, project: Project = "default") -> Rearmed:
    """Let the model's monitor cause retrainings again: what came of those before counts no more.

    Safe to repeat. Raises `NotFound` when the model is not watched.
    """
    with here.store.write() as session:
        row = session.get(MonitorRow, (project, model))
        if row is None:
            raise NotFound(f"{project}/{model} is not watched", field="model", hint=WATCHED)
        row.rearmed_at = row.cursor
        session.add(row)
    log.info("%s lets the monitor of %s/%s retrain again", person, project, model)
    return Rearmed(model=model, message="the next window over the threshold may cause a retraining again")


class Lift(BaseModel):
    """Data that was broken is mended, or meant to be so."""

    model_config = ConfigDict(extra="forbid")

    accept: bool = False
    """The columns are meant to be as they are now: for the version that answers, the same breaks count no more."""


class Lifted(BaseModel):
    model: str
    columns: list[str]
    message: str


@router.post("/models/{model}/quarantine/lift", openapi_extra=body_schema(Lift, {"accept": False}, required=False))
def lift(
    model: str,
    here: Here,
    person: Person,
    body: Annotated[Lift, Depends(json_body(Lift, optional=True))],
    project: Project = "default",
) -> Lifted:
    """Let the model's monitor cause retrainings again, after data of it was broken. Safe to repeat.

    Raises `NotFound` when the model is not watched.
    """
    with here.store.write() as session:
        row = session.get(MonitorRow, (project, model))
        if row is None:
            raise NotFound(f"{project}/{model} is not watched", field="model", hint=WATCHED)
        broken = [Break.model_validate(each) for each in row.quarantine]
        route = session.get(RouteRow, (project, model))
        if body.accept and route is not None:
            own = f"{route.version} "
            kept = [each for each in row.accepted if each.startswith(own)]
            row.accepted = sorted({*kept, *(accepting(route.version, each) for each in broken)})
        row.quarantined_at, row.quarantine = None, []
        session.add(row)
    log.info("%s lifts the quarantine of %s/%s (accepted: %s)", person, project, model, body.accept)
    said = "nothing is in quarantine" if not broken else "the next window over the threshold may cause a retraining"
    return Lifted(model=model, columns=[each.column for each in broken], message=said)


@page.post("/models/{model}/quarantine/lift")
async def lift_by_form(
    model: str, request: Request, here: Here, person: Person, project: Project = "default"
) -> Response:
    """One of the page's buttons was pressed."""
    form = await read_form(request)
    await run_in_threadpool(lift, model, here, person, Lift(accept=form.get("accept") == "yes"), project)
    return RedirectResponse(f"/models/{quote(model)}?project={quote(project)}#drift", 303)


@page.post("/models/{model}/rearm")
def rearm_by_form(model: str, here: Here, person: Person, project: Project = "default") -> Response:
    """The page's button was pressed."""
    rearm(model, here, person, project)
    return RedirectResponse(f"/models/{quote(model)}?project={quote(project)}#drift", 303)


@router.get("/models/{model}/drift/{window}/report", response_class=HTMLResponse)
async def report(model: str, window: str, here: Here, project: Project = "default") -> Response:
    """Evidently's report as HTML, to be shown in a sandboxed frame. *window*: its number, its start as
    `20130201T000000Z`, or start and end with a dash between. Rendered on demand
    from the same sample that the check looked at.
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
        number = number_of(session, row)
        view = checks(session, project, model, 1, number + 1)[0]
    columns = watch.distributions(here.artifacts, row.report)
    return pages.render("drift.html", person=person, row=row, view=view, columns=columns, source=report_url(row))


def checks(
    session: Session, project: str, model: str, most: int = MOST_CHECKS, before: int | None = None
) -> list[DriftView]:
    """The last *most* windows that were looked at, oldest first; *before*: those ahead of that number."""
    windows = _windows(project, model)
    last = session.exec(select(func.count()).select_from(windows.subquery())).one()
    if before is not None:
        last = min(last, max(before - 1, 0))
    first = max(0, last - most)
    keys = session.exec(windows.offset(first).limit(last - first)).all() if last > first else []
    if not keys:
        return []
    of_model = (DriftRow.project == project, DriftRow.model == model)
    spans = (col(DriftRow.window_start) >= keys[0][0], col(DriftRow.window_start) <= keys[-1][0])
    found = {_key(row): row for row in session.exec(select(DriftRow).where(*of_model, *spans).order_by(*ORDER))}
    decided = select(TriggerRow).where(
        TriggerRow.project == project, TriggerRow.model == model, col(TriggerRow.window_start) >= keys[0][0]
    )
    late = {_key(row): row.late_rows for row in session.exec(decided)}
    return [_view(number, found[key], late.get(key, 0)) for number, key in enumerate(map(_as_key, keys), first + 1)]


def _windows(project: str, model: str) -> Any:  # noqa: ANN401  # a SelectOfScalar of two columns
    """The windows that were looked at, in order: one that was looked at twice is there once."""
    of_model = (DriftRow.project == project, DriftRow.model == model)
    chosen = select(col(DriftRow.window_start), col(DriftRow.window_end)).where(*of_model).distinct()
    return chosen.order_by(col(DriftRow.window_start), col(DriftRow.window_end))


def _as_key(row: Any) -> Key:  # noqa: ANN401  # a Row of two moments
    return row[0], row[1]


def _key(row: DriftRow | TriggerRow) -> Key:
    """A monitor whose window has changed its size may have two windows with one start."""
    return row.window_start, row.window_end


def report_url(row: DriftRow) -> str:
    return f"/api/v1/models/{quote(row.model)}/drift/{_name(row)}/report?project={quote(row.project)}"


def _view(number: int, row: DriftRow, late_rows: int) -> DriftView:
    links = {"page": f"/models/{quote(row.model)}/drift/{_name(row)}?project={quote(row.project)}"}
    if row.report:
        url = report_url(row)
        links |= {"report": url, "json": url.replace("/report?", "/report.json?")}
    shown = row.model_dump(include=set(DriftView.model_fields) - {"number", "late_rows"})
    return DriftView(number=number, links=links, late_rows=late_rows, **shown)


def _name(row: DriftRow) -> str:
    return f"{_stamp(row.window_start)}-{_stamp(row.window_end)}"


def _stamp(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def _find(here: Parts, project: str, model: str, window: str) -> DriftRow:
    """The check of *window* (its number, its start, or its start and end). Raises `NotFound`."""
    of_model = (DriftRow.project == project, DriftRow.model == model)
    with here.store.read() as session:
        edges = _edges(session, project, model, window)
        if edges:
            named = [col(DriftRow.window_start) == edges[0], *(col(DriftRow.window_end) == edge for edge in edges[1:2])]
            rows = session.exec(select(DriftRow).where(*of_model, *named).order_by(*ORDER)).all()
            if rows:
                return [row for row in rows if row.window_end == rows[0].window_end][-1]
    raise NotFound(
        f"no drift check of {project}/{model} is known as {window[:60]}",
        field="window",
        hint="a window is named by its number or its start, as in the model's list of checks",
    )


def _edges(session: Session, project: str, model: str, window: str) -> list[datetime]:
    """Start, or start and end, of the window that is called so; empty where none may be."""
    if window.isdecimal() and len(window) < 10:  # noqa: PLR2004  # digits of a number of windows
        found = session.exec(_windows(project, model).offset(max(int(window) - 1, 0)).limit(1)).first()
        return list(found) if found and int(window) else []
    try:
        return [datetime.strptime(edge, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) for edge in window.split("-")]
    except ValueError:
        return []


def number_of(session: Session, row: DriftRow) -> int:
    """Of the window that *row* is about, by its start, from 1."""
    windows = _windows(row.project, row.model).subquery()
    start, end = windows.c.window_start, windows.c.window_end
    earlier = or_(start < row.window_start, and_(start == row.window_start, end <= row.window_end))
    return int(session.exec(select(func.count()).select_from(windows).where(earlier)).one())


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
    request = await run_in_threadpool(_request, here, row)
    kept.parent.mkdir(parents=True, exist_ok=True)
    staged = kept.with_name(f"{uuid.uuid4().hex}.part")
    try:
        await _run(here, staged, request.model_dump_json().encode())
        staged.replace(kept)
    finally:
        staged.unlink(missing_ok=True)


async def _run(here: Parts, staged: Path, request: bytes) -> None:
    """Run `api.report` as one of the engine's processes, to its end. Raises what it says, or `Unavailable`."""
    await children.answer_of(
        engine.command("api.report", str(staged)),
        engine.environment(here.settings.environment()),
        request,
        RENDER_SECONDS,
        Unavailable("rendering the report took too long", hint="the JSON beside it has the figures"),
        lambda _: Unavailable(
            "the report could not be rendered", hint="the log of the API says why; the JSON has the figures"
        ),
    )


def _request(here: Parts, row: DriftRow) -> DriftRequest:
    """What the check was asked: the same sample of the same window against the same reference."""
    with here.store.read() as session:
        found = session.get(VersionRow, (row.project, row.model, row.version))
    if found is None:
        raise NotFound(f"version {row.version} of {row.model} is not registered here", field="window")
    version = Version.model_validate_json(found.record)
    window = Window(start=row.window_start, end=row.window_end)
    index = LogIndex(here.store, here.settings.predictions_dir, row.project, row.model)
    return DriftRequest(
        project=row.project,
        model=row.model,
        champion=Champion(
            version=version.number,
            model_digest=version.model_digest,
            model=version.exported.model,
            signature=version.exported.signature,
            seen=version.refitted.seen,
            trained_until=version.refitted.trained_until,
            release_seq=0,  # the report is about bytes, not about a release
        ),
        reference_sha256=version.exported.reference.sha256,
        window=window,
        minimum_rows=0,
        seed=SAMPLE_SEED,
        log=index.parts(window) if index.first() else None,
    )


def rules(monitor: Monitor) -> str:
    """What keeps a window over the threshold from causing a retraining, for people."""
    told = []
    if monitor.windows_in_a_row > 1:
        told.append(f"only {monitor.windows_in_a_row} windows in a row cause a retraining")
    if monitor.calm is not None:
        told.append(f"after one without a release, the next waits for a window below {monitor.calm:.0%}")
    if monitor.cool_down:
        told.append(f"the next waits {monitor.cool_down} of event time")
    if monitor.retrainings_a_month is not None:
        told.append(f"at most {monitor.retrainings_a_month} in 30 days")
    if monitor.breaker is not None:
        windows = f"{monitor.breaker} windows, then twice as many"
        told.append(f"after {monitor.breaker} without a release the next waits {windows}, or for a person")
    return "; ".join(told)


def learns(retrain: Retrain) -> str:
    """What a retraining learns from and how sure its gain must be, for people."""
    data = "all rows" if retrain.window is None else f"the rows of the {span(retrain.window)} before its end"
    sure = f", and must be better with {retrain.certainty:.0%} certainty" if retrain.certainty else ""
    return f"It learns from {data}{sure}."
