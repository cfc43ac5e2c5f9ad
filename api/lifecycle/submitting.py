"""Submit a lifecycle: the workflow is started at once, and a key stands for one spec."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from starlette.concurrency import run_in_threadpool
from temporalio.client import WorkflowHandle
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities import lease_gpus, lease_queues
from api.bodies import body_schema, json_body
from api.dependencies import RPC_TIMEOUT, Here, Parts, Person, ask
from api.lifecycle.answers import Submitted
from api.lifecycle.links import api_url, temporal_url
from api.lifecycle.summary import low_on_room
from everloop import isolation, names, signing, starts
from everloop.contracts import Fork, LifecycleRequest
from everloop.errors import Forbidden, IdempotencyMismatch, Invalid, StorageLow
from everloop.payloads import converter
from everloop.settings import Settings
from everloop.specs import JOB_STAGES, LifecycleSpec
from everloop.store import LifecycleRow

router = APIRouter()

KEY = re.compile(r"[A-Za-z0-9._-]{1,128}")
SUMMARY_BYTES = 200


EXAMPLE = {
    "model": "credit",
    "task": "binary",
    "target": "status",
    "source": {"path": "/data/credit.csv"},
    "time": "applied_at",
    "features": {"exclude": ["account_id"]},
}


@router.post(
    "/lifecycles",
    status_code=202,
    openapi_extra=body_schema(LifecycleSpec, EXAMPLE),
    responses={200: {"model": Submitted, "description": "This key has started this lifecycle before"}},
)
async def submit(
    here: Here,
    person: Person,
    response: Response,
    spec: Annotated[LifecycleSpec, Depends(json_body(LifecycleSpec))],
    idempotency_key: Annotated[
        str, Header(description="Becomes the lifecycle's id; the same key and body again answer the same")
    ] = "",
) -> Submitted:
    """Start a lifecycle; when this answers, Temporal has it.

    The same key with another body is refused. While Temporal is down nothing is acknowledged (503).
    """
    if await run_in_threadpool(_known_spec, here, _key(idempotency_key)) is not None:
        response.status_code = 200
    return await begin(here, person, spec, idempotency_key)


async def begin(here: Parts, person: str, spec: LifecycleSpec, key: str, fork: Fork | None = None) -> Submitted:
    """Start the lifecycle, or find that *key* has started it before. Raises `IdempotencyMismatch` and `StorageLow`."""
    known = await run_in_threadpool(_known_spec, here, _key(key))
    if known is None:
        _may_bring_code(here.settings, person, spec)
        await run_in_threadpool(_must_have_a_queue, here, spec)
        await run_in_threadpool(_must_have_its_level, here, spec)
        await run_in_threadpool(_must_have_room, here)
        request = LifecycleRequest(spec=spec, body_digest=signing.digest(spec), submitted_by=person, fork=fork)
        known = await _start(here, key, starts.signed(here.signer, key, request))
    if known != spec:
        raise IdempotencyMismatch(
            f"the key {key} has started a lifecycle with another spec",
            field="Idempotency-Key",
            hint="use a new key for a new lifecycle",
        )
    return Submitted(id=key, url=api_url(key), temporal_url=temporal_url(here, key))


def _key(given: str) -> str:
    if not KEY.fullmatch(given) or set(given) == {"."}:
        raise Invalid(
            "the header Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 . _ -"
            if given
            else "Idempotency-Key is missing",
            field="Idempotency-Key",
            hint="send a fresh random key with each submission, and the same one when you repeat it",
        )
    return given


def _may_bring_code(settings: Settings, person: str, spec: LifecycleSpec) -> None:
    """Raise `Forbidden` where *person* may not have a function of theirs run with the rights of Everloop's user."""
    if not spec.own_trainer or settings.user_code == "all":
        return
    if settings.user_code == "off":
        raise Forbidden(
            "trainers of users are switched off here",
            field="trainer",
            hint="EVERLOOP_USER_CODE=owner allows those of the owner",
        )
    if person != settings.person:
        raise Forbidden(
            f"{person} may not submit a trainer of their own: it would run with the rights of {settings.person}",
            field="trainer",
            hint=f"let {settings.person} submit it; EVERLOOP_USER_CODE=all trusts everybody who has a key",
        )


def _must_have_room(here: Parts) -> None:
    """Raise `StorageLow` before anything starts that could only wait."""
    if (found := low_on_room(here)) is not None:
        raise StorageLow(f"nothing is started: {found}", hint="free some space, then submit again")


def _must_have_a_queue(here: Parts, spec: LifecycleSpec) -> None:
    """Raise `Invalid` for a queue that takes no requests: whoever mistypes it would wait."""
    with here.store.read() as session:
        queues = lease_queues.tree(session, names.DEFAULT_POOL)
    leaves, parents = sorted(lease_queues.leaves(queues)), {queue.parent for queue in queues}
    if spec.queue not in leaves:
        why = "has queues below it, which take the requests" if spec.queue in parents else "is not there"
        known = ", ".join(leaves)[:500]
        hint = f"name one of {known}, or let an operator make it: `everloop queue set {spec.queue}`"
        raise Invalid(f"queue {spec.queue!r} {why}", field="queue", hint=hint)


def _must_have_its_level(here: Parts, spec: LifecycleSpec) -> None:
    """Raise `Invalid` for an isolation that the pool's devices do not have: it is refused, never weakened."""
    asked = [spec.resources.of(stage) for stage in JOB_STAGES]
    apart = [amounts for amounts in asked if amounts.isolation == "E4"]
    if not apart:
        return
    with here.store.read() as session:
        there = lease_gpus.gpus(session, names.DEFAULT_POOL)
    for amounts in apart:
        isolation.slice_for(round((amounts.gpus or 0) * isolation.WHOLE_GPU), amounts.gpu_memory or 0, there)


def _known_spec(here: Parts, key: str) -> LifecycleSpec | None:
    """The spec that the key stands for, read as specs are read now: one of before lacks the fields of today."""
    with here.store.read() as session:
        row = session.get(LifecycleRow, key)
        return LifecycleSpec.model_validate_json(row.spec) if row else None


async def _start(here: Parts, key: str, request: LifecycleRequest) -> LifecycleSpec | None:
    """Start the workflow, or find it started: the spec that the key stands for. None: no lifecycle has that id."""
    try:
        await ask(_starting(here, key, request))
    except WorkflowAlreadyStartedError:
        return await ask(_started_with(here, key))
    return request.spec


async def _started_with(here: Parts, key: str) -> LifecycleSpec | None:
    events = here.temporal.get_workflow_handle(key).fetch_history_events(page_size=1, rpc_timeout=RPC_TIMEOUT)
    async for event in events:
        given = event.workflow_execution_started_event_attributes.input.payloads
        try:
            (request,) = converter.payload_converter.from_payloads(given, [LifecycleRequest])
        except Exception:  # noqa: BLE001  # whatever somebody has typed as its input
            return None
        return LifecycleSpec.model_validate(request.spec)
    return None


async def _starting(here: Parts, key: str, request: LifecycleRequest) -> WorkflowHandle[Any, Any]:
    spec = request.spec
    return await here.temporal.start_workflow(
        names.LIFECYCLE,
        request,
        id=key,
        task_queue=names.CONTROL,
        id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
        memo={"body_digest": request.body_digest, "submitted_by": request.submitted_by, "spec": _spec_memo(spec)},
        search_attributes=TypedSearchAttributes(
            [
                SearchAttributePair(names.PROJECT, spec.project),
                SearchAttributePair(names.MODEL, spec.model),
                SearchAttributePair(names.STAGE, "submitted"),
                SearchAttributePair(names.TRIGGER, request.trigger),
            ]
        ),
        static_summary=_clipped(
            f"{spec.model}: {spec.task} on `{spec.target}`, submitted by {request.submitted_by}", SUMMARY_BYTES
        ),
        static_details=_details(request),
        rpc_timeout=RPC_TIMEOUT,
    )


def _spec_memo(spec: LifecycleSpec) -> dict[str, str]:
    return {"project": spec.project, "model": spec.model, "task": spec.task, "objective": spec.objective}


def _details(request: LifecycleRequest) -> str:
    spec = request.spec
    lines = [
        f"**{spec.model}** of project {spec.project}: {spec.task} on `{spec.target}`, decided by {spec.objective}.",
        "",
        f"- data: `{spec.source.path}`",
        f"- submitted by {request.submitted_by} ({request.trigger})",
        f"- watched: {f'each {spec.monitor.window}' if spec.monitor else 'no'}",
    ]
    return _clipped("\n".join(lines), 8000)


def _clipped(text: str, limit_bytes: int) -> str:
    """*text* in at most *limit_bytes* of UTF-8, cut between characters."""
    data = text.encode()
    return text if len(data) <= limit_bytes else data[: limit_bytes - 3].decode(errors="ignore") + "…"
