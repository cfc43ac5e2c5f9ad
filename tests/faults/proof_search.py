"""`make proof-search`: kill -9 of everything at trial 37 of 100, and whether the search has noticed.

One at a time: the same hundred suggestions and values as without the kill, and only the job in flight runs again.
Four at once: none is lost, none is there twice, and each suggestion follows from what it knew. The first two rounds
kill at trial 37; with MINUTES= more follow, one and four at once in turn, at trials that the seed draws, until the time
is over. SEED= is the search's, too; with the same one a run that was stopped goes on after the rounds that it has
written down. A line of each round goes to docs/proof/search.csv as soon as it is over; in each it is also looked
whether a lost, a doubled and a changed trial would be found.

PLANT=1, 2, 3 loses a trial of what is looked at, doubles one, changes what one drew: one short round, which must fail;
it ends with 1 and leaves no line.
"""

import csv
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import append, commit
from everloop import settings as configuration
from everloop import stack
from everloop.trials import Trial
from tests.conftest import free_port_base
from tests.faults.searching import Found, run, suggestions, wrong_with

TABLE = Path(__file__).parents[2] / "docs" / "proof" / "search.csv"
TRIALS, KILL_AT, AT_ONCE = 100, 37, (1, 4)
OF_A_PLANT = (30, 12)
PLANTS = {"1": "a trial is lost", "2": "one is there twice", "3": "one has drawn something else"}


def planted(plant: str, trials: list[Trial]) -> list[Trial]:
    other = next((trial for trial in trials if trial.origin == "sampler"), trials[0])
    match plant:
        case "1":
            return [trial for trial in trials if trial is not other]
        case "2":
            return [*trials, other]
        case "3":
            drawn = {name: value for name, value in other.drawn.items() if isinstance(value, float)}
            changed = other.model_copy(update={"drawn": other.drawn | {name: v * 0.99 for name, v in drawn.items()}})
            return [changed if trial is other else trial for trial in trials]
    return trials


def rounds(seed: int, trials: int, kill_at: int) -> Iterator[tuple[int, int, int]]:
    """Number, how many at once, and when it is killed."""
    for number in itertools.count():
        drawn = random.Random(f"{seed} {number}").randrange(2, trials * 9 // 10)
        yield number, AT_ONCE[number % 2], kill_at if number < len(AT_ONCE) else drawn


def written_down(seed: int) -> set[str]:
    """Rounds of that seed, by this commit."""
    if not TABLE.exists():
        return set()
    with TABLE.open(newline="") as file:
        return {row["round"] for row in csv.DictReader(file) if (row["seed"], row["commit"]) == (str(seed), commit())}


def tested(parallel: int, trials: int, kill_at: int, seed: int, plant: str) -> tuple[Found, list[str]]:
    """One round, and what was wrong with it."""
    os.environ["EVERLOOP_SLOTS"] = str(parallel + 1)
    compares = parallel == 1 and not plant
    with tempfile.TemporaryDirectory(prefix="everloop-search-") as name:
        here = configuration.load(data_dir=Path(name) / "data", port_base=free_port_base())
        try:
            found = run(here, trials=trials, kill_at=kill_at, parallel=parallel, seed=seed, whole=compares)
            wrong = wrong_with(planted(plant, found.killed), here, trials)
            for other in PLANTS if not plant else ():
                if not wrong_with(planted(other, found.killed), here, trials):
                    wrong.append(f"it would not be found that {PLANTS[other]}")
        finally:
            stack.down(here)
    if compares and suggestions(found.killed) != suggestions(found.whole):
        wrong.append("other suggestions than without the kill")
    if found.told >= trials:
        wrong.append("it was over before it was killed")
    if found.jobs_again > parallel:
        wrong.append(f"{found.jobs_again} jobs ran again, {parallel} were in flight")
    if found.told_again:
        wrong.append(f"trials that were written down ran again: {found.told_again}")
    return found, wrong


def main() -> int:
    plant, minutes = os.environ.get("PLANT", ""), float(os.environ.get("MINUTES", "0"))
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    usual = OF_A_PLANT if plant else (TRIALS, KILL_AT)
    trials, kill_at = (
        int(os.environ.get(name, str(each))) for name, each in zip(("TRIALS", "KILL_AT"), usual, strict=True)
    )
    print(f"SEED={seed}", flush=True)
    until, took, kills, hit, faults = time.monotonic() + 60 * minutes, 0.0, 0, 0, 0
    known = set() if plant else written_down(seed)
    for number, parallel, at in rounds(seed, trials, kill_at):
        if number >= (1 if plant else len(AT_ONCE)) and (plant or time.monotonic() + took > until):
            break
        if str(number) in known:
            continue
        began, tree = time.monotonic(), commit()
        found, wrong = tested(parallel, trials, at, seed + number // 2, plant)
        took = max(took, time.monotonic() - began)
        kills, hit, faults = kills + 1, hit + bool(found.jobs_again), faults + len(wrong)
        told = {
            "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
            "commit": tree,
            "seed": seed,
            "round": number,
            "parallel": parallel,
            "trials": trials,
            "ended_at_kill": found.tried,
            "told_at_kill": found.told,
            "jobs_again": found.jobs_again,
            "trials_again": len(found.trials_again),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "seconds": round(time.monotonic() - began),
            "faults": len(wrong),
        }
        if not plant:
            append(TABLE, told)
        print(told, *wrong, sep="\n", flush=True)
    print(f"{kills} kills of everything, {hit} of them hit jobs in flight; {faults} faults", flush=True)
    if plant:
        print(f"planted: {PLANTS[plant]}; {'seen' if faults else 'NOT SEEN'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
