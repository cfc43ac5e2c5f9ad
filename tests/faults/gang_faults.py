"""A gang whose ranks are killed, and what is seen of it. `test_gangs.py` does it twice, `make proof-gangs` 10 times."""

import asyncio
import itertools
import os
import random
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from tests.faults import jobs_harness as harness
from tests.faults.jobs_harness import Bridge, alive, until

ROOT = "gang_functions"
LEARN = "digits.learn"
EPOCHS, PACE = 40, 0.05
PATIENCE_SECONDS = 600.0
"""On a machine that is shared with others a training of seconds takes minutes."""
INTERVAL = 0.2
"""Seconds between two checkpoints."""
ENDED_SECONDS, LONGEST_SECONDS = 2.0, 20.0
"""After one rank's death the others have ended: on a machine that has its cores (the proof), and on any (the tests)."""
TOLERANCE = 1e-6
"""Of the loss, of a gang that was killed and went on with as many ranks. The sums of an all-reduce are in one order."""


class Entry(NamedTuple):
    """A line of the diary."""

    what: str
    pid: int
    at: float
    epoch: int
    rank: int
    size: int
    place: str


@dataclass
class Seen:
    """What kills have led to."""

    kills: int = 0
    wrong: list[str] = field(default_factory=list)
    """`late`, `orphan`, `split`, `redone`, `metric`, `ranks`, with what was seen."""
    ended_seconds: list[float] = field(default_factory=list)
    """From a kill until no rank of that attempt was left."""
    again_seconds: list[float] = field(default_factory=list)
    """From a kill to the first new epoch."""
    loss: float = 0.0
    accuracy: float = 0.0


def entries(diary: Path) -> list[Entry]:
    lines = diary.read_text().splitlines() if diary.exists() else []
    cut = (line.split() for line in lines)
    return [Entry(w, int(p), float(at), int(e), int(r), int(n), place) for w, p, at, e, r, n, place in cut]


def attempt(diary: Path, size: int, after: int) -> dict[int, Entry] | None:
    """Each rank's last line of the newest attempt, once all of them have learned an epoch after *after*."""
    found = entries(diary)
    if not found:
        return None
    newest = {each.rank: each for each in found if each.place == found[-1].place}
    learning = len(newest) == size and all(each.what == "epoch" and each.epoch > after for each in newest.values())
    return newest if learning else None


def room(folder: Path, address: str, ranks: int) -> harness.Dask:
    """Dask with a device for each rank."""
    settings = harness.new_settings(folder, address, slots=ranks)
    started = harness.Dask(replace(settings, checkpoint_seconds=INTERVAL))
    started.start_all()
    return started


async def unkilled(bridge: Bridge, folder: Path, members: tuple[str, ...], **values) -> dict:
    handle = await bridge.ask(LEARN, members=members, diary=str(folder / "unkilled"), **_values(values))
    return dict((await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)).values)


def _values(more: dict) -> dict:
    return {"epochs": EPOCHS, "pace": PACE} | more


async def killed(
    bridge: Bridge,
    folder: Path,
    members: tuple[str, ...],
    kills: int,
    numbers: random.Random,
    *,
    bound: float = ENDED_SECONDS,
    **values,
) -> Seen:
    """The same training, with kill -9 of a rank in each of the first attempts."""
    expected = await unkilled(bridge, folder, members, **values)
    seen, diary = Seen(), folder / "killed"
    handle = await bridge.ask(LEARN, members=members, diary=str(diary), stubborn=True, **_values(values))
    after, epochs = 0, values.get("epochs", EPOCHS)
    for number in range(kills):
        after = max(after, epochs * number // (kills + 1))  # the kills are spread over the training
        running = await _learning(diary, len(members), after, number + 1)
        await asyncio.sleep(numbers.random() * INTERVAL)
        await _kill_one(seen, running, numbers, bound)
        after = max(each.epoch for each in entries(diary))
    result = await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
    _judge(seen, diary, len(members), expected, dict(result.values))
    return seen


async def _learning(diary: Path, size: int, after: int, number: int) -> dict[int, Entry]:
    return await until(lambda: attempt(diary, size, after), PATIENCE_SECONDS, f"attempt {number} did not begin")


async def _kill_one(seen: Seen, running: dict[int, Entry], numbers: random.Random, bound: float) -> None:
    pids = [each.pid for each in running.values()]
    victim = numbers.choice(pids)
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        seen.wrong.append("late: it ended before it was killed")
        return
    seen.kills += 1
    began = time.monotonic()
    while [pid for pid in pids if alive(pid)]:
        if time.monotonic() - began > LONGEST_SECONDS:
            break
        await asyncio.sleep(0.01)
    left = [pid for pid in pids if alive(pid)]
    seen.ended_seconds.append(time.monotonic() - began)
    if left:
        seen.wrong.append(f"orphan: {len(left)} ranks live {LONGEST_SECONDS:.0f} s after the death of one")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    elif seen.ended_seconds[-1] > bound:
        seen.wrong.append(f"late: the last rank ended {seen.ended_seconds[-1]:.2f} s after the death of one")


def _judge(seen: Seen, diary: Path, size: int, expected: dict, told: dict) -> None:
    found = entries(diary)
    seen.loss, seen.accuracy = told["loss"], told["accuracy"]
    if abs(told["loss"] - expected["loss"]) > TOLERANCE:
        seen.wrong.append(f"metric: a loss of {told['loss']:.9f}, unkilled {expected['loss']:.9f}")
    places = list(dict.fromkeys(each.place for each in found))
    for place in places:
        mine = [each for each in found if each.place == place]
        if any(each.size != size for each in mine) or {each.rank for each in mine} != set(range(size)):
            seen.wrong.append(f"ranks: {sorted({each.rank for each in mine})} of {size} met in {place}")
        begun = {each.epoch for each in mine if each.what == "begin"}
        if len(begun) > 1:
            seen.wrong.append(f"split: ranks of one attempt went on from the epochs {sorted(begun)}")
    spans = [(min(e.at for e in found if e.place == p), max(e.at for e in found if e.place == p)) for p in places]
    if any(earlier[1] > later[0] for earlier, later in itertools.pairwise(spans)):
        seen.wrong.append("split: ranks of two attempts ran at the same time")
    for before, after in itertools.pairwise(places):
        reached = max(each.epoch for each in found if each.place == before)
        again = [each for each in found if each.place == after]
        lost = reached - min(each.epoch for each in again)
        if lost * PACE > 2 * INTERVAL + 1.0:
            seen.wrong.append(f"redone: {lost} epochs")
        first = min((each.at for each in again if each.what == "epoch"), default=0.0)
        seen.again_seconds.append(first - max(each.at for each in found if each.place == before))
