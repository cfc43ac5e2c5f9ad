"""`make proof-leases`: a pool to which anything happens, again and again, and whether an invariant was ever broken.

EXAMPLES= (50000) and MINUTES= (60) bound it, WORKERS= (2) processes share it. SEED= names the examples: with the same
seed it goes on where it was stopped, for as long as the policy, the checker and the machine are the same, whatever else
was committed. A line goes to docs/proof/leases.csv. PLANT=1, 2, 3 puts a fault into the policy (a killed lease's
parts are free at once, quotas are ignored in reclaim, the minimum run time is ignored), which this must find: it then
ends with 1 and leaves no line.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, NamedTuple
from unittest import mock

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from activities.lease_policy import reclaim, victims
from activities.lease_policy.state import NO_LIMIT, Amount, Counted, Held, Kill, Queue
from bench.figures import append
from tests.faults.proof_compute import commit
from tests.unit.lease_machine import MEMBERS, Pool

HERE = Path(__file__).parents[2]
TABLE = HERE / "docs" / "proof" / "leases.csv"
SOURCES = ("activities/lease_policy/*.py", "tests/unit/lease_checker/*.py", "tests/unit/lease_machine.py")
BATCH = 100
STEPS = 25


class Counting(Pool):
    """Counts what was decided."""

    seen: ClassVar[Counter[str]] = Counter()

    def _done(self, state, made):
        self.seen["decisions"] += 1
        self.seen.update(type(one).__name__.lower() for one in made)
        return super()._done(state, made)


def main() -> int:
    plant = os.environ.get("PLANT", "")
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    examples, minutes = int(os.environ.get("EXAMPLES", "50000")), float(os.environ.get("MINUTES", "60"))
    workers = int(os.environ.get("WORKERS", "2"))
    name = f"everloop-{'planted-' + plant if plant else 'proof'}-leases-{seed}-{sources()}"
    done = Path(tempfile.gettempdir()) / name
    done.touch()
    print(f"SEED={seed}, {done}", flush=True)
    began = time.monotonic()
    with planted(plant):
        broken = prove(examples, seed, done, began + 60 * minutes, workers)
    lines = [json.loads(line) for line in done.read_text().splitlines()]
    told = summary(lines, seed, broken)
    print(*(f"{name}: {value}" for name, value in told.items()), broken, sep="\n")
    if not plant:
        append(TABLE, told)
    return 1 if broken else 0


def sources() -> str:
    """Of what is proven and of what proves it."""
    digest = hashlib.sha256(f"{BATCH} {STEPS}".encode())
    for file in sorted(file for pattern in SOURCES for file in HERE.glob(pattern)):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def prove(examples: int, seed: int, done: Path, until: float, workers: int) -> str:
    """Run the batches that are not done yet. The first broken invariant; empty: none."""
    known = {json.loads(line)["batch"] for line in done.read_text().splitlines()}
    todo = [batch for batch in range((examples + BATCH - 1) // BATCH) if batch not in known]
    fork = multiprocessing.get_context("fork")  # with what is planted
    with ProcessPoolExecutor(workers, mp_context=fork) as processes, done.open("a") as target:
        running = {processes.submit(prove_one, seed, batch, until) for batch in todo}
        for ended in as_completed(running):
            told, broken = ended.result()
            if broken:
                for one in running:
                    one.cancel()  # and what runs comes to its end: a shutdown without waiting never ended
                return broken
            if told:
                target.write(json.dumps(told) + "\n")
                target.flush()
    return ""


def prove_one(seed: int, batch: int, until: float) -> tuple[dict, str]:
    """What was seen in a batch, and the broken invariant. Neither: there is no time left."""
    began = time.monotonic()
    if began > until:
        return {}, ""
    Counting.seen = Counter()
    Counting._hypothesis_internal_use_seed = f"{seed} {batch}"
    try:
        run_state_machine_as_test(Counting, settings=thorough())
    except AssertionError as error:
        return {}, f"batch {batch}: {error}"
    return {"batch": batch, "seen": Counting.seen, "seconds": round(time.monotonic() - began, 1)}, ""


def thorough() -> settings:
    return settings(
        max_examples=BATCH,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def summary(lines: list[dict], seed: int, broken: str) -> dict[str, object]:
    seen: Counter[str] = Counter()
    for line in lines:
        seen.update(line["seen"])
    kinds = ("decisions", "grant", "notice", "withdraw", "kill", "resize", "reserve", "explain")
    return {
        "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "commit": commit(),
        "seed": seed,
        "minutes": round(sum(line["seconds"] for line in lines) / 60, 1),
        "examples": len(lines) * BATCH,
        **{kind: seen[kind] for kind in kinds},
        "broken": int(bool(broken)),
        "sources": sources(),
    }


# --- faults that must be found --------------------------------------------------------------------


class Plant(NamedTuple):
    """A fault in the policy."""

    where: object
    name: str
    by: Callable[[Callable], Callable]
    """Makes the faulty function of the right one."""
    shows: str
    scene: Callable[[], None]
    """Something that happens in which it shows."""


@contextlib.contextmanager
def planted(plant: str) -> Iterator[None]:
    if not plant:
        yield
        return
    one = PLANTS[plant]
    with mock.patch.object(one.where, one.name, one.by(getattr(one.where, one.name))):
        yield


def _no_fence(right: Callable) -> Callable:
    def apply(state, decisions, now_ms, next_token):
        after = right(state, decisions, now_ms, next_token)
        gone = {one.token for one in decisions if isinstance(one, Kill)}
        return after._replace(held=tuple(held for held in after.held if held.token not in gone))

    return apply


def _no_quota(_right: Callable) -> Callable:
    return lambda _self, _node, _loses, _mode: True


def _no_minimum(right: Callable) -> Callable:
    def may(pool, held: Held) -> bool:
        pool.policy, own = pool.policy._replace(min_runtime_s=0), pool.policy
        try:
            return right(pool, held)
        finally:
            pool.policy = own

    return may


def _begun(quotas: tuple[int, int] = (NO_LIMIT, NO_LIMIT)) -> Pool:
    pool = Pool()
    queues = [Queue("", "", Counted(quota, NO_LIMIT)) for quota in quotas] + [Queue("")] * 5
    pool.begin([Amount(4, 2048)], light=False, tree=(("a", ""), ("b", "")), with_=queues, runtime=600)
    return pool


def _asks(pool: Pool, queue: str, times: int, priority: int = 50) -> None:
    pool.submit(queue, MEMBERS[0], priority, True, False, (1, 1), 0, times)


def _ignored_notices() -> None:
    pool = _begun()
    _asks(pool, "a", 4)
    pool.time_passes(700, True)
    _asks(pool, "b", 2)
    pool.time_passes(125, True)
    pool.time_passes(20, True)


def _in_quota() -> None:
    pool = _begun((3, 1))
    _asks(pool, "a", 3)
    _asks(pool, "b", 1)
    pool.time_passes(700, True)
    _asks(pool, "b", 1)
    pool.a_quota_is_edited(1, Counted(4, NO_LIMIT), Counted(NO_LIMIT, NO_LIMIT))


def _just_begun() -> None:
    pool = _begun()
    _asks(pool, "a", 4)
    pool.time_passes(20, True)
    _asks(pool, "b", 2)


PLANTS = {
    "1": Plant(sys.modules["activities.lease_policy"], "apply", _no_fence, "I7", _ignored_notices),
    "2": Plant(reclaim.Reclaim, "_can_lose", _no_quota, "I16", _in_quota),
    "3": Plant(victims, "_may", _no_minimum, "I19", _just_begun),
}
"""1: no fence, a killed lease's parts are free at once; 2: quota ignored in reclaim; 3: minimum run time ignored."""

if __name__ == "__main__":
    sys.exit(main())
