"""Many lifecycles on the real stack whose jobs write down where they run, and what is looked at after their end."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlmodel import col, select

from activities import lease_time
from activities.jobs import mark, slot
from everloop import names, stack
from everloop.client import Client
from everloop.settings import Settings
from everloop.store import DeviceRow, DeviceTimeRow, LeaseMemberRow, LeaseRow, LeaseTimeRow, LifecycleRow, Store
from tests.faults.test_kill_each_stage import spec_of
from workers import connect

T = TypeVar("T")

RECORDER = Path(__file__).parent / "recorder"
PROCESSES = ("control", "compute", "scheduler", "slot cpu0", "slot cpu1", "api", "serve")
"""Each is killed in turn; the launcher starts it again."""
FRACTIONS = ((0.25, 3000), (0.25, 9000), (0.5, 2000), (0.5, 8000), (0.34, 5000), (1, 16000))
"""Of a GPU of 16,000 MiB: what fits by its share may not fit by its memory."""
BUSY_SLOT = "the slot of a training that runs"
GROWS_SECONDS = 0.25
SPREAD = 0.8
"""Of all lifecycles have ended at the last kill, at most: later no training may be left to meet."""
WORDS = 7
"""Of a line of a record."""
TEMPORAL = "temporal"
"""The server itself. It carries no mark of a stack, so it is found by its database."""


def eventually(look: Callable[[], T | None], seconds: float) -> T:
    """What *look* returns, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return found


def job_on(here: Settings, device: str, name: str) -> int | None:
    """The pid of the job *name* that runs on *device*."""
    mine = f"EVERLOOP_SLOT={here.scratch_dir}/{device}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            named = (entry / "comm").read_text().strip() == name[:15]
            if named and mine in (entry / "environ").read_bytes().split(b"\0"):
                return int(entry.name)
    return None


def wake(here: Settings) -> None:
    """The pool looks at its ledger now, as after whatever a door has written."""

    async def tell() -> None:
        client = await connect.connect(here, "test", wait_seconds=30)
        await client.get_workflow_handle(names.pool_id(names.DEFAULT_POOL)).signal(names.POOL_WAKE)

    asyncio.run(tell())


def recording(
    table: Path, model: str, records: Path, *, cpus: int, seconds: float, gpus: float = 0, gpu_mib: int = 1
) -> dict[str, Any]:
    """A lifecycle whose training runs on *cpus* cores, and a part of a GPU, for *seconds* and writes down where."""
    trainer = {"trainer": "recorded:fit", "code": str(RECORDER), "inputs": "features", "until": "train"}
    params = {"params": {"records": str(records), "seconds": seconds}}
    wants: dict[str, Any] = {"cpus": cpus} | ({"gpus": gpus, "gpu_memory": gpu_mib} if gpus else {})
    resources = {"gpus": 0, "stages": {"train": wants}} if gpus else {"stages": {"train": wants}}
    return spec_of(table, model) | trainer | params | {"resources": resources}


def kill(here: Settings, name: str) -> bool:
    """kill -9 of the process whose command ends with *name*. Was it there?"""
    found = [each.pid for each in stack.members(here) if each.command.endswith(name)]
    if name == TEMPORAL:
        found = servers(here)
    for pid in found[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


def servers(here: Settings) -> list[int]:
    """Pids of the Temporal server of this data folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            mine = any(str(here.data_dir).encode() in word for word in command)
            found += [int(entry.name)] if mine and command[0].endswith(b"/temporal") else []
    return found


def run(
    here: Settings,
    table: Path,
    records: Path,
    *,
    lifecycles: int,
    kills: int,
    seed: int,
    processes: Sequence[str] = PROCESSES,
    pause: tuple[float, float] | None = (2, 6),
    lasting: tuple[float, float] = (0.5, 2),
    gpus: bool = False,
) -> None:
    """Submit *lifecycles* of several sizes, kill processes meanwhile, and wait for the end of all.

    A training lasts some *lasting* seconds. Without a *pause* the kills are spread over the whole run, each while a
    training writes its record, and `BUSY_SLOT` is the slot of that training.
    """
    numbers = random.Random(seed)
    keys = [f"job-{number}" for number in range(lifecycles)]
    with Client(data_dir=here.data_dir) as client:
        for key in keys:
            cpus, seconds = numbers.choice((1, 1, 2)), numbers.uniform(*lasting)
            part = numbers.choice(FRACTIONS) if gpus else (0, 1)
            client.submit(
                recording(table, key, records, cpus=cpus, seconds=seconds, gpus=part[0], gpu_mib=part[1]), key
            )
    deadline = time.monotonic() + 60 + 60 * lifecycles
    store = Store(here.database)
    for number in range(kills):
        name = processes[number % len(processes)]
        if pause is not None:
            time.sleep(numbers.uniform(*pause))
            kill(here, name.replace("slot cpu", "slot sim-") if gpus else name)
            continue
        due = SPREAD * lifecycles * number / kills
        eventually(partial(have_ended, store, keys, due), deadline - time.monotonic())
        token, device = eventually(lambda: growing(records), deadline - time.monotonic())
        kill(here, f"slot {device}" if name == BUSY_SLOT else name)
        print(f"{ended(store, keys)} ended, lease {token} runs on {device}: kill -9 of {name}", flush=True)
    while statuses(store, keys) != {"done"}:
        assert "needs_attention" not in statuses(store, keys), errors(store)
        assert time.monotonic() < deadline, statuses(store, keys)
        time.sleep(0.5)
    store.close()


def ended(store: Store, keys: list[str]) -> int:
    with store.read() as session:
        done = col(LifecycleRow.id).in_(keys), LifecycleRow.status == "done"
        return len(session.exec(select(LifecycleRow.id).where(*done)).all())


def have_ended(store: Store, keys: list[str], due: float) -> bool:
    return ended(store, keys) >= due


def growing(records: Path) -> tuple[str, str] | None:
    """Token and device of a training that writes its record now: it has just written twice."""
    if not records.exists():
        return None
    size = records.stat().st_size
    time.sleep(GROWS_SECONDS)
    with records.open() as lines:
        lines.seek(size)
        fresh = [line.split(" ")[2:4] for line in lines.read().splitlines()[1:] if line.count(" ") == WORDS - 1]
    twice = [(token, device) for token, device in fresh if fresh.count([token, device]) > 1]
    return twice[-1] if twice else None


def errors(store: Store) -> list[str]:
    with store.read() as session:
        return [str(row.error) for row in session.exec(select(LifecycleRow)) if row.error]


def statuses(store: Store, keys: list[str]) -> set[str]:
    with store.read() as session:
        found = session.exec(select(LifecycleRow.status).where(col(LifecycleRow.id).in_(keys))).all()
    return {*found, *(["missing"] if len(found) < len(keys) else [])}


class Span(NamedTuple):
    """A process that ran, by its own word."""

    begin: float
    end: float
    device: str
    used: tuple[int, ...]
    """Cores, thousandths of a GPU, MiB of it."""


def spans(records: Path) -> list[Span]:
    found: dict[str, list[float]] = defaultdict(list)
    for line in records.read_text().splitlines():
        at, who = line.split(" ", 1)
        found[who].append(float(at))
    cut = ((min(at), max(at), who.split()) for who, at in found.items())
    return sorted(Span(begin, end, who[2], tuple(map(int, who[3:6]))) for begin, end, who in cut)


def overlaps(records: Path, cores: int, milli_gpu: int = 0, gpu_mib: int = 0) -> list[str]:
    """Moments at which more of a device was used than it has, by the jobs' own records."""
    ran, found = spans(records), []
    for one in ran:
        beside = [each.used for each in ran if each.device == one.device and each.begin <= one.begin <= each.end]
        sums = [sum(each[place] for each in beside) for place in range(3)]
        for what, has, used in zip(("cores", "milli-GPU", "MiB"), (cores, milli_gpu, gpu_mib), sums, strict=True):
            if used > has:
                found.append(f"{used} {what} of {one.device} at {one.begin:.3f}")
    return found


def leaks(here: Settings) -> list[str]:
    """What is still held, counted or running after all have ended."""
    store = Store(here.database)
    with store.read() as session:
        leases = session.exec(select(LeaseRow).where(col(LeaseRow.state).in_(("offered", "active", "noticed")))).all()
        members = session.exec(select(LeaseMemberRow).where(col(LeaseMemberRow.live))).all()
        devices = session.exec(select(DeviceRow)).all()
        every = session.exec(select(LeaseMemberRow)).all()
    store.close()
    used = [f"{row.name} counts {row.used_cores} cores" for row in devices if row.used_cores or row.used_memory_mib]
    locks = [str(path) for path in (here.scratch_dir / "slots").rglob(f"*{slot.SUFFIX}") if slot.is_held(path)]
    running = [
        f"process {pid} of {row.device}"
        for row in every
        for pid in mark.carriers(f"{here.scratch_dir}/{row.device}", mark.part(row.token, row.rank))
    ]
    return [
        *(f"lease {row.token}" for row in leases),
        *(f"part of {row.token}" for row in members),
        *used,
        *locks,
        *running,
    ]


def unaccounted(here: Settings) -> list[str]:
    """Where the account of time is not all there was: members without a gap or overlap, kinds that sum up."""
    store = Store(here.database)
    now = datetime.now(UTC)
    with store.read() as session:
        rows = session.exec(select(LeaseTimeRow)).all()
        members = session.exec(select(LeaseMemberRow)).all()
        there = session.exec(select(DeviceTimeRow).where(DeviceTimeRow.kind == "there")).all()
        live = lease_time.held_now(session, "default", now)
        found = lease_time.spent(session, "default", live, 0, lease_time.in_ms(now))  # raises where they overlap
    store.close()
    assert not live
    problems = []
    for member in members:
        own = sorted(
            (row.from_ms, row.to_ms) for row in rows if row.token == member.token and row.device == member.device
        )
        at = member.since_ms
        for from_ms, to_ms in own:
            problems += [f"{member.device}, lease {member.token}: {from_ms - at} ms"] if from_ms != at else []
            at = to_ms
    whole = sum(row.cores * ((row.to_ms or lease_time.in_ms(now)) - row.from_ms) for row in there)
    said = sum(spent.core_ms for spent in found.by_kind.values())
    return problems + ([f"{said} core-ms of {whole}"] if said != whole else [])
