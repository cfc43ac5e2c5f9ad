"""`make proof-watch`: kill -9 of control, compute or Temporal during a check, its decision, and the start that follows.

Each time one drifted window is alarmed by one to five checks at once, and one process dies at a seeded moment. Whatever
dies: one lifecycle for the window, never two, never none; one row in the ledger; no window decided before it is over,
though a row ahead of the clock lies in the log. The ledger, the workflows and Temporal are the real ones; what compute
measures is fixed. PLANT=1..3 breaks the ledger in one way each, and must fail. KILLS= (200) and MINUTES= (60) bound it.
The same SEED on the same commit goes on where it was stopped.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlmodel import select
from temporalio.client import Client, RetryConfig, WorkflowFailureError, WorkflowHandle
from temporalio.service import RPCError

from bench.figures import append, commit
from everloop import engine, names, signing, starts
from everloop.artifacts import Artifacts
from everloop.contracts import CheckRequest, LifecycleRequest
from everloop.payloads import converter
from everloop.predictions import PredictionLog
from everloop.settings import Settings
from everloop.specs import LifecycleSpec
from everloop.store import LifecycleRow, MonitorRow, Store, TriggerRow
from tests.conftest import free_port_base
from tests.faults.watch_harness import MOMENTS, PLANTS, PROCESSES, Orders, monitored
from tests.temporal.conftest import SPEC, Stack, eventually
from workers import temporal
from workers.takeover import take_over

OUT = Path(__file__).parents[2] / "docs" / "proof" / "watch.csv"
HARNESS = Path(__file__).with_name("watch_harness.py")
START, HOUR = datetime(2024, 1, 1, tzinfo=UTC), timedelta(hours=1)
MODEL = "watched"
PATIENCE_SECONDS = 300.0
"""Loaded machines are slow: what has not come after this long never will."""


@dataclass
class Seen:
    """What one kill has led to."""

    process: str
    moment: str
    hit: bool = False
    seconds: float = 0.0
    """From the kill until the window's retraining was there."""
    wrong: list[str] = field(default_factory=list)


class Room:
    """Temporal, control and compute, each a process that can be killed; they stay for the next kill."""

    def __init__(self, folder: Path, fault: int = 0) -> None:
        self.data = folder / "data"
        self.data.mkdir()
        self.fault = fault
        self.port = free_port_base()
        self.settings = Settings(data_dir=self.data, session="proof", temporal_address=f"127.0.0.1:{self.port}")
        self.store = Store(self.settings.database)
        self.store.migrate()
        signing.create_keys(self.settings.keys_dir)
        self.orders = Orders(self.data)
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self._starter = ThreadPoolExecutor(1)  # the server ends with the thread that has started it
        self.start_temporal()

    def start_temporal(self) -> None:
        database, log = self.data / "temporal.db", self.data / "temporal.log"
        self.server = self._starter.submit(temporal.start, database, self.port, None, log).result()
        (self.data / "temporal.pid").write_text(str(self.server.process.pid))

    async def start(self, role: str) -> None:
        (self.data / f"{role}.ready").unlink(missing_ok=True)
        with (self.data / f"{role}.log").open("ab") as log:
            self.children[role] = subprocess.Popen(  # noqa: ASYNC220  # it only forks
                [sys.executable, str(HARNESS), role, str(self.data), self.settings.temporal_address, str(self.fault)],
                env=engine.environment({"PYTHONSAFEPATH": ""}),
                cwd=engine.source(),
                stdout=log,
                stderr=log,
            )
        await eventually((self.data / f"{role}.ready").exists, PATIENCE_SECONDS)

    async def connect(self) -> Client:
        soon = RetryConfig(max_elapsed_time_millis=1000, max_retries=2)
        return await Client.connect(self.settings.temporal_address, data_converter=converter, retry_config=soon)

    async def mend(self, client: Client) -> None:
        """Start again what has died, as `up` does."""
        await self.mend_temporal()
        for role, child in list(self.children.items()):
            if child.poll() is not None:
                later = Settings(
                    data_dir=self.data, session=f"later-{uuid.uuid4().hex[:6]}",
                    temporal_address=self.settings.temporal_address,
                )  # fmt: skip
                await self.patiently(partial(take_over, client, later, jobs_too=False))
                await self.start(role)

    def is_dead(self, role: str) -> bool:
        child = self.server.process if role == "temporal" else self.children[role]
        return child.poll() is not None

    async def mend_temporal(self) -> None:
        if self.server.process.poll() is not None:
            self.server.stop()
            await asyncio.to_thread(self.start_temporal)

    async def patiently(self, call: Callable[[], Any]) -> Any:
        """The answer of Temporal, which is started again where it has died."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await call()
            except RPCError:
                if time.monotonic() > deadline:
                    raise
                await self.mend_temporal()
                await asyncio.sleep(0.2)

    def stop(self) -> None:
        for child in self.children.values():
            child.kill()
            child.wait()
        self.server.stop()
        self._starter.shutdown()
        self.store.close()

    def log(self, *moments: datetime) -> None:
        log = PredictionLog(self.settings.predictions_dir / "default" / MODEL)
        log.append(
            [
                {"request_id": uuid.uuid4().hex, "row": 0, "event_time": moment.isoformat(), "version": 1,
                 "logged_at": datetime.now(UTC).isoformat(), "features": {}, "prediction": {}}
                for moment in moments
            ]
        )  # fmt: skip
        log.close()

    def triggers(self) -> list[TriggerRow]:
        with self.store.read() as session:
            return list(session.exec(select(TriggerRow).order_by(TriggerRow.window_start)).all())  # type: ignore[arg-type]

    def lifecycles(self) -> list[LifecycleRow]:
        with self.store.read() as session:
            return [row for row in session.exec(select(LifecycleRow)) if row.id.startswith("retrain/")]


async def released(room: Room, client: Client, first: datetime) -> None:
    """A first version with a monitor, and a row of its *first* window."""
    signer = signing.Signer(room.settings.keys_dir)
    spec = monitored(LifecycleSpec.model_validate(SPEC | {"model": MODEL}))
    request = starts.signed(
        signer, "first", LifecycleRequest(spec=spec, body_digest=signing.digest(spec), submitted_by="ada")
    )
    await client.start_workflow(names.LIFECYCLE, request, id="first", task_queue=names.CONTROL)
    stack: Any = Stack(client, room.store, Artifacts(room.settings.artifacts), room.settings, None, None, signer, "")  # type: ignore[arg-type]
    await stack.decide("first")
    await stack.status("first", "released")
    await client.get_schedule_handle(names.monitor_id("default", MODEL)).pause()  # the proof is who alarms
    room.log(first, datetime.now(UTC) + timedelta(hours=20))


async def one(room: Room, client: Client, number: int, seed: int) -> Seen:
    """One drifted window, one kill."""
    draw = random.Random(seed * 100_003 + number)
    seen = Seen(draw.choice(PROCESSES), draw.choice(MOMENTS))
    window = START + number * HOUR
    room.log(window + HOUR)  # an hour later: the window has closed
    if seen.moment != "start":
        room.orders.give(seen.process, seen.moment)
    handles = [
        await room.patiently(
            lambda: client.start_workflow(
                names.DRIFT_CHECK,
                CheckRequest(project="default", model=MODEL),
                id=f"check-{uuid.uuid4().hex}",
                task_queue=names.CONTROL,
            )
        )
        for _ in range(draw.randint(1, 5))
    ]
    killed = await _killed(room, seen, window, draw)
    await room.mend(client)
    (room.data / "die").unlink(missing_ok=True)
    seen.wrong = await _wrong(room, client, handles, window)
    seen.seconds = time.monotonic() - killed
    return seen


async def _soon(look: Callable[[], Any]) -> None:
    """Until *look* is true, or it has been patience enough."""
    with contextlib.suppress(TimeoutError):
        await eventually(look, PATIENCE_SECONDS / 3)


async def _killed(room: Room, seen: Seen, window: datetime, draw: random.Random) -> float:
    """When the process died, or the window was decided without."""
    if seen.moment == "start":
        await _soon(lambda: any(row.window_start == window for row in room.triggers()))
        await asyncio.sleep(draw.random() * 0.1)
        pid = int((room.data / f"{seen.process}.pid").read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
            seen.hit = True
        await _soon(lambda: room.is_dead(seen.process))
        return time.monotonic()
    await _soon(lambda: not (room.data / "die").exists())
    seen.hit = not (room.data / "die").exists()
    if seen.hit:
        await _soon(lambda: room.is_dead(seen.process))
    return time.monotonic()


async def _wrong(room: Room, client: Client, handles: list[WorkflowHandle[Any, Any]], window: datetime) -> list[str]:
    """What is not as it must be once all checks have ended."""
    wrong = []
    for handle in handles:
        try:
            await asyncio.wait_for(room.patiently(handle.result), PATIENCE_SECONDS)
        except (WorkflowFailureError, TimeoutError) as error:
            wrong.append(f"check: {type(error).__name__} {error.__cause__ or ''}"[:120])
    of_window = f"{window:%Y%m%dT%H%M%SZ}"

    def there() -> list[str]:
        return [row.id for row in room.lifecycles() if of_window in row.id.split("/")[-1].split("-")[0]]

    await _soon(there)
    try:
        await room.patiently(lambda: _ended(client, there()))
    except TimeoutError:
        wrong.append("none: the lifecycle did not end")
    found = there()
    if len(found) != 1:
        wrong.append(f"{'two' if found else 'none'}: {len(found)} lifecycles of {window:%m-%d %H}:00")
    rows = [row for row in room.triggers() if row.window_start == window]
    if [row.verdict for row in rows] != ["retrain"]:
        wrong.append(f"ledger: {[row.verdict for row in rows]}")
    early = [row for row in room.triggers() if row.window_end > datetime.now(UTC)]
    with room.store.read() as session:
        cursor = session.get_one(MonitorRow, ("default", MODEL)).cursor
    if early or (cursor and cursor > window + HOUR):
        wrong.append(f"early: the cursor is at {cursor}, {len(early)} windows were decided before their end")
    return wrong


async def _ended(client: Client, lifecycles: list[str]) -> None:
    for lifecycle in lifecycles:
        with contextlib.suppress(WorkflowFailureError):
            await asyncio.wait_for(client.get_workflow_handle(lifecycle).result(), PATIENCE_SECONDS)


async def run(  # noqa: PLR0917
    folder: Path, kills: int, seed: int, fault: int = 0, done: Path | None = None, until: float = float("inf")
) -> list[Seen]:
    """*kills* kills, one after the other; ends at the first that went wrong where a *fault* is planted.

    None begins after *until*, by the monotonic clock.

    Each is a line of *done*; what that holds already is not repeated.
    """
    seen = [Seen(**json.loads(line)) for line in done.read_text().splitlines()] if done and done.exists() else []
    room = Room(folder, fault)
    try:
        await asyncio.gather(room.start("control"), room.start("compute"))
        client = await room.connect()
        await released(room, client, START + len(seen) * HOUR)
        for number in range(len(seen), kills):
            if time.monotonic() > until:
                break
            told = await one(room, client, number, seed)
            seen.append(told)
            if done:
                with done.open("a") as file:
                    file.write(json.dumps(asdict(told)) + "\n")
            print(f"{number} {told.process} {told.moment} {told.seconds:.1f} s {'; '.join(told.wrong)}", flush=True)
            if told.wrong and fault:
                break
    finally:
        room.stop()
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=int(os.environ.get("KILLS", "200")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "20261127")))
    parser.add_argument("--plant", type=int, default=int(os.environ.get("PLANT", "0")))
    asked = parser.parse_args()
    began, tested = time.monotonic(), commit()
    kind = f"planted-{asked.plant}-{os.getpid()}" if asked.plant else "proof"
    done = Path(tempfile.gettempdir()) / f"everloop-{kind}-watch-{asked.seed}-{tested}.jsonl"
    with tempfile.TemporaryDirectory(prefix="everloop-watch-") as folder:
        until = began + 60 * float(os.environ.get("MINUTES", "60"))
        seen = asyncio.run(run(Path(folder), asked.kills, asked.seed, asked.plant, done, until))
    row: dict[str, object] = {"at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "commit": tested}
    row |= summary(seen, asked.seed, asked.plant, (time.monotonic() - began) / 60)
    append(OUT, row)
    print(row)
    return int(any(one.wrong for one in seen))


def summary(seen: list[Seen], seed: int, fault: int, minutes: float) -> dict[str, object]:
    wrong = Counter(each.partition(":")[0] for one in seen for each in one.wrong)
    hits = Counter(f"{one.process}/{one.moment}" for one in seen if one.hit)
    seconds = sorted(one.seconds for one in seen)
    return {
        "planted": PLANTS[fault],
        "seed": seed,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[2], 1),
        "minutes": round(minutes, 1),
        "kills": len(seen),
        "hit": sum(one.hit for one in seen),
        "hits": " ".join(f"{name}={count}" for name, count in sorted(hits.items())),
        **{kind: wrong[kind] for kind in ("two", "none", "ledger", "early", "check")},
        "again_p50_s": round(seconds[len(seconds) // 2], 1) if seconds else "",
        "again_max_s": round(seconds[-1], 1) if seconds else "",
    }


if __name__ == "__main__":
    sys.exit(main())
