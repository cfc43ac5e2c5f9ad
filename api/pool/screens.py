"""The page of a pool, with its buttons."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from sqlmodel import Session, col, select
from starlette.responses import HTMLResponse, RedirectResponse

from activities import lease_time
from api import pages
from api.bodies import read_form, validated
from api.cost import Since, moment
from api.dependencies import Here, Person
from api.pool import changing, seen
from api.pool.answers import CordonAsked, DrainAsked, QueueAsked, RevokeAsked, UndrainAsked
from api.pool.changing import Wanted
from api.pool.timeline import Drawing, Stretch, drawn
from everloop import names
from everloop.errors import Invalid
from everloop.store import LeaseTimeRow

page = APIRouter(include_in_schema=False)

REFRESH_SECONDS = 5
MOST_WAITING = 50
MOST_STRETCHES = 2_000
Pool = Annotated[str, Query(max_length=names.MOST_CHARACTERS)]


@page.get("/pool")
def pool_page(
    here: Here, person: Person, pool: Pool = names.DEFAULT_POOL, since: Since = "1h", still: bool = False
) -> HTMLResponse:
    """Who held what, the queues, who waits."""
    now = datetime.now(UTC)
    begin = max(moment(since, now), now - timedelta(days=31))
    with here.store.read() as session:
        view = seen.pool(session, pool, MOST_WAITING)
        drawing, rows = _timeline(session, pool, {one.name: one.whole.cores for one in view.devices}, begin, now)
        nodes = seen.nodes(session, pool)
        policy = seen.policy(session, pool)
    busy = bool(view.leases or view.waiting)
    return pages.render(
        "pool.html",
        person=person,
        refresh=REFRESH_SECONDS if busy and not still else 0,
        view=view,
        nodes=nodes,
        policy=policy,
        drawing=drawing,
        rows=rows,
        since=since,
        counted=counted,
        kinds=lease_time.LEASED,
        gpus=any(queue.quota.milli_gpu > 0 or queue.use.milli_gpu > 0 for queue in view.queues),
        at=lambda at_ms: datetime.fromtimestamp(at_ms / 1000, UTC),
    )


def _timeline(
    session: Session, pool: str, devices: dict[str, int], begin: datetime, now: datetime
) -> tuple[Drawing, list[dict[str, Any]]]:
    """The drawing, and the same as rows: a lease each, the latest first."""
    from_ms, to_ms = lease_time.in_ms(begin), lease_time.in_ms(now)
    stretches = [*_past(session, pool, from_ms, to_ms), *_present(session, pool, now)]
    by_token: dict[int, list[Stretch]] = {}
    for one in stretches:
        by_token.setdefault(one.token, []).append(one)
    rows = [_row(token, mine, to_ms) for token, mine in sorted(by_token.items(), reverse=True)]
    return drawn(stretches, devices, from_ms, to_ms), rows


def _past(session: Session, pool: str, from_ms: int, to_ms: int) -> list[Stretch]:
    query = select(LeaseTimeRow).where(
        LeaseTimeRow.pool == pool, LeaseTimeRow.to_ms > from_ms, LeaseTimeRow.from_ms < to_ms, LeaseTimeRow.token > 0
    )
    rows = session.exec(query.order_by(col(LeaseTimeRow.to_ms).desc()).limit(MOST_STRETCHES)).all()
    return [
        Stretch(
            row.device, row.token, row.from_ms, row.to_ms, row.kind, row.cores, row.workflow_id, row.queue, row.stage
        )
        for row in reversed(rows)
    ]


def _present(session: Session, pool: str, now: datetime) -> list[Stretch]:
    return [
        Stretch(use.device, token, use.from_ms, use.to_ms, use.kind, use.cores, use.lifecycle, use.queue, use.stage)
        for token, use in lease_time.until_now(session, lease_time.held_now(session, pool, now))
    ]


def _row(token: int, mine: list[Stretch], to_ms: int) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    for one in mine:
        kinds[one.kind] = kinds.get(one.kind, 0) + one.to_ms - one.from_ms
    first = min(mine, key=lambda one: one.from_ms)
    ends = max(one.to_ms for one in mine)
    return {
        "token": token,
        "lifecycle": first.lifecycle,
        "queue": first.queue,
        "devices": sorted({one.device for one in mine}),
        "stages": list(dict.fromkeys(one.stage for one in sorted(mine, key=lambda one: one.from_ms) if one.stage)),
        "from_ms": first.from_ms,
        "to_ms": ends if ends < to_ms else None,
        "kinds": kinds,
    }


def counted(of: Any, gpus: bool) -> str:  # noqa: ANN401  # a `Counted`
    """`4 cores, 1 GPU`."""
    from everloop.queues import amount

    parts = [amount("cores", of.cores), *([amount("milli_gpu", of.milli_gpu)] if gpus else [])]
    return parts[0] if len(set(parts)) == 1 else ", ".join(parts)


# --- buttons


@page.post("/pool/leases/{token}/revoke")
async def revoke_by_form(token: int, request: Request, here: Here, person: Person) -> Response:
    """The button beside a lease."""
    form = await read_form(request)
    asked = _asked(RevokeAsked, form, "reason", "grace_seconds")
    await changing.revoke(here, token, person, asked)
    return _back(form)


@page.post("/pool/nodes/{node}/drain")
async def drain_by_form(node: str, request: Request, here: Here, person: Person) -> Response:
    """The button beside a node."""
    form = await read_form(request)
    asked = _asked(DrainAsked, form, "reason", "grace_seconds")
    await changing.drain(here, form.get("pool", names.DEFAULT_POOL), node, person, asked)
    return _back(form)


@page.post("/pool/nodes/{node}/cordon")
async def cordon_by_form(node: str, request: Request, here: Here, person: Person) -> Response:
    """The other button beside a node."""
    form = await read_form(request)
    asked = _asked(CordonAsked, form, "reason")
    await changing.cordon(here, form.get("pool", names.DEFAULT_POOL), node, person, asked)
    return _back(form)


@page.post("/pool/nodes/{node}/undrain")
async def undrain_by_form(node: str, request: Request, here: Here, person: Person) -> Response:
    """The button beside a node that is drained."""
    form = await read_form(request)
    await changing.undrain(here, form.get("pool", names.DEFAULT_POOL), node, person, UndrainAsked())
    return _back(form)


@page.post("/pool/queues/{queue}")
async def queue_by_form(queue: str, request: Request, here: Here, person: Person) -> Response:
    """A queue's form: first what it would do, then, with the second button, it is done."""
    form = await read_form(request)
    pool = form.get("pool", names.DEFAULT_POOL)
    asked = QueueAsked(quota=_resources(form, "quota"), limit=_resources(form, "limit"), weight=_number(form, "weight"))
    sure = form.get("sure") == "yes"
    answer = await changing.change(here, pool, person, Wanted(name=queue, asked=asked), only_try=not sure)
    if sure:
        return _back(form)
    return pages.render("queue_change.html", person=person, pool=pool, queue=queue, form=form, answer=answer)


def _asked(kind: type[BaseModel], form: dict[str, str], *fields: str) -> Any:  # noqa: ANN401
    given: dict[str, Any] = {name: form[name] for name in fields if form.get(name)}
    return validated(kind, given)


def _resources(form: dict[str, str], name: str) -> Any:  # noqa: ANN401
    given = {each: form[f"{name}_{each}"].strip() for each in ("cores", "gpus") if f"{name}_{each}" in form}
    return {each: value or "none" for each, value in given.items()} or None


def _number(form: dict[str, str], name: str) -> int | None:
    text = form.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9:  # noqa: PLR2004
        raise Invalid(f"{name}: {text[:20]!r} is no whole number", field=name)
    return int(text)


def _back(form: dict[str, str]) -> Response:
    return RedirectResponse(f"/pool?pool={quote(form.get('pool', names.DEFAULT_POOL))}", 303)
