"""What a lifecycle does, on a real Temporal server with control's real activities."""

import pytest

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


@pytest.mark.parametrize(
    ("unit", "at", "said"),
    [
        ("epoch", "epoch 121, step 3 of 9", "7 epochs; resumed at epoch 121, step 3 of 9"),
        ("", "", "7 rounds; resumed at round 120"),  # by an older Everloop, which had LightGBM alone
    ],
)
async def test_a_training_that_was_resumed_says_what_it_kept_and_what_it_did_again_in_its_trainers_own_unit(
    stack: Stack, unit: str, at: str, said: str
) -> None:
    stack.compute.unit = unit
    resumed = Resumed(times=1, step=120, token=3, steps_again=12, seconds_again=4.2, at=at)
    stack.compute.ran = Ran(device="cpu0", token=4, attempt=2, seconds=9, resumed=resumed)
    handle = await stack.submit()

    await stack.decide(handle.id)
    await handle.result()

    (train,) = [stage for stage in stack.stage_rows(handle.id) if stage.stage == "train"]
    assert train.summary == f"{said} from a checkpoint of token 3; 4 s of work done again"
    assert train.ran["resumed"]["steps_again"] == 12
    assert (await stack.verified()).differences == []
