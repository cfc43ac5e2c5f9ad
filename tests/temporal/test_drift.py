"""The monitor: each closed window once, and at most one retraining for it."""

import asyncio
import dataclasses
import io
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType
from sqlmodel import select
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.testing import ActivityEnvironment

from activities.drift import DriftLedger
from api.drift import checks as drift_views
from everloop import console, names
from everloop.contracts import CheckRequest, TriggerRequest
from everloop.errors import Conflict, JobFailed
from everloop.predictions import PredictionLog
from everloop.records import Verdict, Window
from everloop.store import DriftRow, MonitorRow, TriggerRow
from tests.fakes import at
from tests.temporal.conftest import Stack, eventually
from tests.temporal.test_stage import failing

MONITOR = {"every": "PT1H", "window": "day", "idle": "PT1H", "share": 0.5, "minimum_rows": 1}


async def released(stack: Stack, **monitor: Any) -> str:
    handle = await stack.submit(uuid.uuid4().hex[:8], monitor=MONITOR | monitor)
    await stack.decide(handle.id)
    await handle.result()
    return stack.spec().model


def traffic(stack: Stack, model: str, *moments: datetime, logged_at: datetime | None = None) -> None:
    log = PredictionLog(stack.settings.predictions_dir / "default" / model)
    log.append(
        [
            {
                "request_id": uuid.uuid4().hex,
                "row": 0,
                "event_time": moment.isoformat(),
                "logged_at": (logged_at or moment).isoformat(),
                "version": 1,
                "features": {},
                "prediction": {},
            }
            for moment in moments
        ]
    )
    log.close()


async def check(stack: Stack, model: str) -> int:
    """One check, as the schedule starts it."""
    return await stack.client.execute_workflow(
        names.DRIFT_CHECK,
        CheckRequest(project="default", model=model),
        id=f"check-{stack.prefix}-{uuid.uuid4().hex}",
        task_queue=names.CONTROL,
        result_type=int,
    )


def checks(stack: Stack, model: str) -> list[DriftRow]:
    with stack.store.read() as session:
        query = select(DriftRow).where(DriftRow.model == model).order_by(DriftRow.window_start)
        return list(session.exec(query).all())


async def retrainings(client: Client, model: str) -> list[str]:
    found = client.list_workflows(f"WorkflowType = '{names.LIFECYCLE}' AND {names.MODEL.name} = '{model}'")
    return [execution.id async for execution in found if execution.id.startswith("retrain/")]


async def test_every_window_that_has_closed_is_checked_once_and_an_open_one_is_not(stack: Stack) -> None:
    model = await released(stack)
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2) + timedelta(hours=5), at(2026, 1, 4), at(2026, 1, 6))

    first, second = await check(stack, model), await check(stack, model)

    rows = checks(stack, model)
    assert (first, second) == (3, 0)
    assert [row.window_start for row in rows] == [at(2026, 1, 1), at(2026, 1, 2), at(2026, 1, 4)]
    assert {row.verdict for row in rows} == {"quiet"}
    assert (await stack.verified()).differences == []


async def test_a_window_waits_for_late_rows_and_closes_by_silence_when_nothing_comes(stack: Stack) -> None:
    model = await released(stack, lateness="PT6H")
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2) + timedelta(hours=5))
    assert await check(stack, model) == 0

    traffic(stack, model, at(2026, 1, 2) + timedelta(hours=7))
    assert await check(stack, model) == 1

    await released(stack, idle="PT0S")  # the spec of the model's next release
    assert await check(stack, model) == 1


async def test_fifty_checks_of_a_drifted_window_are_one_retraining(stack: Stack) -> None:
    model = await released(stack)
    stack.compute.share = 0.9
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2))

    await asyncio.gather(*(check(stack, model) for _ in range(50)))

    assert await eventually_ids(stack, model) == [f"retrain/default/{model}/20260101T000000Z-20260102T000000Z"]
    with stack.store.read() as session:
        assert len(session.exec(select(TriggerRow).where(TriggerRow.model == model)).all()) == 1


async def eventually_ids(stack: Stack, model: str) -> list[str]:
    for _ in range(100):
        if found := await retrainings(stack.client, model):
            return found
        await asyncio.sleep(0.1)
    raise TimeoutError("no retraining was started")


async def test_while_a_retraining_is_open_another_drifted_window_starts_none(stack: Stack) -> None:
    model = await released(stack)
    stack.compute.share = 0.9
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2), at(2026, 1, 3))

    await check(stack, model)

    assert [row.verdict for row in checks(stack, model)] == ["retrain", "already_triggered"]
    assert len(await eventually_ids(stack, model)) == 1

    retraining = f"retrain/default/{model}/20260101T000000Z-20260102T000000Z"
    await stack.decide(retraining, Verdict.REJECT, comment="not now")
    await stack.status(retraining, "rejected")
    traffic(stack, model, at(2026, 1, 4))
    await check(stack, model)
    assert checks(stack, model)[-1].verdict == "retrain"
    assert (await stack.verified()).differences == []


async def test_a_retraining_ends_by_itself_when_the_challenger_is_not_better(stack: Stack) -> None:
    model = await released(stack)
    stack.compute.share, stack.compute.verdict = 0.9, "not_better"
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2))

    await check(stack, model)
    row = await stack.status(f"retrain/default/{model}/20260101T000000Z-20260102T000000Z", "not_better")

    assert (row.trigger, row.submitted_by) == ("drift:2026-01-01T00:00:00Z", "monitor")
    assert row.reason == "not_better: .8 against .7"


async def test_the_schedule_starts_checks_and_survives_the_next_release(stack: Stack) -> None:
    model = await released(stack)
    handle = stack.client.get_schedule_handle(names.monitor_id("default", model))
    await handle.pause(note="by a person")
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2))

    await released(stack, every="PT2H")
    described = await handle.describe()
    await handle.trigger()
    await eventually(lambda: checks(stack, model))

    assert described.schedule.state.paused  # a person's pause stays
    assert described.schedule.spec.intervals[0].every == timedelta(hours=2)
    async for found in stack.client.list_workflows(f"TemporalScheduledById = '{handle.id}'"):
        assert found.status in (WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.RUNNING)


async def test_a_window_that_cannot_be_measured_is_said_to_have_failed_and_the_next_is_checked(stack: Stack) -> None:
    model = await released(stack)
    stack.compute.hooks["measure"] = failing(JobFailed("ValueError: too many bins"), times=1)
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2), at(2026, 1, 3))

    assert await check(stack, model) == 2

    assert [(row.verdict, row.share) for row in checks(stack, model)] == [("failed", None), ("quiet", 0.0)]
    assert checks(stack, model)[0].reason == "ValueError: too many bins"


async def test_a_retraining_that_was_decided_and_never_started_does_not_block_the_next(stack: Stack) -> None:
    model = await released(stack)
    with stack.store.write() as session:
        session.add(
            TriggerRow(
                project="default",
                model=model,
                window_start=at(2025, 12, 31),
                window_end=at(2026, 1, 1),
                version=1,
                share=0.9,
                verdict="retrain",
                reason="a check that was terminated before it started the lifecycle",
                lifecycle=f"retrain/default/{model}/20251231T000000Z",
                decided_at=at(2026, 1, 1),
            )
        )
    stack.compute.share = 0.9
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2))

    await check(stack, model)

    assert [row.verdict for row in checks(stack, model)] == ["retrain"]


async def test_windows_with_too_few_rows_are_counted_without_a_slot_or_a_job(stack: Stack) -> None:
    model = await released(stack, minimum_rows=3)
    jobs = stack.compute.stages().count("measure")
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2), at(2026, 1, 2), at(2026, 1, 9))

    assert await check(stack, model) == 2

    rows = checks(stack, model)
    assert [(row.rows, row.verdict, row.reason) for row in rows] == [
        (1, "insufficient_data", "1 rows in the window, 3 are needed"),
        (2, "insufficient_data", "2 rows in the window, 3 are needed"),
    ]
    assert stack.compute.stages().count("measure") == jobs
    assert (await stack.verified()).differences == []


async def test_rows_that_come_late_are_counted_and_a_longer_window_goes_on_where_the_shorter_one_ended(
    stack: Stack,
) -> None:
    model = await released(stack)
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2))
    assert await check(stack, model) == 1
    traffic(stack, model, *[at(2026, 1, 1)] * 3, logged_at=datetime.now(UTC))

    await released(stack, window="week")
    stack.compute.share, stack.compute.verdict = 0.9, "not_better"
    traffic(stack, model, at(2026, 1, 6), at(2026, 1, 12))
    assert await check(stack, model) == 1

    with stack.store.read() as session:
        views = drift_views(session, "default", model)
    assert [(view.window_start, view.window_end, view.late_rows) for view in views] == [
        (at(2026, 1, 1), at(2026, 1, 2), 3),
        (at(2026, 1, 5), at(2026, 1, 12), 0),  # Friday's and Sunday's rows belong to a week that had begun before
    ]
    assert "3 rows came after the window was checked" in cells(console.checks([view.model_dump() for view in views]))
    retraining = f"retrain/default/{model}/20260105T000000Z-20260112T000000Z"
    assert views[1].lifecycle == retraining
    await stack.status(retraining, "not_better")

    old = f"retrain/default/{model}/20260112T000000Z"  # as a release of before has named the retraining of a week
    await stack.client.start_workflow("Anything", id=old, task_queue="nobody-polls-this-queue")
    await stack.client.get_workflow_handle(old).terminate()
    traffic(stack, model, at(2026, 1, 19))
    assert await check(stack, model) == 1
    assert checks(stack, model)[-1].lifecycle == old
    assert await retrainings(stack.client, model) == [retraining]


def cells(table: RenderableType) -> str:
    out = Console(width=400, record=True, file=io.StringIO())
    out.print(table)
    return out.export_text()


async def test_a_window_that_is_not_over_is_not_decided_whoever_asks(stack: Stack) -> None:
    model = await released(stack)
    ahead = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    ledger = DriftLedger(stack.store, stack.settings, stack.client)
    surroundings = ActivityEnvironment()
    surroundings.info = dataclasses.replace(surroundings.info, workflow_type=names.DRIFT_CHECK)
    request = TriggerRequest(
        project="default",
        model=model,
        version=1,
        window=Window(start=ahead - timedelta(days=1), end=ahead),
        share=0.9,
        threshold=0.5,
        spec=stack.spec(),
    )

    with pytest.raises(Conflict, match="not over yet"):
        await surroundings.run(ledger.trigger, request)

    with stack.store.read() as session:
        assert session.get_one(MonitorRow, ("default", model)).cursor is None


async def test_one_lasting_drift_stops_retraining_without_gain_before_a_person_looks(stack: Stack) -> None:
    model = await released(stack)
    stack.compute.share, stack.compute.verdict = 0.9, "not_better"
    for day in range(1, 6):
        traffic(stack, model, at(2026, 1, day), at(2026, 1, day + 1))
        await check(stack, model)
        row = checks(stack, model)[-1]
        if row.lifecycle:
            await stack.status(row.lifecycle, "not_better")

    assert [row.verdict for row in checks(stack, model)] == ["retrain"] * 3 + ["breaker_open"] * 2
    assert "the last 3 retrainings brought no better version" in checks(stack, model)[-1].reason

    with stack.store.write() as session:  # as `everloop rearm` does it
        monitor = session.get_one(MonitorRow, ("default", model))
        monitor.rearmed_at = monitor.cursor
        session.add(monitor)
    traffic(stack, model, at(2026, 1, 7))
    await check(stack, model)
    assert checks(stack, model)[-1].verdict == "retrain"
    assert (await stack.verified()).differences == []
