"""Data: what a lifecycle has read, a histogram per column, what the rules changed, and the values they rejected."""

import json
from typing import Any

from fastapi import APIRouter
from sqlmodel import select
from starlette.responses import HTMLResponse, Response

from api import pages
from api.dependencies import Here, Parts, Person
from everloop.errors import NotFound
from everloop.records import Snapshot, Version
from everloop.store import VersionRow

page = APIRouter(include_in_schema=False)


@page.get("/data/{lifecycle:path}")
def data_page(lifecycle: str, here: Here, person: Person) -> HTMLResponse:
    """The columns as they were read, with bars of what they hold."""
    snapshot = _snapshot(here, lifecycle)
    found: dict[str, Any] = json.loads(here.artifacts.get(snapshot.profile)) if snapshot.profile else {}
    manifest = json.loads(here.artifacts.get(snapshot.manifest))
    return pages.render(
        "data.html",
        person=person,
        lifecycle=lifecycle,
        snapshot=snapshot,
        columns=found.get("columns", []),
        more=len(manifest["columns"]) - len(found.get("columns", [])),
        changed=found.get("changed", []),
    )


@page.get("/rejected/{lifecycle:path}")
def rejected(lifecycle: str, here: Here, _person: Person) -> Response:
    """The values that are not as the spec declares, as CSV: file, row, column, value."""
    snapshot = _snapshot(here, lifecycle)
    if snapshot.rejected is None:
        raise NotFound(f"no value of {lifecycle} was rejected", field="lifecycle")
    headers = {"Content-Disposition": 'attachment; filename="rejected.csv"'}
    return Response(here.artifacts.get(snapshot.rejected), media_type="text/csv; charset=utf-8", headers=headers)


def _snapshot(here: Parts, lifecycle: str) -> Snapshot:
    with here.store.read() as session:
        row = session.exec(select(VersionRow).where(VersionRow.lifecycle == lifecycle)).first()
    if row is None:
        hint = "it is shown once the lifecycle has registered a version, before its gate opens"
        raise NotFound(f"the data of {lifecycle} is not there", field="lifecycle", hint=hint)
    return Version.model_validate_json(row.record).snapshot
