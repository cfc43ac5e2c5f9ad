"""`make proof-compute`: every fault of a training at random moments, again and again, and what came of it in one line.

MINUTES= (30) and REPETITIONS= (20) bound it, whichever comes first. SEED= names the moments: the same seed again goes
on where it was stopped. A line goes to docs/proof/compute.csv. PLANT=1, 2, 3 puts a fault into the machinery itself
(no fence on checkpoints, no kill of the group, torn checkpoints accepted), which this must find: it then ends with 1
and leaves no line. TRAINER=torch (lightgbm) disturbs a training of ours that loads torch at each start, by the kills.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import append, commit
from tests.faults import compute_faults as faults
from tests.faults.compute_faults import Seen

TABLE = Path(__file__).parents[2] / "docs" / "proof" / "compute.csv"
KINDS = ("orphan", "overlap", "redone", "bytes", "fence", "torn", "report", "broken")
PLANTS = {
    "1": "from activities.jobs.checkpoints import Checkpoints\nCheckpoints.fenced = lambda self: False\n",
    "2": "import os, types\nfrom activities.jobs import reaper\n"
    "reaper.os = types.SimpleNamespace(**{**vars(os), 'killpg': os.kill})\n"
    "reaper._end_adopted = lambda deadline: None\n",
    "3": "from activities.jobs.checkpoints import Checkpoints\nCheckpoints.whole = lambda self, path, told: True\n",
}
LEARNERS = {"lightgbm": "learner", "torch": "torch_learner"}
SHOWS = {"1": ("stale token",), "2": ("cancel",), "3": ("torn checkpoint",)}
"""Where a planted fault shows."""


def main() -> int:
    plant, trainer = os.environ.get("PLANT", ""), os.environ.get("TRAINER", "lightgbm")
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    minutes, repetitions = float(os.environ.get("MINUTES", "30")), int(os.environ.get("REPETITIONS", "20"))
    kind, tested = f"planted-{plant}" if plant else "proof", commit()
    done = Path(tempfile.gettempdir()) / f"everloop-{kind}-compute-{trainer}-{seed}-{tested}.jsonl"
    print(f"SEED={seed}, {done}", flush=True)
    with tempfile.TemporaryDirectory(prefix="everloop-proof-") as folder:
        if plant:
            (Path(folder) / "planted.py").write_text(PLANTS[plant])
            os.environ["EVERLOOP_TEST_PLANTED"] = folder
        of_all = faults.FAULTS if trainer == "lightgbm" else faults.KILLS
        wanted = [(fault, number) for number in range(repetitions) for fault in SHOWS.get(plant, of_all)]
        began = time.monotonic()

        def room(name: str) -> faults.Room:
            return faults.Room(Path(folder) / name, learner=LEARNERS[trainer])

        prove(room, wanted, seed, done, time.monotonic() + 60 * minutes)
    seen = [Seen(**json.loads(line)["seen"]) for line in done.read_text().splitlines()]
    told: dict[str, object] = {"at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "commit": tested}
    told |= {"trainer": trainer} | summary(seen, seed, (time.monotonic() - began) / 60)
    print(*(f"{name}: {value}" for name, value in told.items()), sep="\n")
    wrong = [each for one in seen for each in one.wrong]
    print(*(f"WRONG {one.fault}: {each}" for one in seen for each in one.wrong), sep="\n")
    if not plant:
        append(TABLE, told)
    return 1 if wrong else 0


Rooms = Callable[[str], faults.Room]


def prove(open_room: Rooms, wanted: list[tuple[str, int]], seed: int, done: Path, until: float) -> None:
    """Run what is not done yet; each outcome is a line of *done*."""
    known = {tuple(json.loads(line)["key"]) for line in done.read_text().splitlines()} if done.exists() else set()
    done.touch()
    room = open_room("first")
    try:
        for fault, number in wanted:
            if (fault, number) in known:
                continue
            if time.monotonic() > until:
                return
            seen = one(room, fault, random.Random(f"{seed} {fault} {number}"), room.folder)
            with done.open("a") as target:
                target.write(json.dumps({"key": [fault, number], "seen": asdict(seen)}) + "\n")
            print(number, seen, flush=True)
            if "broken" in "".join(seen.wrong):  # what is left of it may be anything
                room.stop()
                room = open_room(f"again-{number}-{fault.replace(' ', '-')}")
    finally:
        room.stop()


def one(room: faults.Room, fault: str, numbers: random.Random, folder: Path) -> Seen:
    try:
        return asyncio.run(faults.run(room, fault, numbers, folder))
    except Exception as error:  # noqa: BLE001  # it never ended, or ended with an error: that is what we look for
        return Seen(fault, hit=True, wrong=[f"broken: {type(error).__name__}: {error}"])


def summary(seen: list[Seen], seed: int, minutes: float) -> dict[str, object]:
    wrong = Counter(each.partition(":")[0] for one in seen for each in one.wrong)
    hits = Counter(one.fault for one in seen if one.hit)
    again = sorted(one.again_seconds for one in seen if one.again_seconds is not None and one.fault in faults.KILLS)
    gone = sorted(one.gone_seconds for one in seen if one.gone_seconds is not None)
    return {
        "seed": seed,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[2], 1),
        "minutes": round(minutes, 1),
        "faults": len(seen),
        "hit": sum(hits.values()),
        "hits": " ".join(f"{fault.replace(' ', '_')}={hits[fault]}" for fault in faults.FAULTS),
        **{kind: wrong[kind] for kind in KINDS},
        "kill_to_round_p50_s": at(again, 0.5),
        "kill_to_round_max_s": at(again, 1.0),
        "cancel_to_gone_p50_s": at(gone, 0.5),
        "cancel_to_gone_p95_s": at(gone, 0.95),
    }


def at(ordered: list[float], share: float) -> float | str:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else ""


if __name__ == "__main__":
    sys.exit(main())
