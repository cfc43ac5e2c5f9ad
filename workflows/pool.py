"""An operator's order to a pool: one short workflow each, so that it is carried out once and stands in a history."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

from everloop import names
from everloop.contracts import PoolActivities
from everloop.orders import PoolOrdered, SignedPoolOrder

ORDER_TIMEOUT = timedelta(seconds=30)
TRIES = RetryPolicy(initial_interval=timedelta(seconds=0.2), maximum_interval=timedelta(seconds=5))


@workflow.defn(name=names.POOL_ORDER)
class PoolOrdering:
    """Carries out one order. The ledger's transaction does all of it or nothing."""

    @workflow.run
    async def run(self, signed: SignedPoolOrder) -> PoolOrdered:
        """What has changed. Fails with `BadSignature`, `NotFound` or `Conflict`, and then nothing has."""
        return await workflow.execute_activity_method(
            PoolActivities.order,
            signed,
            start_to_close_timeout=ORDER_TIMEOUT,
            retry_policy=TRIES,
            summary=f"{signed.order.action} of pool {signed.order.pool}, ordered by {signed.order.person}"[:200],
        )
