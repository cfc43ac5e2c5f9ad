"""Tell a lifecycle what to do: retry, skip or abort a parked one; cancel, pause, resume a running one; end a search."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool

from api import pages
from api.bodies import body_schema, json_body
from api.dependencies import RPC_TIMEOUT, Here, Parts, Person, ask
from api.lifecycle.answers import Action, Attend, Attended
from api.lifecycle.links import api_url
from api.lifecycle.looking import not_yet_written
from everloop import names
from everloop.contracts import AttendRequest, PauseRequest, SearchOrder
from everloop.errors import NotWaiting
from everloop.store import LifecycleRow
from everloop.views import OPEN_STATUSES

router = APIRouter()


@router.post(
    "/lifecycles/{id:path}/{action}",
    status_code=202,
    openapi_extra=body_schema(Attend, {"reason": "the file is repaired"}, required=False),
)
async def attend(
    id: str,  # noqa: A002
    action: Action,
    here: Here,
    person: Person,
    body: Annotated[Attend, Depends(json_body(Attend, optional=True))],
) -> Attended:
    """Tell a parked lifecycle to retry, skip or abort its failed stage; cancel, pause or resume a running one.

    `take_best` ends its search: it goes on with the best trial so far.
    """
    await tell(here, id, action, person, body)
    return Attended(id=id, action=action, url=api_url(id))


async def tell(here: Parts, id: str, action: Action, person: str, body: Attend) -> None:  # noqa: A002
    """Do *action*. Raises `NotWaiting` when the lifecycle has ended or is not parked."""
    if not await run_in_threadpool(_is_open, here, id):
        # Other workflows have ids too: nobody may cancel a pool from here.
        _must_be_open(id, (await not_yet_written(here, id)).status)
    handle = here.temporal.get_workflow_handle(id)
    missing, hint = f"no running lifecycle {id}", "`everloop list` shows what there is"
    if action == "cancel":
        await ask(handle.cancel(rpc_timeout=RPC_TIMEOUT, reason=_reason(person, body)), missing=missing, hint=hint)
        return
    if action in ("pause", "resume"):
        hold = PauseRequest(action=action, person=person, reason=body.reason)
        said = handle.execute_update(names.PAUSE, hold, id=f"{action}-{uuid.uuid4()}")
        await ask(said, missing=missing, hint=hint)
        return
    if action == "take_best":
        order = SearchOrder(action=action, person=person, reason=body.reason)
        said = handle.execute_update(names.SEARCH_ORDER, order, id=f"{action}-{uuid.uuid4()}")
        await ask(said, missing=missing, hint=hint)
        return
    request = AttendRequest(action=action, person=person, stage=body.stage, reason=body.reason)
    update = handle.execute_update(names.ATTEND, request, id=f"attend-{uuid.uuid4()}")
    await ask(update, missing=missing, hint=hint)


def _reason(person: str, body: Attend) -> str:
    return f"cancelled by {person}" + (f": {body.reason}" if body.reason else "")


def _is_open(here: Parts, id: str) -> bool:  # noqa: A002
    """Is it known and running? Raises `NotWaiting` when it has ended."""
    with here.store.read() as session:
        row = session.get(LifecycleRow, id)
    if row is None:
        return False
    _must_be_open(id, row.status)
    return True


def _must_be_open(id: str, status: str) -> None:  # noqa: A002
    if status not in OPEN_STATUSES:
        raise NotWaiting(
            f"{id} has already ended ({pages.words(status)})", hint="submit again to start a new lifecycle"
        )
