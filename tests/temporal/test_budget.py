"""A budget that is spent holds a lifecycle still, durably, and raising it lets it go on where it was."""

import pytest

from everloop import names, orders
from everloop.budgets import Bounds
from tests.temporal.conftest import Stack, eventually
from tests.temporal.test_pause import holding
from tests.temporal.test_pool_order import order, ordered, refused
from tests.temporal.test_preemption import leases, wake


@pytest.mark.history
async def test_a_lifecycle_whose_budget_is_spent_waits_and_goes_on_when_it_is_raised(stack: Stack) -> None:
    begun, ends = holding(stack, "train")
    handle = await stack.submit(budget={"core_hours": 0.0006})  # 2.2 s of a core
    await begun.wait()

    row = await eventually(lambda: (row := stack.row(handle.id)) and "budget" in row.wait_what and row)

    assert ends == ["cancelled"]  # the pool woke by itself when it was spent
    assert row.wait_what.startswith(f"a free slot (the budget of lifecycle {handle.id} is spent: 0.00")
    assert [lease.notice for lease in leases(stack, handle.id)] == ["budget"]
    await wake(stack)
    assert len(leases(stack, handle.id)) == 1
    money = order(names.DEFAULT_POOL, action="budget", scope="lifecycle", name=handle.id, bounds=Bounds(-1, -1, 5))
    assert (await refused(stack, orders.sign(stack.signer, money))).message == "a budget of money needs prices"

    raised = order(
        names.DEFAULT_POOL, action="budget", scope="lifecycle", name=handle.id, bounds=Bounds(3_600_000_000, -1, -1)
    )
    done = await ordered(stack, orders.sign(stack.signer, raised))

    assert done.done == f"lifecycle {handle.id} may spend 1000.000 core-hours"
    await stack.gate(handle.id)
    train = [row for row in stack.stage_rows(handle.id) if row.stage == "train"]
    assert [row.status for row in train] == ["preempted", "done"]
    assert "the budget of lifecycle" in train[0].summary
    assert (await stack.verified()).differences == []


async def test_prices_are_set_by_a_signed_order(stack: Stack) -> None:
    prices = order(f"pool-{stack.prefix}", action="prices", currency="EUR", core_micros=40_000, gpu_micros=2_000_000)

    done = await ordered(stack, orders.sign(stack.signer, prices))

    assert done.done == "a core costs 0.04 EUR an hour, a GPU 2.00 EUR, from now on"
