"""An operator's order: carried out once when the API signed it, refused otherwise, and never half done."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ActivityError, ApplicationError

from activities import lease_queues
from everloop import names, orders, signing
from everloop.amounts import Counted
from everloop.orders import PoolOrder, PoolOrdered, SignedPoolOrder
from everloop.queues import Queue
from everloop.store import DeviceRow
from tests.temporal.conftest import Stack

VISION = (Queue("default"), Queue("vision", quota=Counted(2, -1)))


def order(pool: str, **changes: Any) -> PoolOrder:
    now = datetime.now(UTC)
    given = {"action": "queues", "pool": pool, "person": "ada", "queues": VISION}
    return PoolOrder(**({"ordered_at": now, "expires_at": now + timedelta(minutes=1)} | given | changes))


async def ordered(stack: Stack, signed: SignedPoolOrder) -> PoolOrdered:
    return await stack.client.execute_workflow(
        names.POOL_ORDER,
        signed,
        id=names.pool_order_id(signed.order.pool, uuid.uuid4().hex),
        task_queue=names.CONTROL,
        result_type=PoolOrdered,
    )


async def refused(stack: Stack, signed: SignedPoolOrder) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as failed:
        await ordered(stack, signed)
    assert isinstance(failed.value.cause, ActivityError)
    assert isinstance(failed.value.cause.cause, ApplicationError)
    return failed.value.cause.cause


@pytest.fixture
def pool(stack: Stack) -> str:
    """A pool of this test's own, of three cores."""
    name = f"pool-{stack.prefix}"
    with stack.store.write() as session:
        session.add(DeviceRow(pool=name, name="cpu0", node="alpha", cores=3))
    return name


def tree(stack: Stack, pool: str) -> tuple[Queue, ...]:
    with stack.store.read() as session:
        return lease_queues.tree(session, pool)


async def test_a_signed_tree_replaces_the_one_that_the_person_saw(stack: Stack, pool: str) -> None:
    before = orders.tree_digest(tree(stack, pool))

    done = await ordered(stack, orders.sign(stack.signer, order(pool, before=before)))

    assert done.done == f"the queues of pool {pool} are changed"
    assert tree(stack, pool) == VISION
    again = await ordered(stack, orders.sign(stack.signer, order(pool, before=before)))
    assert again.done == "the queues are as they were"
    late = await refused(stack, orders.sign(stack.signer, order(pool, before=before, queues=(Queue("other"),))))
    assert late.type == "Conflict"
    assert tree(stack, pool) == VISION


async def test_what_the_api_did_not_sign_so_or_long_ago_is_refused(stack: Stack, pool: str, tmp_path: Any) -> None:
    signing.create_keys(tmp_path / "strangers")
    stranger = signing.Signer(tmp_path / "strangers")
    mine = orders.sign(stack.signer, order(pool))
    now = datetime.now(UTC)
    past = order(pool, ordered_at=now - timedelta(hours=2), expires_at=now - timedelta(hours=1))

    for signed in (
        orders.sign(stranger, order(pool)),
        mine.model_copy(update={"order": order(pool, person="eve")}),
        orders.sign(stack.signer, past),
    ):
        assert (await refused(stack, signed)).type == "BadSignature"
    assert tree(stack, pool) == (Queue("default"),)


async def test_a_tree_that_promises_more_than_there_is_changes_nothing(stack: Stack, pool: str) -> None:
    error = await refused(stack, orders.sign(stack.signer, order(pool, queues=(Queue("vision", quota=Counted(4, 0)),))))

    assert (error.type, error.message) == (
        "Invalid",
        "quotas promise 4 cores (vision 4 cores), and the pool has 3 cores",
    )
    assert tree(stack, pool) == (Queue("default"),)
