"""Files that the jobs of a lifecycle kept for people: what a trainer gave to `log_artifact`, and where it learned."""

from contextlib import ExitStack

from fastapi import APIRouter
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


class Kept(BaseModel):
    """One file."""

    name: str
    size_bytes: int | None = None
    """None: it is not written down."""


def kept_of(row: StageRow) -> list[Kept]:
    """The files of one start of a stage."""
    return [Kept(name=name, size_bytes=blob.size_bytes or None) for name, blob in _blobs(row).items()]


@router.get("/lifecycles/{id:path}/artifacts/{stage}/{name}", response_class=FileResponse)
def artifact(id: str, stage: str, name: str, here: Here) -> FileResponse:  # noqa: A002
    """A file that a stage kept, of the latest start that kept one of this name."""
    with here.store.read() as session:
        rows = [row for row in stage_rows(session, lifecycle_row(session, id).id) if row.stage == stage]
        found = {each: blob for row in rows for each, blob in _blobs(row).items()}
    if name not in found:
        hint = f"`everloop show {id[:200]}` lists what was kept"
        raise NotFound(f"no file of this name was kept by {stage[:100]}", field="name", hint=hint)
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
def artifact_file(lifecycle: str, stage: str, name: str, here: Here, _person: Person) -> FileResponse:
    """The same for a browser."""
    return artifact(lifecycle, stage, name, here)


def _blobs(row: StageRow) -> dict[str, Blob]:
    found = {blob.name: blob for blob in map(Blob.model_validate, row.ran.get("artifacts") or ())}
    if "environment" in row.blobs:
        name = ENVIRONMENT if ENVIRONMENT not in found else "environment (recorded).json"  # no artifact's name has ()
        found[name] = Blob(sha256=row.blobs["environment"], size_bytes=0, name=name)
    return found
