"""A monitor's schedule in Temporal, and the row that it is made from."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from temporalio.client import (
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from everloop import names
from everloop.contracts import CheckRequest
from everloop.specs import LifecycleSpec, Monitor
from everloop.store import MonitorRow, Store

CATCH_UP = timedelta(minutes=10)
"""Ticks missed for longer are not made up: one check drains all windows that have closed meanwhile."""


def keep(store: Store, spec: LifecycleSpec) -> datetime | None:
    """Keep what the model's monitor is made from. Returns its cursor, which stays where it is."""
    with store.write() as session:
        row = session.get(MonitorRow, (spec.project, spec.model)) or MonitorRow(
            project=spec.project, model=spec.model, spec="", updated_at=datetime.now(UTC)
        )
        row.spec, row.updated_at = spec.model_dump_json(), datetime.now(UTC)
        if spec.monitor is None or not spec.monitor.quarantine:
            row.quarantined_at, row.quarantine = None, []  # who released it wants none
        session.add(row)
        return row.cursor


def spoken(span: timedelta) -> str:
    seconds = span.total_seconds()
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}{'s' if seconds > length else ''}"
    return f"{seconds:g} seconds"


def schedule(spec: LifecycleSpec, monitor: Monitor) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            names.DRIFT_CHECK,
            CheckRequest(project=spec.project, model=spec.model),
            id=f"{names.monitor_id(spec.project, spec.model)}/check",
            task_queue=names.CONTROL,
            static_summary=f"Drift check of {spec.model}",
            typed_search_attributes=TypedSearchAttributes(
                [SearchAttributePair(names.PROJECT, spec.project), SearchAttributePair(names.MODEL, spec.model)]
            ),
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=monitor.every)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=CATCH_UP),
    )


def replace_by(made: Schedule) -> Callable[[ScheduleUpdateInput], ScheduleUpdate]:
    def update(current: ScheduleUpdateInput) -> ScheduleUpdate:
        made.state = current.description.schedule.state  # a person's pause stays a pause
        return ScheduleUpdate(schedule=made)

    return update


async def gone(deletion: Awaitable[None]) -> None:
    try:
        await deletion
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
