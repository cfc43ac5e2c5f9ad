"""What a lifecycle does, on a real Temporal server with control's real activities."""

from everloop.contracts import LifecycleAnswer
from tests.temporal.conftest import Stack


async def test_a_lifecycle_goes_from_data_to_release_and_leaves_a_clean_journal(stack: Stack) -> None:
    handle = await stack.submit()

    await stack.decide(handle.id)
    answer = await handle.result()

    assert answer == LifecycleAnswer(outcome="released", reason="version 1 takes the traffic", version=1)
    row = stack.row(handle.id)
    assert row is not None and row.status == "released"
    assert [stage.stage for stage in stack.stage_rows(handle.id)] == [
        "snapshot",
        "validate",
        "prepare",
        "train",
        "evaluate",
        "refit",
        "export",
        "register",
        "approve",
        "release",
        "monitor",
    ]
    assert (await stack.verified()).differences == []
