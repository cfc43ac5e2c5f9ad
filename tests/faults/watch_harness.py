"""Control or compute as a process of its own, which kills one of them all at a moment that it is told.

`python watch_harness.py control|compute DATA_DIR TEMPORAL_ADDRESS PLANT`: while `<data>/die` holds `PROCESS MOMENT`,
the first that comes to that moment removes the file and sends SIGKILL to the process of that name (`<data>/NAME.pid`).
"""

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from activities.drift import DriftLedger, ledger, windows
from activities.journal import JournalOnControl
from activities.predictions.index import LogIndex
from everloop import names
from everloop.artifacts import Artifacts
from everloop.contracts import (
    CheckRequest,
    DriftRequest,
    NextWindow,
    ObserveRequest,
    TriggerAnswer,
    TriggerRequest,
)
from everloop.payloads import converter
from everloop.records import DriftReport, Window
from everloop.settings import Settings
from everloop.specs import LifecycleSpec, Monitor
from everloop.store import MonitorRow, Store, TriggerRow
from tests.fakes import QuickCompute
from tests.faults.control_harness import start_pool
from workers import connect, control, process

MOMENTS = ("window", "measure", "before", "after", "start")
"""Of a check: its window is found; it is measured; its decision is about to be made, is made; its retraining starts
(the last is the proof's own, which sees the decision in the ledger)."""
PROCESSES = ("control", "compute", "temporal")


class Orders:
    """The order to kill, for whoever comes to its moment first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def give(self, target: str, moment: str) -> None:
        (self.folder / "die").write_text(f"{target} {moment}")

    def carry_out(self, moment: str) -> None:
        path = self.folder / "die"
        told = path.read_text().split() if path.exists() else []
        if told[1:] != [moment]:
            return
        try:
            path.unlink()
        except FileNotFoundError:
            return  # another attempt was first
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((self.folder / f"{told[0]}.pid").read_text()), signal.SIGKILL)


class WatchedLedger(DriftLedger):
    """The real ledger, between whose steps processes die."""

    orders: Orders

    @activity.defn(name="everloop.drift.next_window")
    async def next_window(self, request: CheckRequest) -> NextWindow:
        found = await super().next_window(request)
        if found.window is not None:
            if PLANT == "cursor before decision":
                await asyncio.to_thread(_move, self._store, request, found.window.end)
            self.orders.carry_out("window")
        return found

    @activity.defn(name="everloop.drift.trigger")
    async def trigger(self, request: TriggerRequest) -> TriggerAnswer:
        self.orders.carry_out("before")
        answer = await super().trigger(request)
        self.orders.carry_out("after")
        return answer


class WatchedCompute(QuickCompute):
    """Measures that everything has drifted; a retraining ends before its gate."""

    orders: Orders

    @activity.defn(name="everloop.drift.measure")
    async def measure(self, request: DriftRequest) -> DriftReport:
        self.orders.carry_out("measure")
        return await super().measure(request)


@activity.defn(name="everloop.release.observe")
async def observe(_request: ObserveRequest) -> None:
    """Serve is not part of this proof."""


# --- planted faults ---------------------------------------------------------------------------------

PLANTS = ("", "no dedupe", "cursor before decision", "watermark without the clock")
PLANT = ""


def plant(fault: str) -> None:
    """Break the ledger in one way: the proof must say so."""
    global PLANT  # noqa: PLW0603
    PLANT = fault
    if fault == "no dedupe":
        ledger.decide = _always_decides
    if fault == "watermark without the clock":
        windows.next_closed = _by_rows_alone


def _move(store: Store, request: CheckRequest, until: datetime) -> None:
    with store.write() as session:
        monitor = session.get_one(MonitorRow, (request.project, request.model))
        monitor.cursor = max(monitor.cursor or until, until)
        session.add(monitor)


def _always_decides(store: Store, request: TriggerRequest, running: str, lifecycle: str) -> TriggerAnswer:
    """Every alert is a retraining of its own."""
    _move(store, CheckRequest(project=request.project, model=request.model), request.window.end)
    answer = TriggerAnswer(verdict="retrain", reason="planted", lifecycle=f"{lifecycle}-{uuid.uuid4().hex[:6]}")
    with store.write() as session:
        session.merge(
            TriggerRow(
                project=request.project,
                model=request.model,
                window_start=request.window.start,
                window_end=request.window.end,
                version=request.version,
                share=request.share,
                verdict=answer.verdict,
                reason=answer.reason,
                lifecycle=answer.lifecycle,
                decided_at=datetime.now(UTC),
            )
        )
    return answer


def _by_rows_alone(log: LogIndex, monitor: Monitor, cursor: datetime | None, now: datetime) -> Window | None:
    """Any row beyond a window's end closes it, also one ahead of the clock."""
    far = datetime.max.replace(tzinfo=UTC)
    window = windows.next_with_a_row(log, monitor, cursor, far)
    return window if window is not None and log.closed(window.end, far) else None


# --- processes --------------------------------------------------------------------------------------


async def main(role: str, data_dir: Path, address: str) -> None:
    settings = Settings(data_dir=data_dir, session=f"watch-{os.getpid()}", temporal_address=address)
    store, artifacts = Store(settings.database), Artifacts(settings.artifacts)
    identity = str(process.identity(role, settings.session))
    client = await Client.connect(address, data_converter=converter, identity=identity)
    orders = Orders(data_dir)
    (data_dir / f"{role}.pid").write_text(str(os.getpid()))
    if role == "compute":
        quick = WatchedCompute(artifacts)
        quick.orders, quick.share, quick.verdict = orders, 0.9, "not_better"
        work = Worker(client, task_queue=names.COMPUTE, activities=quick.all(), interceptors=[connect.ErrorsCross()])
    else:
        ledger = WatchedLedger(store, settings, client)
        ledger.orders = orders
        own = {"observe": observe, "next_window": ledger.next_window, "trigger": ledger.trigger}
        journal = JournalOnControl(store, artifacts, client)
        light = control.activities(client, store, artifacts, settings, journal)
        work = control.worker(client, [own.get(one.__name__, one) for one in light])
    async with work:
        if role == "control":
            await start_pool(client)
        (data_dir / f"{role}.ready").touch()
        await asyncio.Event().wait()


def monitored(spec: LifecycleSpec) -> LifecycleSpec:
    """The monitor of the proof: each hour, no rule that holds a retraining back."""
    rules = {"every": "PT24H", "window": "hour", "idle": "P300D", "share": 0.5, "minimum_rows": 1}
    monitor = Monitor.model_validate(rules | {"breaker": None, "retrainings_a_month": None})
    return spec.model_copy(update={"monitor": monitor})


if __name__ == "__main__":
    plant(PLANTS[int(sys.argv[4])])
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
