"""One training, one fault at a random moment, and what is seen of it: pids, rounds, devices, bytes.

`test_jobs_kills.py` runs each fault once; `make proof-compute` runs all of them again and again.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import psutil
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.service import RPCError

from everloop.errors import ComputeLost, EverloopError, LeaseLost
from everloop.settings import TEMPORAL
from tests.conftest import free_port_base
from tests.faults import jobs_harness as harness
from tests.faults.jobs_harness import Bridge, alive, until
from workers import temporal

ROOT = "learning_functions"
ROUNDS, PACE = 70, 0.03
INTERVAL = 0.5
"""Seconds between two checkpoints."""
HEARTBEAT = 5.0
DOWN_SECONDS = 4.0
NO_CHECKPOINTS = 4.0
"""What may be done again where a checkpoint is torn: the one before is older."""


class Entry(NamedTuple):
    """A line of the diary."""

    what: str
    pid: int
    at: float
    round: int
    device: str


@dataclass
class Seen:
    """What a fault has led to."""

    fault: str
    hit: bool = False
    """It came while the training ran."""
    wrong: list[str] = field(default_factory=list)
    """`orphan`, `overlap`, `redone`, `bytes`, `fence`, with what was seen."""
    again_seconds: float | None = None
    """From the kill to the first new round."""
    gone_seconds: float | None = None
    """From the release of the key until the job is gone."""


class Room:
    """Temporal, Dask and a compute worker that can each be killed; they stay for the next fault."""

    def __init__(self, folder: Path, *, slots: int = 2, learner: str = "learner") -> None:
        self.function = f"{learner}.learn"
        """The training that is disturbed: of LightGBM, or (`torch_learner`) of torch."""
        settings = harness.new_settings(folder / "data", "", slots)
        self.temporal_port = free_port_base() + TEMPORAL
        self.folder = folder
        self.settings = replace(
            settings, temporal_address=f"127.0.0.1:{self.temporal_port}", checkpoint_seconds=INTERVAL
        )
        self.queue = f"queue-{time.monotonic_ns()}"
        self._starter = ThreadPoolExecutor(1)  # the server ends with the thread that has started it
        self.start_temporal()
        self.dask = harness.Dask(self.settings)
        self.dask.start_all()
        harness.Store(self.settings.database).migrate()
        self.start_compute()
        self.digest = ""
        """Of the model that is never disturbed."""

    def start_temporal(self) -> None:
        database, log = self.folder / "temporal.db", self.folder / "temporal.log"
        self.temporal = self._starter.submit(temporal.start, database, self.temporal_port, None, log).result()

    def kill_temporal(self) -> None:
        self.temporal.process.kill()
        self.temporal.stop()

    def start_compute(self) -> None:
        self.compute = harness.compute_process_of(self.settings, self.queue, ROOT)

    def kill_compute(self) -> None:
        self.compute.kill()
        self.compute.wait()

    def bridge(self) -> contextlib.AbstractAsyncContextManager[Bridge]:
        return harness.bridge(self.settings, self.dask, compute=False, root=ROOT, queue=self.queue)

    def stop(self) -> None:
        self.kill_compute()
        self.dask.stop()
        self.temporal.stop()
        self._starter.shutdown()


@dataclass
class Training:
    """One that runs, as its diary tells it."""

    room: Room
    bridge: Bridge
    diary: Path
    numbers: random.Random
    before: set[Path] = field(default_factory=set)
    """Checkpoints of others."""

    def __post_init__(self) -> None:
        self.before = set(self.checkpoints())

    @property
    def values(self) -> dict[str, object]:
        return {"diary": str(self.diary), "rounds": ROUNDS, "pace": PACE}

    async def ask(self) -> WorkflowHandle:
        return await self.bridge.ask(self.room.function, heartbeat=HEARTBEAT, **self.values)

    def run_as(self, run_id: str, token: int, device: str = "cpu0") -> "asyncio.Task[harness.Tried]":
        """An attempt with a token of our choice."""
        return asyncio.create_task(
            self.bridge.jobs_as(run_id, self.room.function, token=token, device=device, **self.values)
        )

    def entries(self) -> list[Entry]:
        lines = self.diary.read_text().splitlines() if self.diary.exists() else []
        return [
            Entry(what, int(pid), float(at), int(number), device)
            for what, pid, at, number, device in map(str.split, lines)
        ]

    async def at_a_random_moment(self) -> int:
        """Pid of the job, in the middle of its rounds."""
        moment = self.numbers.randrange(8, ROUNDS - 25)
        await until(lambda: [e for e in self.entries() if e.what == "round" and e.round >= moment], 60, "it never ran")
        await asyncio.sleep(self.numbers.random() * PACE * 3)
        return self.entries()[-1].pid

    def checkpoints(self) -> list[Path]:
        """Folders of checkpoints, by token and step."""
        found = self.bridge.settings.checkpoints_dir.glob(f"*/{self.room.function}/*/[0-9]*/[0-9]*")
        return sorted({*found} - self.before, key=lambda path: (int(path.parent.name), int(path.name)))


Fault = Callable[[Training, int], Awaitable[None]]


async def kill_job(_training: Training, job: int) -> None:
    os.kill(job, signal.SIGKILL)


async def kill_reaper(_training: Training, job: int) -> None:
    psutil.Process(job).parent().kill()


async def kill_dask_worker(training: Training, _job: int) -> None:
    os.kill(training.room.dask.worker_pid("cpu0"), signal.SIGKILL)


async def kill_slot(training: Training, _job: int) -> None:
    training.room.dask.kill("cpu0")
    training.room.dask.start("cpu0")


async def kill_scheduler(training: Training, job: int) -> None:
    dask = training.room.dask
    dask.kill("scheduler")
    await until(lambda: not alive(job), 10, "the job outlived its scheduler")
    dask.start("scheduler")
    for name in ("cpu0", "cpu1"):
        slot = dask.processes[name]
        await until(lambda slot=slot: slot.poll() is not None, 40, "the slot neither reconnected nor ended")
        assert slot.returncode == 1
        dask.start(name)


async def kill_compute_worker(training: Training, job: int) -> None:
    training.room.kill_compute()
    await until(lambda: not alive(job), 10, "the job outlived its compute worker")
    training.room.start_compute()


async def kill_temporal(training: Training, _job: int) -> None:
    training.room.kill_temporal()
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(training.room.start_temporal)


KILLS: dict[str, Fault] = {
    "job": kill_job,
    "reaper": kill_reaper,
    "dask worker": kill_dask_worker,
    "slot": kill_slot,
    "scheduler": kill_scheduler,
    "compute worker": kill_compute_worker,
    "temporal": kill_temporal,
}


async def killed(training: Training, fault: str) -> Seen:
    """Kill one of them; the training ends on another attempt (of Temporal, maybe on the same)."""
    seen = Seen(fault)
    handle = await training.ask()
    job = await training.at_a_random_moment()
    began = time.time()
    seen.hit = alive(job)
    await KILLS[fault](training, job)
    tried = await result_of(handle)
    judge(training, seen, tried.values["digest"])
    new = [entry.at for entry in training.entries() if entry.what == "round" and entry.pid != job]
    seen.again_seconds = min(new) - began if new else None
    seen.hit = seen.hit and (tried.ran.attempt > 1 or fault == "temporal")
    resumed = tried.ran.resumed
    if new and (resumed is None or not resumed.times):
        seen.wrong.append("report: it went on and says nothing of it")
    return seen


async def cancelled(training: Training) -> Seen:
    """Release the key of a job that heeds: it keeps a checkpoint and is gone; so is all below it."""
    seen = Seen("cancel")
    run = training.run_as(f"run-{training.numbers.randrange(10**9)}", 1)
    job = await training.at_a_random_moment()
    before = training.entries()[-1].round
    began = time.monotonic()
    run.cancel()
    await until(lambda: not alive(job), 10, "the job goes on")
    seen.gone_seconds = time.monotonic() - began
    seen.hit = True
    await asyncio.gather(run, return_exceptions=True)
    steps = [int(path.name) for path in training.checkpoints()]
    if not steps or max(steps) < before - 6:
        seen.wrong.append(f"redone: cancelled in round {before}, and kept {steps}")
    judge(training, seen)
    return seen


async def cancelled_while_it_loads(training: Training) -> Seen:
    """A job that has asked for no checkpoint yet ends at once."""
    seen = Seen("cancel while loading")
    call = training.bridge.jobs_as(
        f"run-{training.numbers.randrange(10**9)}", "learner.load", diary=str(training.diary)
    )
    run = asyncio.create_task(call)
    await until(training.entries, 60, "it never ran")
    await asyncio.sleep(training.numbers.random() * 0.2)
    began = time.monotonic()
    run.cancel()
    await until(lambda: not alive(training.entries()[0].pid), 10, "the job goes on")
    seen.gone_seconds = time.monotonic() - began
    seen.hit = True
    await asyncio.gather(run, return_exceptions=True)
    return seen


async def superseded(training: Training) -> Seen:
    """A job stands still, its stage goes on with a newer token elsewhere, and then it wakes."""
    seen = Seen("stale token")
    run_id = f"run-{training.numbers.randrange(10**9)}"
    older = training.run_as(run_id, 1)
    await until(training.checkpoints, 60, "no checkpoint")
    job = await training.at_a_random_moment()
    os.kill(job, signal.SIGSTOP)
    kept = {path for path in training.checkpoints() if path.parent.name == "1"}
    newer = training.run_as(run_id, 2, "cpu1")
    try:
        await until(lambda: [e for e in training.entries() if e.what == "round" and e.device == "cpu1"], 60, "no newer")
    finally:
        os.kill(job, signal.SIGCONT)
    seen.hit = alive(job)
    written: set[Path] = set()
    while not older.done():
        written |= {path for path in training.checkpoints() if path.parent.name == "1"} - kept
        await asyncio.sleep(0.02)
    if not isinstance(older.exception(), LeaseLost):
        seen.wrong.append(f"fence: the older token's job ended with {older.exception()!r}")
    if written:
        seen.wrong.append(f"fence: the older token has written {sorted(path.name for path in written)}")
    judge(training, seen, (await newer).values["digest"])
    return seen


async def torn(training: Training) -> Seen:
    """The disk loses a part of the newest checkpoint: the one before is taken."""
    seen = Seen("torn checkpoint")
    run_id = f"run-{training.numbers.randrange(10**9)}"
    first = training.run_as(run_id, 1)
    await until(lambda: len(training.checkpoints()) > 1, 60, "no two checkpoints")
    os.kill(await training.at_a_random_moment(), signal.SIGKILL)
    with contextlib.suppress(ComputeLost):
        await first
    before, newest = training.checkpoints()[-2:]
    damage(newest / "arrays.safetensors", training.numbers)
    tried = await training.run_as(run_id, 2)
    seen.hit = True
    resumed = next(entry.round for entry in reversed(training.entries()) if entry.what == "resume")
    if resumed != int(before.name):
        seen.wrong.append(f"torn: it went on from round {resumed}, not {int(before.name)}")
    judge(training, seen, tried.values["digest"], more=NO_CHECKPOINTS)
    return seen


def damage(path: Path, numbers: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = len(data) // 4
    data[start : start + 512] = numbers.randbytes(512)
    path.write_bytes(data)


OTHERS: dict[str, Callable[[Training], Awaitable[Seen]]] = {
    "cancel": cancelled,
    "cancel while loading": cancelled_while_it_loads,
    "stale token": superseded,
    "torn checkpoint": torn,
}
FAULTS = (*KILLS, *OTHERS)


async def run(room: Room, fault: str, numbers: random.Random, folder: Path) -> Seen:
    """One training with one fault."""
    async with room.bridge() as bridge:
        if not room.digest:
            undisturbed = Training(room, bridge, folder / "undisturbed", numbers)
            room.digest = (await undisturbed.run_as("run-undisturbed", 1)).values["digest"]
        training = Training(room, bridge, folder / f"diary-{numbers.randrange(10**9)}", numbers)
        return await (OTHERS[fault](training) if fault in OTHERS else killed(training, fault))


async def result_of(handle: WorkflowHandle) -> harness.Tried:
    """The workflow's, also when its server is away for a while."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return await asyncio.wait_for(handle.result(), 100)
        except (RPCError, TimeoutError):
            assert time.monotonic() < deadline, "it never ended"
            await asyncio.sleep(0.2)
        except WorkflowFailureError as error:
            raise EverloopError(f"{error.cause} {error.cause.__cause__}") from error


def judge(training: Training, seen: Seen, digest: str | None = None, *, more: float = 0.0) -> None:
    """Look at pids, rounds and bytes."""
    entries = training.entries()
    seen.wrong += [f"orphan: {pid}" for pid in orphans(training, entries)]
    seen.wrong += [f"overlap: {pids}" for pids in overlaps(entries)]
    seen.wrong += [f"redone: {told}" for told in redone(entries, INTERVAL + more)]
    if digest is not None and digest != training.room.digest:
        seen.wrong.append(f"bytes: {digest[:12]} instead of {training.room.digest[:12]}")


def orphans(training: Training, entries: list[Entry]) -> list[int]:
    """What is left of the jobs two seconds later."""
    helpers = Path(f"{training.diary}.helpers")
    pids = {entry.pid for entry in entries} | {int(line) for line in helpers.read_text().split()}
    deadline = time.monotonic() + 2
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def overlaps(entries: list[Entry]) -> Iterator[tuple[int, int]]:
    """Pairs of jobs of which both wrote on one device while the other did."""
    per_device = defaultdict(list)
    for entry in entries:
        per_device[entry.device].append(entry.pid)
    for pids in per_device.values():
        ended: set[int] = set()
        for before, pid in pairwise(pids):
            if before != pid:
                ended.add(before)
            if pid in ended:
                yield before, pid


def redone(entries: list[Entry], allowed: float) -> Iterator[str]:
    """Attempts that did more again than *allowed* seconds of the one before, and the segment it was in."""
    order = list(dict.fromkeys(entry.pid for entry in entries))
    for before, after in pairwise(order):
        from_round = next((e.round for e in entries if e.pid == after and e.what == "resume"), None)
        until_then = min(e.at for e in entries if e.pid == after)
        rounds = [e for e in entries if e.pid == before and e.what == "round" and e.at < until_then]
        again = [e.at for e in rounds if from_round is not None and e.round >= from_round]
        limit = allowed + longest_segment([e.at for e in rounds])
        if again and max(again) - min(again) > limit:
            yield f"{max(again) - min(again):.2f} s from round {from_round}, more than {limit:.2f} s"


def longest_segment(moments: list[float], rounds: int = 5) -> float:
    return max((b - a for a, b in zip(moments, moments[rounds:], strict=False)), default=0.0)
