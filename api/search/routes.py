"""A search over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Query

from api import journal
from api.dependencies import Here
from api.search import reading
from api.search.answers import SearchView, TrialList, Wanted

router = APIRouter(tags=["search"])


@router.get("/lifecycles/{id:path}/search")
def search(id: str, here: Here) -> SearchView:  # noqa: A002
    """The lifecycle's latest search: how far it is, its leaders, and which parameters made the difference.

    `POST .../take_best` ends it, and the lifecycle goes on with the best so far.
    """
    with here.store.read() as session:
        return reading.view(session, journal.lifecycle_row(session, id))


@router.get("/lifecycles/{id:path}/trials")
def trials(id: str, here: Here, wanted: Annotated[Wanted, Query()]) -> TrialList:  # noqa: A002
    """The trials of the lifecycle's latest search that have ended."""
    with here.store.read() as session:
        study = reading.study_row(session, journal.lifecycle_row(session, id).id)
        return TrialList(items=reading.trials(session, study, wanted))
