"""The addresses of pools, leases, nodes and queues."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from api.bodies import body_schema, json_body
from api.dependencies import Here, Person
from api.pool import changing, seen
from api.pool.answers import (
    Changed,
    CordonAsked,
    DrainAsked,
    Explained,
    LeaseList,
    NodeList,
    Ordered,
    PolicyAsked,
    PolicyView,
    PoolView,
    QueueAsked,
    QueueList,
    RevokeAsked,
    TreeAsked,
    UndrainAsked,
)
from api.pool.changing import Wanted
from everloop import names

router = APIRouter(tags=["pools"])

Pool = Annotated[str, Query(max_length=names.MOST_CHARACTERS)]
OnlyTry = Annotated[bool, Query(alias="try", description="Say what it would do, and change nothing")]
Token = Annotated[int, Path(ge=1, lt=2**63)]


@router.get("/pools/{pool}")
def shown(pool: str, here: Here, limit: Annotated[int, Query(ge=1, le=10_000)] = 200) -> PoolView:
    """Who holds what, the queues, and the first *limit* of those who wait."""
    with here.store.read() as session:
        return seen.pool(session, pool, limit)


@router.get("/pools/{pool}/queues")
def queue_list(pool: str, here: Here) -> QueueList:
    """The queue tree, parents first."""
    with here.store.read() as session:
        return seen.queues(session, pool)


@router.put(
    "/pools/{pool}/queues",
    openapi_extra=body_schema(TreeAsked, {"queues": {"vision": {"quota": {"cores": 2}}, "nightly": {"weight": 1}}}),
)
async def apply(
    pool: str,
    here: Here,
    person: Person,
    body: Annotated[TreeAsked, Depends(json_body(TreeAsked))],
    only_try: OnlyTry = False,
) -> Changed:
    """Make the tree as the body says. Queues that it does not name are removed."""
    return await changing.change(here, pool, person, Wanted({"queues": body.queues}), only_try=only_try)


@router.patch(
    "/pools/{pool}/queues/{queue}",
    openapi_extra=body_schema(QueueAsked, {"quota": {"cores": 2, "gpus": 0.5}, "weight": 3}),
)
async def set_queue(  # noqa: PLR0917  # FastAPI gives them by name
    pool: str,
    queue: str,
    here: Here,
    person: Person,
    body: Annotated[QueueAsked, Depends(json_body(QueueAsked))],
    only_try: OnlyTry = False,
) -> Changed:
    """Change a queue, or add it."""
    return await changing.change(here, pool, person, Wanted(name=queue, asked=body), only_try=only_try)


@router.get("/pools/{pool}/policy")
def policy(pool: str, here: Here) -> PolicyView:
    """By what it is decided who is served and who has to let go, and who changed that last."""
    with here.store.read() as session:
        return seen.policy(session, pool)


@router.put("/pools/{pool}/policy", openapi_extra=body_schema(PolicyAsked, {"grace": "30s", "minimum_run_time": "10m"}))
async def set_policy(
    pool: str, here: Here, person: Person, body: Annotated[PolicyAsked, Depends(json_body(PolicyAsked))]
) -> Ordered:
    """Change rules of the policy; what is left out stays. It counts from the next decision on."""
    return await changing.set_policy(here, pool, person, body)


@router.get("/leases")
def lease_list(
    here: Here, pool: Pool = names.DEFAULT_POOL, ended: Annotated[int, Query(ge=0, le=1000)] = 0
) -> LeaseList:
    """Live leases by token, then the latest *ended* ones."""
    with here.store.read() as session:
        return LeaseList(items=seen.leases(session, pool, ended))


@router.get("/leases/explain/{of:path}")
def explain(of: str, here: Here) -> Explained:
    """Why a lifecycle or a request waits, or how its lease stands. *of*: its id, or a lease's token."""
    return seen.explained(here.store, of)


@router.post(
    "/leases/{token}/revoke",
    openapi_extra=body_schema(RevokeAsked, {"reason": "the machine goes to the workshop", "grace_seconds": 60}),
)
async def revoke(
    token: Token, here: Here, person: Person, body: Annotated[RevokeAsked, Depends(json_body(RevokeAsked))]
) -> Ordered:
    """Take a lease back: its holder writes a checkpoint, lets go, and waits at its old place."""
    return await changing.revoke(here, token, person, body)


@router.get("/nodes")
def node_list(here: Here, pool: Pool = names.DEFAULT_POOL) -> NodeList:
    """Machines with their devices."""
    with here.store.read() as session:
        return NodeList(items=seen.nodes(session, pool))


@router.post("/nodes/{node}/drain", openapi_extra=body_schema(DrainAsked, {"reason": "new disk", "grace_seconds": 300}))
async def drain(
    node: str,
    here: Here,
    person: Person,
    body: Annotated[DrainAsked, Depends(json_body(DrainAsked))],
    pool: Pool = names.DEFAULT_POOL,
) -> Ordered:
    """Give a node, or one device, no new leases, and tell those that it has to let go."""
    return await changing.drain(here, pool, node, person, body)


@router.post("/nodes/{node}/cordon", openapi_extra=body_schema(CordonAsked, {"reason": "a noisy fan"}))
async def cordon(
    node: str,
    here: Here,
    person: Person,
    body: Annotated[CordonAsked, Depends(json_body(CordonAsked))],
    pool: Pool = names.DEFAULT_POOL,
) -> Ordered:
    """Give a node, or one device, no new leases; those that it has go on."""
    return await changing.cordon(here, pool, node, person, body)


@router.post("/nodes/{node}/undrain", openapi_extra=body_schema(UndrainAsked, {}))
async def undrain(
    node: str,
    here: Here,
    person: Person,
    body: Annotated[UndrainAsked, Depends(json_body(UndrainAsked))],
    pool: Pool = names.DEFAULT_POOL,
) -> Ordered:
    """Let it have leases again."""
    return await changing.undrain(here, pool, node, person, body)
