"""What a lifecycle does, on a real Temporal server with control's real activities."""

from everloop.contracts import LifecycleAnswer
from everloop.records import Ran, Resumed
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


async def test_a_training_that_was_resumed_says_what_it_kept_and_what_it_did_again(stack: Stack) -> None:
    resumed = Resumed(times=1, step=120, token=3, steps_again=12, seconds_again=4.2)
    stack.compute.ran = Ran(device="cpu0", token=4, attempt=2, seconds=9, resumed=resumed)
    handle = await stack.submit()

    await stack.decide(handle.id)
    await handle.result()

    (train,) = [stage for stage in stack.stage_rows(handle.id) if stage.stage == "train"]
    assert train.summary == (
        "7 rounds; resumed at round 120 of at most 400 from a checkpoint of token 3; 4 s of work done again"
    )
    assert train.ran["resumed"]["steps_again"] == 12
    assert (await stack.verified()).differences == []
