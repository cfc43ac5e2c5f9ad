"""A search as a child of its lifecycle: numbers, budget, lease, what a person says, and what it leaves in SQL."""

import asyncio
from typing import Any

import pytest
from sqlmodel import col, select
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from activities import lease_ledger as ledger
from activities.registry import champion
from activities.search import SearchOnControl, joined
from everloop import names
from everloop.artifacts import Artifacts
from everloop.contracts import BeginRequest, SearchOrder, TrainRequest, TrialRequest
from everloop.store import LeaseRow, StudyRow, TrialRow
from everloop.trials import Plan, Point, Trial
from tests.temporal.conftest import Stack, eventually
from tests.temporal.test_pause import holding, tell
from tests.temporal.test_preemption import leases, queues
from tests.temporal.test_stage import live_leases


def study(stack: Stack, lifecycle: str) -> StudyRow | None:
    with stack.store.read() as session:
        query = select(StudyRow).where(StudyRow.lifecycle == lifecycle).order_by(col(StudyRow.started_at).desc())
        return session.exec(query).first()


def trials(stack: Stack, lifecycle: str) -> list[Trial]:
    found = study(stack, lifecycle)
    assert found is not None
    with stack.store.read() as session:
        rows = session.exec(select(TrialRow).where(TrialRow.study == found.id).order_by(col(TrialRow.number))).all()
    return [Trial.model_validate(row.record) for row in rows]


def asked(stack: Stack) -> list[TrialRequest]:
    return [request for stage, request in stack.compute.calls if stage == "trial" and isinstance(request, TrialRequest)]


def train(stack: Stack, lifecycle: str) -> str:
    return [row for row in stack.stage_rows(lifecycle) if row.stage == "train"][-1].summary


def search(**said: Any) -> dict[str, Any]:
    return {"search": {"budget": {"trials": 12}, "families": ["linear"]} | said, "until": "train"}


@pytest.mark.history
async def test_a_search_gives_each_number_once_under_a_lease_of_its_own_and_its_best_is_learned(stack: Stack) -> None:
    handle = await stack.submit(**search())

    answer = await handle.result()

    assert answer.outcome == "done"
    found = trials(stack, handle.id)
    assert [trial.number for trial in found] == list(range(12))
    assert [trial.knew for trial in found] == list(range(12))  # one at a time: each knew all before it
    best = "best of 12 trials: auc 0.8667 (linear, trial 11); all 12 trials of its budget were made"
    assert train(stack, handle.id) == f"lightgbm, 7 rounds; {best}"
    row = study(stack, handle.id)
    assert row is not None
    assert (row.state, row.best, row.told, row.sentence) == ("budget", 11, 12, best)
    (learned,) = [request for stage, request in stack.compute.calls if stage == "train"]
    assert isinstance(learned, TrainRequest) and learned.searched is not None
    assert learned.searched.study.told == 12
    before, during, after = (lease for lease in every_lease(stack))
    assert (before.workflow_id, during.workflow_id, after.workflow_id) == (
        handle.id,
        names.search_id(handle.id),
        handle.id,
    )
    assert before.ended_at <= during.granted_at and during.ended_at <= after.granted_at
    assert (await stack.verified()).differences == []


def every_lease(stack: Stack) -> list[LeaseRow]:
    with stack.store.read() as session:
        return list(session.exec(select(LeaseRow).order_by(col(LeaseRow.token))).all())


async def test_a_search_that_time_limits_ends_early_when_it_gains_no_more_and_says_so(stack: Stack) -> None:
    stack.compute.value = lambda number: 0.8 if number >= 3 else 0.5
    stack.compute.trial_seconds = 0.01
    handle = await stack.submit(**search(budget="1h"))

    await handle.result()

    said = train(stack, handle.id)
    assert "auc 0.8 (linear, trial 3); ended early: no gain in the last" in said
    assert 29 <= len(trials(stack, handle.id)) < 50


async def test_a_person_takes_the_best_so_far_and_only_while_a_search_runs(stack: Stack) -> None:
    stack.compute.hooks["trial"] = holding_after(stack, 3)
    handle = await stack.submit(**search(budget="1h"))
    await eventually(lambda: (row := study(stack, handle.id)) and row.told >= 3)

    order = SearchOrder(action="take_best", person="ada", reason="good enough")
    await stack.client.get_workflow_handle(handle.id).execute_update(names.SEARCH_ORDER, order)
    await handle.result()

    assert "ada took the best so far: good enough" in train(stack, handle.id)
    other = await stack.submit("other", until="train")
    with pytest.raises(WorkflowUpdateFailedError):
        await stack.client.get_workflow_handle(other.id).execute_update(names.SEARCH_ORDER, order)


def holding_after(stack: Stack, calls: int) -> Any:
    """Trials beyond *calls* jobs run until they are cancelled."""
    _, _ = holding(stack, "trial")
    wait = stack.compute.hooks.pop("trial")

    async def hook() -> None:
        if len(asked(stack)) > calls:
            await wait()

    return hook


async def test_a_paused_search_holds_nothing_and_goes_on_with_the_same_study(stack: Stack) -> None:
    stack.compute.hooks["trial"] = holding_after(stack, 3)
    handle = await stack.submit(**search())
    await eventually(lambda: len(asked(stack)) == 4)

    await tell(stack, handle.id, "pause")
    paused = await eventually(lambda: (row := study(stack, handle.id)) and row.state == "paused" and row)
    assert paused.sentence.endswith(", paused")
    await eventually(lambda: live_leases(stack) == 0)
    await tell(stack, handle.id, "resume")
    await handle.result()

    assert [trial.knew for trial in trials(stack, handle.id)] == list(range(12))
    assert study(stack, handle.id).id == paused.id
    assert (await stack.verified()).differences == []


@pytest.mark.history
async def test_a_long_search_continues_as_new_with_the_same_members_under_a_new_token(stack: Stack) -> None:
    stack.compute.trial_seconds = 0.001
    handle = await stack.submit(**search(budget={"trials": 350}))

    await handle.result()

    assert [trial.number for trial in trials(stack, handle.id)] == list(range(350))
    first, second = leases(stack, names.search_id(handle.id))
    assert (second.follows, second.device, second.request_id) == (first.token, first.device, first.request_id)
    assert first.run_id != second.run_id
    assert live_leases(stack) == 0
    assert (await stack.verified()).differences == []


async def test_parallel_trials_run_on_as_many_members_as_there_are_and_none_is_lost_or_doubled(stack: Stack) -> None:
    pool = stack.client.get_workflow_handle(names.pool_id(names.DEFAULT_POOL))
    await pool.signal(names.POOL_INVENTORY, ["cpu0", "cpu1:light", "cpu2", "cpu3"])
    await asyncio.sleep(0.5)
    fenced: list[int] = []

    async def trial() -> None:
        await asyncio.sleep(0.05 * (len(asked(stack)) % 3))
        if len(asked(stack)) == 9 and not fenced:  # its lease is taken away in the middle
            (held,) = [row for row in leases(stack, names.search_id(handle.id)) if row.state == "active"]
            fenced.append(held.token)
            ledger.end(stack.store, names.DEFAULT_POOL, held.token, "fenced")
            await pool.signal(names.POOL_WAKE)

    stack.compute.hooks["trial"] = trial
    handle = await stack.submit(**search(budget={"trials": 30}, parallel=8))

    await handle.result()

    found = trials(stack, handle.id)
    assert [trial.number for trial in found] == list(range(30))
    assert {trial.device for trial in found} >= {"cpu0", "cpu2", "cpu3"}
    for trial in found:
        assert trial.number not in trial.beside and trial.knew <= 30


@pytest.mark.history
async def test_a_search_lets_go_for_others_and_comes_back_to_the_same_questions(stack: Stack) -> None:
    queues(stack, tabular=0, vision=1)
    stack.compute.hooks["trial"] = holding_after(stack, 3)
    taken = await stack.submit("taken", queue="tabular", model=f"taken-{stack.prefix}", **search())
    await eventually(lambda: len(asked(stack)) == 4)

    starved = await stack.submit("starved", queue="vision", model=f"starved-{stack.prefix}", until="train")
    await starved.result()
    await taken.result()

    assert [trial.knew for trial in trials(stack, taken.id)] == list(range(12))
    ended, again = [request for request in asked(stack) if request.numbers == (3,)]
    assert ended.model_copy(update={"slot": again.slot}) == again


async def test_a_search_of_which_nothing_comes_to_its_end_parks_the_lifecycle(stack: Stack) -> None:
    stack.compute.value = lambda _: float("nan")
    stack.compute.hooks["trial"] = failing()
    handle = await stack.submit(**search(budget={"trials": 2}))

    row = await stack.status(handle.id, "needs_attention")

    assert row.error["message"] == "none of 2 trials came to its end: no memory for it"


async def test_a_search_that_cannot_write_down_what_has_ended_fails_and_gives_its_lease_back_itself(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(*_: Any) -> None:
        raise ApplicationError("the trials are not written", type="Invalid", non_retryable=True)

    monkeypatch.setattr(SearchOnControl, "_tell", tell)
    handle = await stack.submit(**search(parallel=2))

    row = await stack.status(handle.id, "needs_attention")

    assert row.error["message"].endswith("the trials are not written")
    assert {lease.state for lease in leases(stack, names.search_id(handle.id))} == {"released"}


async def test_a_retraining_begins_from_the_champions_parameters_on_a_quarter_of_the_budget(stack: Stack) -> None:
    handle = await stack.submit()
    await stack.decide(handle.id)
    await handle.result()
    spec = stack.spec(search={"budget": "60s"})
    now = champion(stack.store, spec.project, spec.model)
    (asked_train,) = [request for stage, request in stack.compute.calls if stage == "train"]
    assert isinstance(asked_train, TrainRequest) and asked_train.snapshot is not None
    given = {"study": "again", "lifecycle": "two", "spec": spec, "prepared": asked_train.prepared, "champion": now}
    begin = BeginRequest.model_validate(given | {"snapshot": asked_train.snapshot, "again": True})

    made = SearchOnControl(stack.store, stack.artifacts)._begin(begin)  # without a workflow

    plan = Plan.model_validate_json(stack.artifacts.get(made.plan))
    assert plan.points == (Point(family="lightgbm", parameters={}, origin="champion"),)
    with stack.store.read() as session:
        assert session.get_one(StudyRow, "again").seconds == 15


def failing() -> Any:
    from everloop.errors import JobFailed

    def hook() -> None:
        raise JobFailed("no memory for it")

    return hook


def test_blobs_of_a_study_are_few_and_hold_every_trial_in_order(artifacts: Artifacts) -> None:
    blobs: tuple[Any, ...] = ()
    written = 0
    for number in range(300):
        blobs = joined(artifacts, blobs, [Trial(number=number, state="complete", values=(0.5,))])
        written += blobs[-1].size_bytes
    lines = [line for blob in blobs for line in artifacts.get(blob).splitlines()]

    assert [Trial.model_validate_json(line).number for line in lines] == list(range(300))
    assert len(blobs) <= 10
    assert written < 12 * sum(blob.size_bytes for blob in blobs)
