"""A fork keeps what an earlier lifecycle found, by reference, and does the rest anew."""

from typing import Any

import pytest
from temporalio.client import WorkflowHandle

from api.fork import forked
from everloop import names, signing, starts
from everloop.contracts import Fork, LifecycleAnswer, LifecycleRequest
from everloop.errors import BadSignature, Invalid, InvalidSpec
from everloop.specs import LifecycleSpec
from tests.temporal.conftest import SPEC, Stack
from tests.temporal.test_stage import live_leases


async def fork(
    stack: Stack, of: WorkflowHandle[Any, Any], stage: str, name: str = "fork", **changes: Any
) -> WorkflowHandle[Any, LifecycleAnswer]:
    """What the API starts."""
    row = stack.row(of.id)
    assert row is not None
    spec = forked(LifecycleSpec.model_validate_json(row.spec), stage, changes)
    id_ = f"{stack.prefix}-{name}"
    request = LifecycleRequest(
        spec=spec,
        body_digest=signing.digest(spec),
        submitted_by="ada",
        fork=Fork.model_validate({"lifecycle": row.id, "run_id": row.run_id, "stage": stage}),
    )
    return await stack.client.start_workflow(
        names.LIFECYCLE, starts.signed(stack.signer, id_, request), id=id_, task_queue=names.CONTROL,
        result_type=LifecycleAnswer,
    )  # fmt: skip


def digests(stack: Stack, lifecycle: str) -> dict[str, dict[str, str]]:
    return {row.stage: row.blobs for row in stack.stage_rows(lifecycle)}


async def test_a_fork_does_only_what_comes_from_its_stage_on_and_refers_to_the_rest(stack: Stack) -> None:
    first = await stack.submit(until="evaluate")
    await first.result()
    before = stack.compute.stages()

    second = await fork(stack, first, "train", **{"training.rounds": 800, "until": None})
    await stack.gate(second.id)

    done = stack.compute.stages()[len(before) :]
    assert done == ["train", "evaluate", "refit", "export"]
    assert dict(stack.compute.calls)["train"].spec.training.rounds == 800
    for stage in ("snapshot", "prepare"):
        assert digests(stack, second.id)[stage] == digests(stack, first.id)[stage]
    assert [row.status for row in stack.stage_rows(second.id)][:-1] == ["done"] * 8
    third = await fork(stack, second, "evaluate", "again", metric="log_loss")  # of a fork
    await stack.gate(third.id)
    assert stack.compute.stages()[len(before) + 4 :] == ["evaluate", "refit", "export"]
    assert live_leases(stack) == 0
    assert (await stack.verified()).differences == []


async def test_what_was_asked_otherwise_is_not_kept_and_a_person_is_told(stack: Stack) -> None:
    """The first one prepared its rows when no champion answered: which rows are fresh has changed."""
    first = await stack.submit("first")
    await stack.decide(first.id)
    await stack.status(first.id, "released")

    second = await fork(stack, first, "train")
    row = await stack.status(second.id, "needs_attention")

    assert (row.stage, row.error["error"]) == ("prepare", "Conflict")
    assert "champion differs by now" in row.error["message"]
    assert row.error["hint"] == f"`everloop fork {first.id} --from prepare` does it again"


async def test_a_stage_that_was_not_done_there_is_not_kept(stack: Stack) -> None:
    first = await stack.submit(until="prepare")
    await first.result()

    second = await fork(stack, first, "evaluate", until=None)
    row = await stack.status(second.id, "needs_attention")

    assert (row.stage, row.error["error"]) == ("train", "NotFound")


def test_changes_that_an_earlier_stage_reads_are_refused_with_the_reason() -> None:
    spec = LifecycleSpec.model_validate(SPEC)

    assert forked(spec, "train", {"training.rounds": 800}).training.rounds == 800
    assert forked(spec, "validate", {"features.exclude": ["id"]}).features.exclude == ("id",)
    for stage, changes, field, words in (
        ("train", {"features.exclude": ["id"]}, "features", "read by validate, which comes before train"),
        ("train", {"target": "other"}, "target", "read by snapshot"),
        ("evaluate", {"training.rounds": 5}, "training", "read by train"),
        ("approve", {}, "stage", "cannot be forked from approve"),
        ("snapshot", {}, "stage", "cannot be forked from snapshot"),
        ("train", {"target.x": 1}, "target.x", "no part 'target'"),
    ):
        with pytest.raises(Invalid, match=words) as refused:
            forked(spec, stage, changes)
        assert refused.value.field == field
    with pytest.raises(InvalidSpec, match="rounds"):
        forked(spec, "train", {"training.rounds": "many"})


def test_what_is_kept_is_part_of_what_the_api_signs(stack_keys: tuple[signing.Signer, dict[str, str]]) -> None:
    signer, keys = stack_keys
    spec = LifecycleSpec.model_validate(SPEC)
    fork_ = Fork(lifecycle="mine", run_id="r", stage="train")
    request = LifecycleRequest(spec=spec, body_digest=signing.digest(spec), submitted_by="ada", fork=fork_)
    sent = starts.signed(signer, "one", request).model_dump(mode="json")

    starts.check("one", sent, keys)
    for forged in ({"fork": None}, {"fork": sent["fork"] | {"lifecycle": "theirs"}}):
        with pytest.raises(BadSignature):
            starts.check("one", sent | forged, keys)


@pytest.fixture
def stack_keys(tmp_path: Any) -> tuple[signing.Signer, dict[str, str]]:
    signing.create_keys(tmp_path)
    return signing.Signer(tmp_path), signing.trusted_keys(tmp_path)
