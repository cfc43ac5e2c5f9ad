"""Histories of all released code still replay, and so do those that were made just now.

`histories/` has a folder per version that landed: runs of each may be open somewhere. A new version is recorded with
`EVERLOOP_RECORD=0.2.0-name pytest tests/temporal/test_replay.py tests/temporal`, once, into the folder of that name:
what this file makes, and beside it the runs of tests that are marked `history`. A folder that is there is never begun
anew: while a version is in the making remove its folder first. Remove an earlier one only when a change of a workflow
is not meant to carry its open runs, and say so in the changelog.
"""

import json
import os
from pathlib import Path

import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowHistory
from temporalio.worker import Replayer

from everloop import names
from everloop.contracts import AttendRequest
from everloop.errors import ParityFailed
from everloop.payloads import converter
from everloop.records import Verdict
from tests.fakes import at
from tests.temporal.conftest import HISTORIES, Stack
from tests.temporal.test_drift import MONITOR, check, traffic
from tests.temporal.test_reset import reset, workflow_task_after
from tests.temporal.test_stage import failing
from workers import connect, control
from workflows.inputs import Inputs

OF_ALL = {names.LIFECYCLE, names.APPROVAL, names.RELEASE, names.DRIFT_CHECK, names.GPU_POOL}
NEW_ALONE = {"0.4.1-score": {names.SCORE}}
"""Versions that hold what was new in them alone."""
RECORDED = sorted(HISTORIES.glob("*/*.json"))


def replayer() -> Replayer:
    return Replayer(
        workflows=control.WORKFLOWS,
        data_converter=converter,
        workflow_runner=connect.sandbox(),
        interceptors=[Inputs()],
    )


def begin_recording() -> Path | None:
    """The new folder that `EVERLOOP_RECORD` names, if it names one."""
    version = os.environ.get("EVERLOOP_RECORD")
    if not version:
        return None
    folder = HISTORIES / version
    folder.mkdir()  # fails where it is there: histories of a version are written once
    return folder


@pytest.mark.parametrize("version", sorted(path.name for path in HISTORIES.iterdir()))
def test_each_version_has_a_stored_history_of_each_workflow(version: str) -> None:
    started = [json.loads(path.read_text())["events"][0] for path in RECORDED if path.parent.name == version]
    types = {event["workflowExecutionStartedEventAttributes"]["workflowType"]["name"] for event in started}

    assert types >= OF_ALL if version not in NEW_ALONE else types == NEW_ALONE[version]


def test_a_recorded_version_is_never_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_RECORD", RECORDED[0].parent.name)

    with pytest.raises(FileExistsError):
        begin_recording()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_a_stored_history_replays_on_this_code(path: Path) -> None:
    history = json.loads(path.read_text())
    await replayer().replay_workflow(WorkflowHistory.from_json(history.pop("workflowId"), history))


async def test_everything_that_was_just_made_replays(stack: Stack) -> None:
    folder = begin_recording()
    await every_kind_of_run(stack)

    seen: dict[str, int] = {}
    async for execution in stack.client.list_workflows():
        pool = execution.workflow_type == names.GPU_POOL and execution.status is WorkflowExecutionStatus.RUNNING
        if stack.prefix not in execution.id and not pool:  # the server is shared, also with tests that attack it
            continue
        history = await stack.client.get_workflow_handle(execution.id, run_id=execution.run_id).fetch_history()
        await replayer().replay_workflow(history)
        kind = execution.workflow_type.rsplit(".", 1)[-1].lower()
        seen[kind] = seen.get(kind, 0) + 1
        if folder and (kind != "gpupool" or seen[kind] == 1):
            stored = {"workflowId": execution.id} | json.loads(history.to_json())
            (folder / f"{kind}-{seen[kind]}.json").write_text(json.dumps(stored))
    assert seen["lifecycle"] >= 5
    assert seen["approval"] >= 3
    assert seen["driftcheck"] == 1


async def every_kind_of_run(stack: Stack) -> None:
    """Released, parked and retried, reset at its gate, rejected, cancelled, drifted and retrained."""
    stack.compute.hooks["export"] = failing(ParityFailed("3 rows differ"), times=1)
    first = await stack.submit("first", monitor=MONITOR)
    await stack.status(first.id, "needs_attention")
    retry = AttendRequest(action="retry", person="ada", stage="export")
    await first.execute_update(names.ATTEND, retry)
    old = await stack.gate(first.id)
    await reset(stack, first.id, await workflow_task_after(stack, first.id, "everloop.training.train"))
    await stack.gate(first.id, other_than=old.nonce)
    await stack.decide(first.id)
    await stack.status(first.id, "released")

    rejected, cancelled = await stack.submit("rejected"), await stack.submit("cancelled")
    await stack.gate(rejected.id)
    await stack.decide(rejected.id, Verdict.REJECT, comment="no")
    await stack.gate(cancelled.id)
    await cancelled.cancel()
    await stack.status(cancelled.id, "cancelled")

    stack.compute.share, stack.compute.verdict = 0.9, "not_better"
    model = stack.spec().model
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2))
    await check(stack, model)
    await stack.status(f"retrain/default/{model}/20260101T000000Z-20260102T000000Z", "not_better")
