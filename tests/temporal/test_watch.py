"""The monitor beyond columns: labels, other measures, and data that is broken rather than moved."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from sqlmodel import select

from activities.drift.quarantine import accepting
from everloop import names
from everloop.labels import LabelLog, labels_of
from everloop.predictions.refusals import Refusals
from everloop.records import Break, Measure, Signature, Window, WindowPerformance
from everloop.store import LabelsRow, MonitorRow, PerformanceRow
from tests.fakes import at
from tests.temporal.conftest import Stack
from tests.temporal.test_drift import MONITOR, check, checks, eventually_ids, released, retrainings, traffic

BROKEN = Break(column="age", kind="missing", why="all values are missing; 2.0% were in training")
MOVED = Measure(name="predictions", value=0.4, threshold=0.1, over=True, why="the answers have moved")


def label(stack: Stack, model: str) -> None:
    signature = Signature(task="binary", fields=(), target="y", classes=("0", "1"), positive="1")
    folder = stack.settings.predictions_dir / "default" / model
    LabelLog(folder).append(labels_of([{"key": "a", "label": 1}], signature, datetime.now(UTC)))


def performed(day: int, value: float, version: int = 1, **more: Any) -> WindowPerformance:
    window = Window(start=at(2026, 1, day), end=at(2026, 1, day + 1))
    return WindowPerformance(
        window=window, version=version, rows=500, labelled=400, metric="auc", value=value, low=value - 0.02,
        high=value + 0.02, **more,
    )  # fmt: skip


def performances(stack: Stack, model: str) -> list[PerformanceRow]:
    with stack.store.read() as session:
        query = select(PerformanceRow).where(PerformanceRow.model == model).order_by(PerformanceRow.window_start)
        return list(session.exec(query).all())


def change(stack: Stack, model: str, **values: Any) -> None:
    with stack.store.write() as session:
        monitor = session.get_one(MonitorRow, ("default", model))
        for name, value in values.items():
            setattr(monitor, name, value)
        session.add(monitor)


async def test_broken_data_causes_no_retraining_until_a_person_lifts_the_quarantine(stack: Stack) -> None:
    model = await released(stack)
    stack.compute.share, stack.compute.broken, stack.compute.verdict = 0.9, (BROKEN,), "not_better"
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2))
    await check(stack, model)
    stack.compute.broken = ()
    traffic(stack, model, at(2026, 1, 3))
    await check(stack, model)

    first, second = checks(stack, model)
    assert (first.verdict, second.verdict) == ("quarantined", "quarantined")
    assert first.reason == (
        "the data is broken, not moved: 'age': all values are missing; 2.0% were in training; no retraining until a "
        f"person says `everloop lift-quarantine {model}`"
    )
    assert "'age' broke in a window before and nobody has said that it is mended" in second.reason
    assert first.broken == [BROKEN.model_dump()]
    assert await retrainings(stack.client, model) == []

    # as `everloop lift-quarantine MODEL --accept` does it
    change(stack, model, quarantined_at=None, quarantine=[], accepted=[accepting(1, BROKEN)])
    stack.compute.broken = (BROKEN,)
    traffic(stack, model, at(2026, 1, 4))
    await check(stack, model)
    assert checks(stack, model)[-1].verdict == "retrain"
    (retraining,) = await eventually_ids(stack, model)
    await stack.status(retraining, "not_better")

    stack.compute.verdict = "better"
    change(stack, model, quarantined_at=at(2026, 1, 5), quarantine=[BROKEN.model_dump()])
    await released(stack, quarantine=False)  # whoever released this spec wants none
    with stack.store.read() as session:
        monitor = session.get_one(MonitorRow, ("default", model))
    assert (monitor.quarantined_at, monitor.quarantine) == (None, [])
    assert (await stack.verified()).differences == []


async def test_a_window_of_which_every_row_was_refused_is_in_quarantine_without_a_job(stack: Stack) -> None:
    model = await released(stack, minimum_rows=100, also=["quality"])
    traffic(stack, model, at(2026, 1, 1))
    refused = Refusals(stack.settings.predictions_dir / "default" / model)
    refused.note("rows[0].age", [at(2026, 1, 2)] * 150)
    refused.note("rows[0].age", [at(2026, 1, 3)] * 99)  # too few to be a window
    refused.flush(now=True)
    traffic(stack, model, at(2026, 1, 4), at(2026, 1, 5))

    await check(stack, model)

    rows = checks(stack, model)
    assert [(row.window_start, row.verdict, row.rows) for row in rows] == [
        (at(2026, 1, 1), "insufficient_data", 1),
        (at(2026, 1, 2), "quarantined", 0),
        (at(2026, 1, 4), "insufficient_data", 1),
    ]
    assert "'age': 150 of 150 rows were refused for it" in rows[1].reason
    assert (rows[1].share, [each["name"] for each in rows[1].measures]) == (None, ["schema"])
    assert "measure" not in stack.compute.stages()
    assert await retrainings(stack.client, model) == []
    with stack.store.read() as session:
        assert [each["column"] for each in session.get_one(MonitorRow, ("default", model)).quarantine] == ["age"]
    assert (await stack.verified()).differences == []


async def test_a_measure_causes_a_retraining_only_where_the_monitor_was_told_to_heed_it(stack: Stack) -> None:
    model = await released(stack)
    stack.compute.measures = (MOVED,)
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2))
    await check(stack, model)
    assert [(row.verdict, row.measures) for row in checks(stack, model)] == [("quiet", [MOVED.model_dump()])]

    await released(stack, also=["predictions"])
    stack.compute.verdict = "not_better"
    traffic(stack, model, at(2026, 1, 3))
    await asyncio.gather(*(check(stack, model) for _ in range(10)))
    assert [row.verdict for row in checks(stack, model)][-1] == "retrain"
    assert checks(stack, model)[-1].reason == "0% of the columns drifted; the threshold is 50%; the answers have moved"
    assert len(await eventually_ids(stack, model)) == 1


async def test_labels_say_how_each_window_was_answered_and_a_bad_one_is_retrained_once(stack: Stack) -> None:
    model = await released(stack, also=["performance"])
    stack.compute.verdict = "not_better"
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2), at(2026, 1, 3))
    await check(stack, model)
    assert stack.compute.stages().count("perform") == 0  # no label has come

    label(stack, model)
    stack.compute.performance = (performed(1, 0.8), performed(2, 0.6), performed(3, 0.5))
    await asyncio.gather(*(check(stack, model) for _ in range(5)))
    retraining = f"retrain/default/{model}/20260102T000000Z-20260103T000000Z"
    row = await stack.status(retraining, "not_better")

    told = performances(stack, model)
    assert [(one.over, one.verdict) for one in told] == [(False, ""), (True, "retrain"), (True, "already_triggered")]
    assert told[1].reason == "its labels say auc 0.6 (0.58 to 0.62); 0.8 at the evaluation of version 1"
    assert (row.trigger, row.submitted_by) == ("labels:2026-01-02T00:00:00Z", names.MONITOR)
    assert await retrainings(stack.client, model) == [retraining]
    with stack.store.read() as session:
        kept = session.get_one(LabelsRow, ("default", model))
    assert (kept.labels, kept.joined, kept.corrected) == (9, 7, 1)

    done = stack.compute.stages().count("perform")
    await check(stack, model)
    assert stack.compute.stages().count("perform") == done  # nothing is new

    stack.compute.performance = (performed(2, 0.9),)  # corrected: the decision stays, the figures do not
    label(stack, model)
    await asyncio.sleep(2.1)
    await check(stack, model)
    told = performances(stack, model)
    assert (told[1].value, told[1].verdict, told[1].lifecycle) == (0.9, "retrain", retraining)
    assert (await stack.verified()).differences == []


async def test_what_another_version_has_answered_is_shown_and_causes_nothing(stack: Stack) -> None:
    model = await released(stack, also=["performance"])
    traffic(stack, model, at(2026, 1, 1), at(2026, 1, 2), at(2026, 1, 3))
    await check(stack, model)
    label(stack, model)
    stack.compute.performance = (performed(1, 0.5, version=7), performed(2, 0.5, alone=False))
    await check(stack, model)
    assert [(one.value, one.verdict) for one in performances(stack, model)] == [(0.5, ""), (0.5, "")]


async def test_a_retraining_on_a_trailing_window_says_since_when_it_learns(stack: Stack) -> None:
    retrain = {"data": "trailing", "window": "30d", "certainty": 0.8}
    handle = await stack.submit("trailing", monitor=MONITOR, time="at", retrain=retrain)
    await stack.decide(handle.id)
    await handle.result()
    model = stack.spec().model
    stack.compute.share, stack.compute.verdict = 0.9, "not_better"
    traffic(stack, model, at(2026, 3, 1), at(2026, 3, 2))
    await check(stack, model)
    (retraining,) = await eventually_ids(stack, model)
    await stack.status(retraining, "not_better")

    asked: Any = [request for stage, request in stack.compute.calls if stage == "evaluate"][-1]
    assert (asked.spec.since, asked.certainty) == (at(2026, 1, 31), 0.8)
    first: Any = next(request for stage, request in stack.compute.calls if stage == "evaluate")
    assert (first.spec.since, first.certainty) == (None, 0.0)
