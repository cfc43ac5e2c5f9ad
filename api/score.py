"""Scoring a file: start it, follow it, fetch what came out."""

import contextlib
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, StreamingResponse
from temporalio.client import WorkflowExecutionStatus
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError

from api import pages
from api.bodies import body_schema, json_body
from api.dependencies import RPC_TIMEOUT, Here, Parts, Person, ask
from everloop import names, scores, signing
from everloop.errors import IdempotencyMismatch, Invalid, NotFound
from everloop.records import Blob
from everloop.scores import ScoreAnswer, ScoreProgress, ScoreRequest
from everloop.store import RouteRow

router = APIRouter(tags=["predictions"])
page = APIRouter(include_in_schema=False)

KEY = re.compile(r"[A-Za-z0-9._-]{1,128}")
PIECE_BYTES = 1 << 20
MOST_LISTED = 50
PLAIN = re.compile(r"[\w.-]{1,100}")
"""Names that may stand in a query to Temporal as they are."""
RUNS_FOR_MOST = timedelta(days=30)

Project = Annotated[str, Query(max_length=63)]
Key = Annotated[str, Header(alias="Idempotency-Key", description="Names this score; the same key goes on with it")]


class ScoreFile(BaseModel):
    """What is scored."""

    model_config = ConfigDict(extra="forbid")

    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """Absolute, of a CSV, TSV or Parquet file that the compute worker can read."""
    format: Literal["parquet", "csv"] = "parquet"
    """Of what comes out."""


class ScoreView(BaseModel):
    """A file that is being scored, or was."""

    key: str
    project: str
    model: str
    path: str
    format: str
    status: Literal["running", "done", "failed", "cancelled"]
    sentence: str
    version: int
    chunks: int
    done: int
    """Of the chunks."""
    rows: int
    """Answered."""
    rejected: int
    """Rows that could not be: `rejects` has them, with the reason."""
    links: dict[str, str]


@router.post(
    "/models/{model}/score",
    status_code=202,
    openapi_extra=body_schema(ScoreFile, {"path": "/data/customers.parquet", "format": "parquet"}),
)
async def start(  # noqa: PLR0917  # FastAPI gives them by name
    model: str,
    here: Here,
    person: Person,
    body: Annotated[ScoreFile, Depends(json_body(ScoreFile))],
    idempotency_key: Key = "",
    project: Project = "default",
) -> ScoreView:
    """Answer every row of a file by the version that is released now. It goes on whatever is killed.

    The same key again answers the same score; with another file it is refused.
    """
    key = _key(idempotency_key)
    if not Path(body.path).is_absolute():
        raise Invalid("the path must be absolute", field="path", hint="the compute worker reads it, not this client")
    await run_in_threadpool(_must_be_released, here, project, model)
    name = names.score_id(project, model, key)
    request = ScoreRequest(project=project, model=model, path=body.path, form=body.format, submitted_by=person)
    try:
        await ask(
            here.temporal.start_workflow(
                names.SCORE,
                scores.signed(here.signer, name, request),
                id=name,
                task_queue=names.CONTROL,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                execution_timeout=RUNS_FOR_MOST,
                memo={"file": signing.digest(body), "path": body.path, "format": body.format},
                static_summary=f"score {Path(body.path).name[:60]} by {model}",
                search_attributes=TypedSearchAttributes(
                    [SearchAttributePair(names.PROJECT, project), SearchAttributePair(names.MODEL, model)]
                ),
                rpc_timeout=RPC_TIMEOUT,
            )
        )
    except WorkflowAlreadyStartedError:
        found = await ask(here.temporal.get_workflow_handle(name).describe(rpc_timeout=RPC_TIMEOUT))
        if await found.memo_value("file", default="") != signing.digest(body):
            raise IdempotencyMismatch(
                f"the key {key} is of another file", field="Idempotency-Key", hint="use a new key for a new file"
            ) from None
    return await shown(model, key, here, project)


@router.get("/models/{model}/scores/{key}")
async def shown(model: str, key: str, here: Here, project: Project = "default") -> ScoreView:
    """How far it is. Raises `NotFound`; a score that failed says why."""
    handle = here.temporal.get_workflow_handle(names.score_id(project, model, _key(key)))
    missing = f"no score {key[:60]} of {project}/{model} is known"
    found = await ask(handle.describe(rpc_timeout=RPC_TIMEOUT), missing=missing)
    said = {name: await found.memo_value(name, default="") for name in ("path", "format")}
    base = f"/api/v1/models/{model}/scores/{key}"
    view = ScoreView(
        key=key, project=project, model=model, status="running", links={}, **said, **ScoreProgress().model_dump()
    )
    if found.status is WorkflowExecutionStatus.RUNNING:
        with contextlib.suppress(Exception):  # control is away: it goes on when that is back
            progress = await ask(handle.query(names.SCORE_PROGRESS, result_type=ScoreProgress, rpc_timeout=RPC_TIMEOUT))
            view = view.model_copy(update=progress.model_dump())
        return view
    if found.status is not WorkflowExecutionStatus.COMPLETED:
        try:
            await ask(_result(here, model, key, project))
        except Exception as error:  # noqa: BLE001  # whatever it ended with is what is told
            view.sentence = str(error)
        view.status = _word(found.status)
        return view
    answer = await ask(_result(here, model, key, project))
    view.status, view.sentence = "done", f"{answer.rows:,} rows are answered, {answer.rejected:,} are rejected"
    view.version, view.rows, view.rejected = answer.version, answer.rows, answer.rejected
    view.links = {"out": f"{base}/out?project={project}"}
    if answer.rejects:
        view.links["rejects"] = f"{base}/rejects?project={project}"
    return view


@router.get("/models/{model}/scores/{key}/{what}", response_class=StreamingResponse)
async def file(
    model: str, key: str, what: Literal["out", "rejects"], here: Here, project: Project = "default"
) -> StreamingResponse:
    """What came out: the raw columns with the answers, or the rejected rows with the reason of each."""
    view = await shown(model, key, here, project)
    if view.status != "done":
        raise NotFound(f"the score {key} is {view.status}: {view.sentence}", field="key")
    answer = await ask(_result(here, model, key, project))
    blob = answer.out if what == "out" else answer.rejects
    if blob is None:
        raise NotFound("no row was rejected", field="key")
    rows = answer.rows if what == "out" else answer.rejected
    headers = {
        "X-Rows": str(rows),
        "Content-Length": str(blob.size_bytes),
        "Content-Disposition": f'attachment; filename="{blob.name}"',
    }
    return StreamingResponse(_bytes(here, blob), media_type="application/octet-stream", headers=headers)


class ScoreItem(BaseModel):
    """A score in a list."""

    key: str
    path: str
    status: Literal["running", "done", "failed", "cancelled"]
    begun: datetime


@page.get("/models/{model}/scores")
async def scores_page(model: str, here: Here, person: Person, project: Project = "default") -> HTMLResponse:
    """The files that a model has answered, as far back as Temporal keeps them."""
    if not (PLAIN.fullmatch(model) and PLAIN.fullmatch(project)):
        raise NotFound(f"there is no model {model[:63]} in project {project}", field="model")
    items = await ask(_listed(here, project, model))
    more = len(items) > MOST_LISTED
    return pages.render(
        "scores.html", person=person, project=project, model=model, items=items[:MOST_LISTED], more=more
    )


@page.get("/models/{model}/scores/{key}")
async def score_page(model: str, key: str, here: Here, person: Person, project: Project = "default") -> HTMLResponse:
    """How far the scoring of a file is, and what came out."""
    return pages.render("score.html", person=person, view=await shown(model, key, here, project))


async def _listed(here: Parts, project: str, model: str) -> list[ScoreItem]:
    """The newest first; one more than are shown, where there are more."""
    asked = f"WorkflowType='{names.SCORE}' AND {names.PROJECT.name}='{project}' AND {names.MODEL.name}='{model}'"
    found: list[ScoreItem] = []
    async for each in here.temporal.list_workflows(asked, limit=MOST_LISTED + 1, rpc_timeout=RPC_TIMEOUT):
        path = await each.memo_value("path", default="")
        key = each.id.rpartition("/")[2]
        found.append(ScoreItem(key=key, path=str(path), status=_word(each.status), begun=each.start_time))
    return found


def _word(status: WorkflowExecutionStatus | None) -> Literal["running", "done", "failed", "cancelled"]:
    if status is WorkflowExecutionStatus.RUNNING:
        return "running"
    if status is WorkflowExecutionStatus.COMPLETED:
        return "done"
    stopped = status in (WorkflowExecutionStatus.CANCELED, WorkflowExecutionStatus.TERMINATED)
    return "cancelled" if stopped else "failed"


async def _bytes(here: Parts, blob: Blob) -> AsyncIterator[bytes]:
    with contextlib.ExitStack() as held:
        path = await run_in_threadpool(held.enter_context, here.artifacts.open_local(blob))
        source = held.enter_context(path.open("rb"))
        while data := await run_in_threadpool(source.read, PIECE_BYTES):
            yield data


async def _result(here: Parts, model: str, key: str, project: str) -> ScoreAnswer:
    handle = here.temporal.get_workflow_handle(names.score_id(project, model, key), result_type=ScoreAnswer)
    found: ScoreAnswer = await handle.result(rpc_timeout=RPC_TIMEOUT)
    return found


def _must_be_released(here: Parts, project: str, model: str) -> None:
    with here.store.read() as session:
        if _route(session, project, model) is None:
            raise NotFound(
                f"nothing is released as {model[:63]} in project {project}",
                field="model",
                hint="`everloop approve` releases a version",
            )


def _route(session: Session, project: str, model: str) -> RouteRow | None:
    return session.get(RouteRow, (project, model))


def _key(given: str) -> str:
    if not KEY.fullmatch(given) or set(given) == {"."}:
        raise Invalid("the header Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 . _ -", field="Idempotency-Key")
    return given
