"""Files that the jobs of a lifecycle kept for people: what a trainer gave to `log_artifact`, and where it learned.

Of every start of a stage, also of one that failed: what a trainer drew before its bug helps to find it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.responses import FileResponse

from api.dependencies import Here, Person
from api.journal import lifecycle_row, stage_rows
from everloop.errors import NotFound
from everloop.records import Blob
from everloop.store import StageRow

router = APIRouter(tags=["lifecycles"])
page = APIRouter(include_in_schema=False)

ENVIRONMENT = "environment.json"
Start = Annotated[int | None, Query(ge=1, lt=2**31)]
"""Of a stage: the first is 1. None: the latest that kept a file of this name."""


class Kept(BaseModel):
    """One file."""

    name: str
    size_bytes: int | None = None
    """None: it is not written down."""


class KeptFile(Kept):
    """One file, and who kept it."""

    stage: str
    start: int
    """Of the stage: the first is 1."""
    status: str
    """Of that start."""


class KeptList(BaseModel):
    items: list[KeptFile]


def kept_of(row: StageRow) -> list[Kept]:
    """The files of one start of a stage."""
    return [Kept(name=name, size_bytes=blob.size_bytes or None) for name, blob in _blobs(row).items()]


@router.get("/lifecycles/{id:path}/kept")
def kept(id: str, here: Here) -> KeptList:  # noqa: A002
    """The files that jobs kept for people, of all starts of all stages, in their order."""
    with here.store.read() as session:
        rows = stage_rows(session, lifecycle_row(session, id).id)
    return KeptList(
        items=[
            KeptFile(stage=row.stage, start=start, status=row.status, **file.model_dump())
            for start, row in _starts(rows)
            for file in kept_of(row)
        ]
    )


@router.get("/lifecycles/{id:path}/artifacts/{stage}/{name}", response_class=FileResponse)
def artifact(id: str, stage: str, name: str, here: Here, start: Start = None) -> FileResponse:  # noqa: A002
    """A file that a stage kept: of the start named, else of the latest that kept one of this name."""
    with here.store.read() as session:
        rows = stage_rows(session, lifecycle_row(session, id).id)
    asked = [row for number, row in _starts(rows) if row.stage == stage and start in (None, number)]
    found = {each: blob for row in asked for each, blob in _blobs(row).items()}
    if name not in found:
        hint = f"`everloop kept {id[:200]}` lists what was kept"
        by = f"start {start} of {stage[:100]}" if start else stage[:100]
        raise NotFound(f"no file of this name was kept by {by}", field="name", hint=hint)
    opened = ExitStack()
    path = opened.enter_context(here.artifacts.open_local(found[name]))
    return FileResponse(
        path,
        media_type="application/octet-stream",  # whatever a trainer wrote: no browser shows or runs it as ours
        filename=name,
        headers={"X-Content-Type-Options": "nosniff"},
        background=BackgroundTask(opened.close),
    )


@page.get("/artifacts/{lifecycle:path}/{stage}/{name}")
def artifact_file(  # as they come in the request
    lifecycle: str, stage: str, name: str, here: Here, _person: Person, start: Start = None
) -> FileResponse:
    """The same for a browser."""
    return artifact(lifecycle, stage, name, here, start)


def _starts(rows: Sequence[StageRow]) -> Iterator[tuple[int, StageRow]]:
    """Each start of a stage with its number."""
    often: Counter[str] = Counter()
    for row in rows:
        often[row.stage] += 1
        yield often[row.stage], row


def _blobs(row: StageRow) -> dict[str, Blob]:
    told = row.ran.get("artifacts") or row.error.get("kept") or ()
    found = {blob.name: blob for blob in map(Blob.model_validate, told)}
    if "environment" in row.blobs:
        name = ENVIRONMENT if ENVIRONMENT not in found else "environment (recorded).json"  # no artifact's name has ()
        found[name] = Blob(sha256=row.blobs["environment"], size_bytes=0, name=name)
    return found
