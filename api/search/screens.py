"""The page of a search."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from sqlmodel import Session
from starlette.responses import HTMLResponse

from api import journal, pages
from api.dependencies import Here, Person
from api.search import drawn, reading
from api.search.answers import Order, SearchSummary, TrialView, Wanted
from everloop.store import LifecycleRow, StudyRow

page = APIRouter(include_in_schema=False)

REFRESH_SECONDS = 3
LISTED = 15
"""Trials on the page, until it is asked for all."""
MOST = 2000
ORDERS: dict[Order, str] = {"best": "best first", "newest": "newest first", "seconds": "longest first"}
LEAST_SHARE = 0.01


class Looked(Wanted):
    """What the page is asked for."""

    limit: Annotated[int, Field(ge=1, le=MOST)] = LISTED
    still: bool = False


@page.get("/search/{lifecycle:path}")
def search_page(lifecycle: str, here: Here, person: Person, looked: Annotated[Looked, Query()]) -> HTMLResponse:
    """Its leaderboard, the objective over time, which parameters made the difference, how its trials learned."""
    with here.store.read() as session:
        row = journal.lifecycle_row(session, lifecycle)
        study = reading.study_row(session, row.id)
        found = reading.view(session, row)
        every = reading.trials(session, study, Wanted(limit=MOST))
        listed = reading.trials(session, study, looked)
    runs = found.state in reading.OPEN and row.status == "running"
    return pages.render(
        "search.html",
        person=person,
        refresh=REFRESH_SECONDS if runs and not looked.still else 0,
        view=found,
        lifecycle=row,
        picture=pictured(found, every),
        listed=listed,
        most=MOST,
        looked=looked,
        orders=ORDERS,
        importance=[each for each in found.importance if each.share >= LEAST_SHARE],
        learning=drawn.learning(every),
    )


def pictured(found: SearchSummary, trials: Sequence[TrialView]) -> dict[str, Any] | None:
    """The objective over time, and the trials with which the best got better; None of fewer than two trials.

    From the beginning of the first trial: what the search waited for its lease is no part of it.
    """
    if not trials:
        return None
    began = min(each.ended_at - timedelta(seconds=each.seconds) for each in trials)
    picture = drawn.over_time(trials, began, rising=found.higher_is_better, name=found.metric)
    if picture is None:
        return None
    gains = drawn.gains(trials, rising=found.higher_is_better)
    return {"chart": picture, "gains": [(each, (each.ended_at - began).total_seconds()) for each in gains]}


def on_a_lifecycle(session: Session, row: LifecycleRow, found: SearchSummary | None) -> dict[str, Any] | None:
    """What the page of the lifecycle shows of its search."""
    study: StudyRow | None = reading.study_of(session, row.id) if found else None
    if found is None or study is None:
        return None
    trials = reading.trials(session, study, Wanted(limit=MOST))
    return {"view": found, "picture": pictured(found, trials)}
