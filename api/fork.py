"""Fork a lifecycle: a new one that reuses everything before a stage, with a changed spec."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from activities.fork import changed
from api import journal
from api.bodies import body_schema, json_body
from api.dependencies import Here, Parts, Person
from api.lifecycle.answers import Submitted
from api.lifecycle.submitting import begin
from everloop.contracts import Fork
from everloop.errors import Conflict, Invalid
from everloop.specs import FIRST_READ, FORKABLE, STAGES, LifecycleSpec, Stage, checked
from everloop.store import LifecycleRow

router = APIRouter(tags=["lifecycles"])


class ForkAsked(BaseModel):
    """From where, and what is changed."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    stage: Stage
    """The first stage that is done anew."""
    changes: Annotated[dict[str, Any], Field(max_length=100)] = {}
    """Fields of the spec by their dotted names: `{"training.rounds": 800}`."""


def _hint(lacking: Stage) -> str:
    otherwise = f"fork it from {lacking}" if lacking in FORKABLE else "submit its spec again"
    return f"{otherwise}, or wait until {lacking} is done"


@router.post(
    "/lifecycles/{id:path}/fork",
    status_code=202,
    openapi_extra=body_schema(ForkAsked, {"stage": "train", "changes": {"training.rounds": 800}}),
)
async def fork(
    id: str,  # noqa: A002
    here: Here,
    person: Person,
    body: Annotated[ForkAsked, Depends(json_body(ForkAsked))],
    idempotency_key: Annotated[str, Header(description="Becomes the new lifecycle's id")] = "",
) -> Submitted:
    """Start a lifecycle that keeps what this one found before *stage*.

    Refused when a change would have made an earlier stage find something else, or when that stage was not done.
    """
    row, done = await run_in_threadpool(_known, here, id)
    before = LifecycleSpec.model_validate_json(row.spec)
    spec = forked(before, body.stage, body.changes)
    lacking = [stage for stage in STAGES[: STAGES.index(body.stage)] if stage not in done and stage != "validate"]
    if lacking:
        raise Conflict(
            f"{id} has not done {lacking[0]}, which comes before {body.stage}",
            field="stage",
            hint=_hint(lacking[0]),
        )
    kept = Fork(lifecycle=row.id, run_id=row.run_id, stage=body.stage)
    return await begin(here, person, spec, idempotency_key, fork=kept)


def _known(here: Parts, id: str) -> tuple[LifecycleRow, set[str]]:  # noqa: A002
    with here.store.read() as session:
        row = journal.lifecycle_row(session, id)
        return row, {stage.stage for stage in journal.stage_rows(session, id) if stage.status == "done"}


def forked(before: LifecycleSpec, stage: Stage, changes: dict[str, Any]) -> LifecycleSpec:
    """The spec with *changes*. Raises `Invalid` when a stage before *stage* reads what is changed."""
    if stage not in FORKABLE:
        raise Invalid(f"a lifecycle cannot be forked from {stage}", field="stage", hint=f"one of {', '.join(FORKABLE)}")
    value = before.model_dump(mode="json")
    for name, change in changes.items():
        _set(value, name, change)
    after = checked(value)
    kept = STAGES[STAGES.index(stage) - 1]
    if found := changed(before, after, kept):
        earliest = FIRST_READ.get(found[0], STAGES[0])
        raise Invalid(
            f"{found[0]} is read by {earliest}, which comes before {stage}: its result could not be kept",
            field=found[0],
            hint=f"fork from {earliest}" if earliest in FORKABLE else "submit a new lifecycle",
        )
    return after


def _set(value: dict[str, Any], name: str, change: Any) -> None:  # noqa: ANN401  # whatever a field takes
    *path, last = name.split(".")
    for part in path:
        inner = value.get(part)
        if not isinstance(inner, dict):
            raise Invalid(f"{name}: the spec has no part {part!r} to set {last!r} in", field=name)
        value = inner
    value[last] = change
