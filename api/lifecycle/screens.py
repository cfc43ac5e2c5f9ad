"""The pages of lifecycles: the first page, and one lifecycle with its buttons."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse

from api import alarm, curves, journal, logs, pages
from api.bodies import read_form
from api.dependencies import Here, Parts, Person, soon
from api.lifecycle.answers import Action, Attend, LifecycleSummary, LifecycleView
from api.lifecycle.links import page_url
from api.lifecycle.looking import not_yet_written, stored
from api.lifecycle.summary import low_on_room, summary
from api.lifecycle.telling import tell
from api.refusals import HELP, refusals
from api.search import screens as search
from everloop.specs import LAST_STAGES, SKIPPABLE, STAGES, LifecycleSpec
from everloop.store import ApprovalRow, DriftRow, LifecycleRow, RouteRow, VersionRow
from everloop.views import OPEN_STATUSES

page = APIRouter(include_in_schema=False)

REFRESH_SECONDS = 3
RECENT = 12
MOST_CHARTS = 6
"""Of folds and of an ensemble's members there are several; the API has all."""


@page.get("/")
def home(here: Here, person: Person, still: bool = False) -> HTMLResponse:
    """What needs me, what runs, what is live."""
    with here.store.read() as session:
        rows = _latest(session, OPEN_STATUSES, 200)
        running = [row for row in rows if row.status == "running"]
        low = low_on_room(here)
        return pages.render(
            "home.html",
            person=person,
            refresh=REFRESH_SECONDS if running and not still else 0,
            gates=session.exec(
                select(ApprovalRow)
                .join(LifecycleRow, col(LifecycleRow.id) == ApprovalRow.lifecycle)
                .where(ApprovalRow.status == "open", LifecycleRow.stage == "approve")  # not what a Reset left behind
                .order_by(col(ApprovalRow.opened_at))
            ).all(),
            refused=list(refusals(here.settings).values()),
            refusal_help=HELP,
            alarms=alarm.all_of(session, here.settings),
            low=low,
            parked=[row for row in rows if row.status == "needs_attention"],
            running=[(summary(here, session, row, low), progress(session, row)) for row in running],
            live=[_live(session, route) for route in session.exec(select(RouteRow).order_by(col(RouteRow.model)))],
            recent=_recent(here, session),
            serve_url=here.settings.serve_url,
            temporal_url=here.settings.temporal_ui_url,
        )


@page.get("/lifecycles/{id:path}")
async def lifecycle_page(id: str, here: Here, person: Person, still: bool = False) -> HTMLResponse:  # noqa: A002
    """A lifecycle: its stages, what it waits for, what happened, what can be done."""
    view = await run_in_threadpool(stored, here, id) or await not_yet_written(here, id)
    return await run_in_threadpool(_page, here, person, view, still)


@page.post("/lifecycles/{id:path}/{action}")
async def attend_by_form(id: str, action: Action, request: Request, here: Here, person: Person) -> Response:  # noqa: A002
    """A button of the page was pressed."""
    form = await read_form(request)
    before = await run_in_threadpool(_updated, here, id)
    await tell(
        here, id, action, person, Attend(stage=form.get("stage", "")[:100], reason=form.get("reason", "")[:2000])
    )
    await soon(lambda: _updated(here, id) != before)
    return RedirectResponse(page_url(id), 303)


def _updated(here: Parts, id: str) -> datetime | None:  # noqa: A002
    with here.store.read() as session:
        row = session.get(LifecycleRow, id)
        return row.updated_at if row else None


def _page(here: Parts, person: str, view: LifecycleView, still: bool) -> HTMLResponse:
    with here.store.read() as session:
        row = session.get(LifecycleRow, view.id)
        events = journal.events_of(session, row) if row else []
        learned = curves.curves_of(session, row) if row else []
        ranks = curves.ranks_of(session, row) if row else 1
        searched = search.on_a_lifecycle(session, row, view.search) if row else None
        writes = row is not None and row.status == "running" and not (view.search and view.search.state == "running")
        log = logs.tail(session, row, here.settings.logs_dir) if row and writes else None  # a trial's is its own
    return pages.render(
        "lifecycle.html",
        person=person,
        refresh=REFRESH_SECONDS if view.status == "running" and not still else 0,
        view=view,
        rail=_rail(view),
        events=events,
        skippable=view.error.get("stage") in SKIPPABLE,
        open=view.status in OPEN_STATUSES,
        pausable=view.status == "running" and not view.paused and view.stage in LAST_STAGES,
        log=log,
        ranks=ranks,
        searched=searched,
        charts=[(curve, curves.drawn(curve), curves.told_in_rows(curve)) for curve in learned[:MOST_CHARTS]],
        more_charts=len(learned[MOST_CHARTS:]),
    )


def _latest(session: Session, statuses: tuple[str, ...], limit: int) -> list[LifecycleRow]:
    query = select(LifecycleRow).where(col(LifecycleRow.status).in_(statuses))
    return list(session.exec(query.order_by(col(LifecycleRow.submitted_at).desc()).limit(limit)))


def _recent(here: Parts, session: Session) -> list[LifecycleSummary]:
    query = select(LifecycleRow).where(col(LifecycleRow.status).not_in(OPEN_STATUSES))
    rows = session.exec(query.order_by(col(LifecycleRow.updated_at).desc()).limit(RECENT)).all()
    return [summary(here, session, row) for row in rows]


def _live(session: Session, route: RouteRow) -> dict[str, Any]:
    """A model that answers now: its version, its objective's figure, the last look at drift."""
    version = session.get(VersionRow, (route.project, route.model, route.version))
    lifecycle = session.get(LifecycleRow, version.lifecycle if version else route.lifecycle)
    drift = session.exec(
        select(DriftRow)
        .where(DriftRow.project == route.project, DriftRow.model == route.model)
        .order_by(col(DriftRow.window_start).desc())
        .limit(1)
    ).first()
    objective = LifecycleSpec.model_validate_json(lifecycle.spec).objective if lifecycle else ""
    figure = lifecycle.metrics.get(objective) if lifecycle else None
    return {"route": route, "objective": objective, "figure": figure, "drift": drift}


def progress(session: Session, row: LifecycleRow) -> tuple[int, int]:
    """Stages behind it, and stages in all."""
    done = {stage.stage for stage in journal.stage_rows(session, row.id) if stage.status in ("done", "skipped")}
    return len(done), len(STAGES)


def _rail(view: LifecycleView) -> list[dict[str, Any]]:
    """Every stage in order, whether or not it has come up yet, with its attempts."""
    ended = view.status not in OPEN_STATUSES
    found = []
    for name in STAGES:
        attempts = [stage for stage in view.stages if stage.stage == name]
        last = attempts[-1] if attempts else None
        status = last.status if last else "not reached" if ended else "to come"
        found.append({"name": name, "status": status, "last": last, "attempts": attempts})
    return found
