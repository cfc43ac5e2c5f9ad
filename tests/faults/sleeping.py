"""A laptop that sleeps: every process of a stack is stopped (SIGSTOP), time goes by, and all go on.

Both clocks run on while processes are stopped, so every timer of the stack is overdue at once when they wake, in an
order that nobody chooses: `wake` draws one.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlmodel import col, select

from everloop import engine, stack
from everloop.client import Client
from everloop.settings import Settings
from everloop.store import JournalRow, LifecycleRow, MetricRow, Store

SLOT = b"EVERLOOP_SLOT="
TRAIN = "training.train"
ROUNDS = 5000
"""Of a training that is asleep for a while: trees of two leaves, which take long to find and little to export."""
INTERVAL_SECONDS = 30.0
"""Between two checkpoints of a training."""
SLACK_SECONDS = 3.0
"""Steps are written down once a second."""
AGAIN_SECONDS = 25.0
"""From the wake to the next step: less than a heartbeat timeout, on a machine that is busy too."""
FLUSHED_SECONDS = 1.5
"""What the job had told before the sleep is written down within this time after it."""
GATE_SECONDS = 3000.0
MOST_FOUND = 5
"""Overlaps that are written down."""


class Launcher:
    """`everloop up` from *source*, this checkout or a copy of it, in a process group of its own."""

    def __init__(self, here: Settings, source: Path | None = None) -> None:
        self.here = here
        self.output = here.data_dir.parent / "up.out"
        where = source or engine.source()
        environment = os.environ | {"PYTHONPATH": str(where), "PYTHONSAFEPATH": "1"}
        place = ["--data-dir", str(here.data_dir), "--port-base", str(here.port_base)]
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "everloop.cli", "up", *place],
                cwd=where, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def ready(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while "/login" not in self.output.read_text():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.1)

    def everybody(self) -> list[stack.Alive]:
        own = stack.Alive(self.process.pid, stack.start_time(self.process.pid), "")
        return [own, *stack.members(self.here)]


def fall_asleep(launcher: Launcher) -> list[stack.Alive]:
    """Stop every process; a child that was forked meanwhile is stopped too."""
    asleep: dict[int, stack.Alive] = {}
    while fresh := [process for process in launcher.everybody() if process.pid not in asleep]:
        stack.end(fresh, signal.SIGSTOP)
        asleep |= {process.pid: process for process in fresh}
    return list(asleep.values())


def wake(asleep: list[stack.Alive], numbers: random.Random) -> None:
    """All go on, in an order of *numbers*: who looks at the clock first is chance."""
    numbers.shuffle(asleep)
    stack.end(asleep, signal.SIGCONT)


@dataclass
class Overlaps:
    """Looks again and again which jobs run on each slot; two at one moment are written down."""

    here: Settings
    found: list[str] = field(default_factory=list)
    looks: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watched(self) -> Iterator["Overlaps"]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.looks += 1
            for slot, jobs in jobs_by_slot(self.here).items():
                if len(jobs) > 1 and len(self.found) < MOST_FOUND:
                    self.found.append(f"{slot}: {jobs}")


def jobs_by_slot(here: Settings) -> dict[str, dict[int, str]]:
    """Slot to its jobs: process id to the function that runs. A job carries its function as its name."""
    found: dict[str, dict[int, str]] = {}
    mark = SLOT + str(here.scratch_dir).encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (entry / "comm").read_text().strip()
            dead = "Z" in (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if dead or "." not in name or name.startswith("python"):
                continue
            variables = (entry / "environ").read_bytes().split(b"\0")
            slots = [each.rpartition(b"/")[2].decode() for each in variables if each.startswith(mark)]
            if slots:
                found.setdefault(slots[0], {})[int(entry.name)] = name
    return found


def write_table(folder: Path, rows: int = 60_000) -> Path:
    """A table whose training takes a while: the target is noisy in many ways."""
    numbers = random.Random(7)
    lines = ["a,b,c,d,plan,left"]
    for _ in range(rows):
        a, b, c, d = (numbers.gauss(0, 1) for _ in range(4))
        plan = numbers.choice(["basic", "gold", "team"])
        left = int(a * b + c * c - d + numbers.gauss(0, 2) > 0.5)
        lines.append(f"{a:.4f},{b:.4f},{c:.4f},{d:.4f},{plan},{left}")
    path = folder / "sleep.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def spec_of(table: Path, model: str, until: str | None) -> dict[str, Any]:
    training = {"rounds": ROUNDS, "early_stopping": 1000, "learning_rate": 0.001, "leaves": 2}
    return {
        "model": model, "task": "binary", "target": "left", "source": {"path": str(table)}, "monitor": None,
        "training": training, "until": until,
    }  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A reported step of a training."""

    number: int
    at: datetime


def steps(store: Store, lifecycle: str) -> list[Step]:
    """Steps of its training that are written down, by their numbers."""
    with store.read() as session:
        row = session.get(LifecycleRow, lifecycle)
        if row is None:
            return []
        query = select(MetricRow).where(col(MetricRow.job).startswith(f"{row.run_id}/train.", autoescape=True))
        return [Step(each.step, each.at) for each in session.exec(query.order_by(col(MetricRow.step)))]


def until_training(store: Store, lifecycle: str, since: datetime, seconds: float = 240) -> Step:
    """Wait until the training tells of a step that was made after *since*."""
    deadline = time.monotonic() + seconds
    while True:
        new = [step for step in steps(store, lifecycle) if step.at > since]
        if new:
            return new[0]
        assert time.monotonic() < deadline, f"{lifecycle} does not train"
        time.sleep(0.1)


def events(store: Store, lifecycle: str) -> list[dict[str, Any]]:
    with store.read() as session:
        query = select(JournalRow).where(JournalRow.workflow_id == lifecycle).order_by(col(JournalRow.id))
        return [json.loads(row.body) | {"type": row.type, "run": row.run_id} for row in session.exec(query)]


@dataclass(frozen=True)
class Slept:
    """What a sleep of the whole stack did to a lifecycle that was training."""

    minutes: float
    trained_seconds: float
    """Before it fell asleep."""
    again_seconds: float
    """From the wake until the training told of a step."""
    redone_seconds: float
    """Of the training before the sleep, that had to be done again."""
    status: str
    """Where the lifecycle came to by itself."""
    leases: int
    failures: list[str]
    """Failed stages: a person would have to look at them."""
    overlaps: list[str]
    attempts: int

    def faults(self, status: str = "waiting_approval") -> list[str]:
        """What is wrong; nothing, if it is as it should be. *status*: where the lifecycle was to come to."""
        wrong = [f"two jobs at one time on {each}" for each in self.overlaps[:1]]
        wrong += [f"a person was needed: {each}" for each in self.failures[:1]]
        if self.status != status:
            wrong.append(f"the lifecycle is {self.status}")
        if self.leases != 1:
            wrong.append(f"{self.leases} leases were taken: one was lost though its holder lived")
        if self.redone_seconds > INTERVAL_SECONDS + SLACK_SECONDS:
            wrong.append(f"{self.redone_seconds:.0f} s of training were done again")
        if self.again_seconds > AGAIN_SECONDS:
            wrong.append(f"it took {self.again_seconds:.0f} s after the wake until it trained again")
        return wrong


def sleep_while_training(
    launcher: Launcher, client: Client, store: Store, table: Path, lifecycle: str, *, minutes: float, at_seconds: float,
    numbers: random.Random, until: str | None = None,
) -> Slept:  # fmt: skip
    """Submit a lifecycle, put everything to sleep *at_seconds* into its training, wake it, and wait for the gate.

    *until*: the stage to end with instead.
    """
    with Overlaps(launcher.here).watched() as overlaps:
        client.submit(spec_of(table, lifecycle, until), lifecycle)
        first = until_training(store, lifecycle, datetime.fromtimestamp(0, UTC))
        tired = time.monotonic() + at_seconds
        while time.monotonic() < tired and steps(store, lifecycle)[-1].number < ROUNDS * 0.7:  # on a fast machine
            time.sleep(0.1)
        asleep = fall_asleep(launcher)
        before = {step.number: step.at for step in steps(store, lifecycle)}
        time.sleep(minutes * 60)
        woken = datetime.now(UTC)
        wake(asleep, numbers)
        new = until_training(store, lifecycle, woken + timedelta(seconds=FLUSHED_SECONDS))
        found = client.wait(lifecycle, until="gate", timeout=GATE_SECONDS)
    redone = [number for number, at in before.items() if new.number <= number]
    last = max(before.values())
    told = events(store, lifecycle)
    return Slept(
        minutes=minutes,
        trained_seconds=(last - first.at).total_seconds(),
        again_seconds=(new.at - woken).total_seconds(),
        redone_seconds=(last - before[min(redone)]).total_seconds() if redone else 0.0,
        status=str(found["status"]),
        leases=sum(event["type"] == "LeaseGranted" for event in told),
        failures=[str(event) for event in told if event["type"] in ("StageFailed", "StageRetried")],
        overlaps=overlaps.found,
        attempts=[stage["ran"].get("attempt", 0) for stage in found["stages"] if stage["stage"] == "train"][-1],
    )
