"""Each of our activities serves the workflows that call it, and none serves everybody."""

import dataclasses
import inspect
from datetime import UTC, datetime

import pytest
from temporalio import activity, workflow

from activities import alarm
from activities.execution import Execution
from everloop import contracts, names
from everloop.errors import Forbidden
from workers import control
from workers.admission import SERVES, admit

ACTIVITIES = sorted(
    activity._Definition.must_from_callable(method).name
    for _, group in inspect.getmembers(contracts, inspect.isabstract)
    for _, method in inspect.getmembers(group, inspect.isfunction)
)
OURS = Execution(
    workflow_id="one",
    run_id="run",
    workflow_type="",
    task_queue=names.CONTROL,
    first_run_id="run",
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    parent_id="",
    parent_run_id="",
)
IDS = {
    names.LIFECYCLE: ("one", ""),
    names.DRIFT_CHECK: ("monitor/default/credit/check-1", ""),
    names.APPROVAL: ("one/approval", "one"),
    names.SEARCH: ("one/search", "one"),
    names.RELEASE: ("release/default/credit", "one"),
    names.ROLL_BACK: ("release/default/credit", ""),
    names.GPU_POOL: ("pool/default", ""),
    names.POOL_ORDER: ("order/default/one", ""),
    names.SCORE: ("score/default/credit/one", ""),
}


def caller(kind: str, **changes: object) -> Execution:
    workflow_id, parent = IDS.get(kind, ("stranger", ""))
    made = dataclasses.replace(OURS, workflow_type=kind, workflow_id=workflow_id, parent_id=parent)
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("name", ACTIVITIES)
def test_an_activity_serves_some_workflow_of_ours_and_no_stranger(name: str) -> None:
    served = []
    for kind in IDS:
        try:
            admit(name, caller(kind))
        except Forbidden:
            continue
        served.append(kind)
        with pytest.raises(Forbidden):
            admit(name, caller(kind, task_queue="foreign"))
    assert served, "nobody may call it"
    for kind in ("", "Stranger"):
        with pytest.raises(Forbidden):
            admit(name, caller(kind))


def test_every_rule_is_about_an_activity_that_there_is() -> None:
    assert len(ACTIVITIES) > 20
    for rule in SERVES:
        assert any(name == rule or (rule.endswith(".") and name.startswith(rule)) for name in ACTIVITIES), rule


def test_a_gate_or_rollout_under_another_id_is_refused() -> None:
    for kind in (names.APPROVAL, names.RELEASE, names.ROLL_BACK, names.GPU_POOL, names.SCORE):
        with pytest.raises(Forbidden):
            admit(names.JOURNAL_APPEND, caller(kind, workflow_id="one"))


def test_each_workflow_of_ours_that_cannot_go_on_is_an_alarm():
    ours = {workflow._Definition.must_from_class(one).name for one in control.WORKFLOWS}

    assert set(alarm.TYPES) == ours
