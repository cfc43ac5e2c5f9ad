"""Data: what a lifecycle has read, a histogram per column, what the rules changed, and the values they rejected.

There as soon as its snapshot stage has ended, and for as long as its bytes are: a lifecycle that failed later shows it
too.
"""

import json
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from pydantic import BaseModel
from sqlmodel import Session, col, select
from starlette.responses import HTMLResponse, Response

from api import pages
from api.dependencies import Here, Parts, Person
from api.journal import lifecycle_row
from everloop.artifacts import Artifacts
from everloop.errors import NotFound
from everloop.reading import Changed, ReadColumn, Reading
from everloop.records import Column
from everloop.specs import LifecycleSpec
from everloop.store import LifecycleRow, StageRow

router = APIRouter(tags=["data"])
page = APIRouter(include_in_schema=False)

MOST_DRAWN = 200
"""Columns on the page; the API has all."""


class File(BaseModel):
    """A file of the source."""

    name: str
    rows: int | None = None
    """None where a version of before has read it."""


class Bar(BaseModel):
    """How many rows hold a value. Of numbers and times the label is where the bar begins, else the value."""

    label: str
    rows: int


class ColumnView(BaseModel):
    """A column as it was read."""

    name: str
    kind: str
    read: ReadColumn | None = None
    """How its texts became values; None where a version of before has read them."""
    missing: int
    distinct: int | None
    changed: list[str] = []
    """Sentences on what the rules made of its texts."""
    bars: list[Bar] = []
    """In order of numbers and times; of texts the most frequent. Of the first 200 columns."""


class DataView(BaseModel):
    """What a lifecycle's latest snapshot has read."""

    lifecycle: str
    rows: int | None
    files: list[File]
    target: str
    target_missing: int
    """Rows without a target: nothing is learned from them."""
    changed: list[str]
    """What the rules changed, in every column."""
    columns: list[ColumnView]
    rejected: bool
    """Are there values that are not as declared, to be downloaded?"""
    links: dict[str, str]


@router.get("/lifecycles/{id:path}/data")
def shown(id: str, here: Here) -> DataView:  # noqa: A002
    """The columns as they were read, with bars of what they hold."""
    with here.store.read() as session:
        return view(here, session, lifecycle_row(session, id))


@router.get("/lifecycles/{id:path}/rejected", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
def rejected(id: str, here: Here) -> Response:  # noqa: A002
    """The values that are not as the spec declares, as CSV: file, row, column, value. Up to 10,000 of them."""
    with here.store.read() as session:
        blobs = _blobs(session, lifecycle_row(session, id))
    if "rejected" not in blobs:
        raise NotFound(f"no value of {id[:200]} was rejected", field="lifecycle")
    headers = {"Content-Disposition": 'attachment; filename="rejected.csv"'}
    return Response(here.artifacts.get(blobs["rejected"]), media_type="text/csv; charset=utf-8", headers=headers)


@page.get("/data/{lifecycle:path}")
def data_page(lifecycle: str, here: Here, person: Person) -> HTMLResponse:
    """The same for people."""
    found = shown(lifecycle, here)
    drawn = sorted(found.columns[MOST_DRAWN:], key=lambda column: not column.changed)  # first what was changed
    columns = found.columns[:MOST_DRAWN] + [column for column in drawn if column.changed]
    return pages.render(
        "data.html", person=person, found=found, columns=columns, more=len(found.columns) - len(columns)
    )


@page.get("/rejected/{lifecycle:path}")
def rejected_file(lifecycle: str, here: Here, _person: Person) -> Response:
    """The rejected values for a browser."""
    return rejected(lifecycle, here)


# --- what a snapshot has stored -------------------------------------------------------------------


def view(here: Parts, session: Session, row: LifecycleRow) -> DataView:
    """The latest snapshot of a lifecycle. Raises `NotFound` before there is one."""
    blobs = _blobs(session, row)
    manifest = json.loads(here.artifacts.get(blobs["manifest"]))
    drawn = json.loads(here.artifacts.get(blobs["profile"]))["columns"] if "profile" in blobs else []
    bars = {each["name"]: each["bars"] for each in drawn}
    reading = Reading.model_validate_json(here.artifacts.get(blobs["reading"])) if "reading" in blobs else Reading()
    read = {column.name: column for column in reading.columns}
    changed = {change.column: change.sentences() for change in _changed(manifest)}
    spec = LifecycleSpec.model_validate_json(row.spec)
    columns = [Column.model_validate(column) for column in manifest["columns"]]
    files = [File(name=file["name"], rows=file.get("rows")) for file in manifest["files"]]
    rows = [file.rows for file in files if file.rows is not None]
    return DataView(
        lifecycle=row.id,
        rows=sum(rows) if len(rows) == len(files) else None,
        files=files,
        target=spec.target,
        target_missing=_target_missing(columns, spec.target),
        changed=[sentence for sentences in changed.values() for sentence in sentences],
        columns=[
            ColumnView(
                name=column.name,
                kind=column.kind,
                read=read.get(column.name),
                missing=column.nulls,
                distinct=column.distinct,
                changed=changed.get(column.name, []),
                bars=[Bar(label=label, rows=count) for label, count in bars.get(column.name, [])],
            )
            for column in columns
        ],
        rejected="rejected" in blobs,
        links=links(row.id, rejected="rejected" in blobs),
    )


def notes(here: Parts, session: Session, row: LifecycleRow) -> list[str]:
    """What the rules changed in a lifecycle's data and how many rows lost their target; nothing before a snapshot."""
    blobs = _latest(session, row)
    if "manifest" not in blobs or not here.artifacts.has(blobs["manifest"]):
        return []
    return list(_notes(here.artifacts, blobs["manifest"], LifecycleSpec.model_validate_json(row.spec).target))


@lru_cache(maxsize=256)
def _notes(artifacts: Artifacts, digest: str, target: str) -> tuple[str, ...]:
    """Kept: whoever watches a lifecycle asks twice a second, and the bytes never change."""
    manifest = json.loads(artifacts.get(digest))
    if not isinstance(manifest, dict) or "columns" not in manifest:  # as an Everloop before readings wrote it
        return ()
    missing = _target_missing([Column.model_validate(column) for column in manifest["columns"]], target)
    rows = sum(file.get("rows", 0) for file in manifest["files"])
    without = (f"{missing:,} of {rows:,} rows have no target: nothing is learned from them",) if missing else ()
    return (*without, *(sentence for change in _changed(manifest) for sentence in change.sentences()))


def links(id: str, *, rejected: bool) -> dict[str, str]:  # noqa: A002
    """Where a lifecycle's data is shown."""
    api = f"/api/v1/lifecycles/{quote(id)}"
    found = {"self": f"{api}/data", "page": f"/data/{quote(id)}"}
    return found | ({"rejected": f"{api}/rejected"} if rejected else {})


def there(session: Session, row: LifecycleRow) -> bool:
    """Has a snapshot of it ended?"""
    return "manifest" in _latest(session, row)


def _changed(manifest: dict[str, Any]) -> list[Changed]:
    return [Changed.model_validate(change) for change in manifest.get("changed", [])]


def _target_missing(columns: list[Column], target: str) -> int:
    return next((column.nulls for column in columns if column.name == target), 0)


def _blobs(session: Session, row: LifecycleRow) -> dict[str, str]:
    """What the latest snapshot stored, by name. Raises `NotFound`."""
    blobs = _latest(session, row)
    if "manifest" not in blobs:
        hint = f"it is shown once the snapshot stage has ended; `everloop show {row.id}` says how far it is"
        raise NotFound(f"the data of {row.id} is not there", field="lifecycle", hint=hint)
    return blobs


def _latest(session: Session, row: LifecycleRow) -> dict[str, str]:
    query = select(StageRow).where(
        StageRow.lifecycle == row.id, StageRow.stage == "snapshot", StageRow.status == "done"
    )
    stage = session.exec(query.order_by(col(StageRow.position).desc()).limit(1)).first()
    return stage.blobs if stage else {}
