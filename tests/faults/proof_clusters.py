"""`make proof-clusters`: two hosts whose disks are not ours, somebody else's Dask scheduler, Postgres and S3.

First a lifecycle of which nothing is killed, and a gang; then, again and again, a lifecycle that is killed in each of
its phases (its job or the whole host; at the gate and in the release the control plane), whose table two members
prepare, and a gang across both hosts of which a rank or a host is killed. What was not hurt says what has to come out:
the same bytes of the prepared rows, the preprocessing and the model, the same metrics.

MINUTES= (30) and ROUNDS= (3) bound it, ONLY=gang or ONLY=lifecycle leaves out the other. SEED= names the moments: the
same seed goes on where it was stopped. A line goes to docs/proof/clusters.csv. PLANT=1, 2, 3 puts a fault into the
machinery (checkpoints on the store are not found; of a gang that goes on ranks other than 0 begin anew; what a rank has
found in its rows is lost), which this must find: it then ends with 1 and leaves no line. As root the hosts have
networks and mounts of their own.
"""

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.figures import append
from tests.faults import cluster_faults as faults
from tests.faults.cluster_faults import Room, Seen
from tests.faults.proof_compute import at, commit

TABLE = Path(__file__).parents[2] / "docs" / "proof" / "clusters.csv"
KINDS = ("bytes", "metric", "redone", "stages", "late", "devices", "left", "journal", "broken")
ANEW = "Followed.newest = lambda self: (self.claim(), self._gang.agreed(''), None)[2]"
PLANTS = {
    "1": ("activities.jobs.depot", "Depot.places = lambda self: []"),
    "2": ("activities.jobs.gang", ANEW),
    "3": ("activities.compute.features.columns", "Numbers.merged = classmethod(lambda cls, parts: parts[0])"),
}
SHOWS = {"1": "lifecycle", "2": "gang", "3": "lifecycle"}
"""Where a planted fault shows."""
PLANTED = """
import importlib.abc, importlib.util, sys

class Planted(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(name)
        execute = found.loader.exec_module

        def exec_module(module):
            execute(module)
            exec({change!r}, vars(module))

        found.loader.exec_module = exec_module
        return found

sys.meta_path.insert(0, Planted())
"""
"""As a `sitecustomize` of all processes of the control plane and the hosts: it changes a module once that is loaded."""


def main() -> int:
    plant = os.environ.get("PLANT", "")
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    minutes, rounds = float(os.environ.get("MINUTES", "30")), int(os.environ.get("ROUNDS", "3"))
    kind, tested = f"planted-{plant}" if plant else "proof", commit()
    done = Path(tempfile.gettempdir()) / f"everloop-{kind}-clusters-{seed}-{tested}.jsonl"
    done.touch()
    print(f"SEED={seed}, {done}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="everloop-clusters-") as folder:
        if plant:
            plant_in(Path(folder), *PLANTS[plant])
        apart = prove(
            Path(folder), wanted(plant, rounds, os.environ.get("ONLY", "")), seed, done, began + 60 * minutes, plant
        )
    seen = [Seen(**json.loads(line)) for line in done.read_text().splitlines()]
    told: dict[str, object] = {"at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "commit": tested}
    told |= summary(seen, seed, (time.monotonic() - began) / 60, apart=apart)
    print(*(f"{name}: {value}" for name, value in told.items()), sep="\n")
    print(*(f"missed in {one.name}: {each}" for one in seen for each in one.missed), sep="\n")
    wrong = [f"{one.name}: {each}" for one in seen for each in one.wrong]
    print(*(f"WRONG {each}" for each in wrong), sep="\n")
    if not plant and any(one.hits for one in seen):
        append(TABLE, told)
    return int(bool(wrong) or not any(one.hits for one in seen))


def plant_in(folder: Path, module: str, change: str) -> None:
    where = folder / "planted"
    where.mkdir()
    (where / "sitecustomize.py").write_text(PLANTED.format(module=module, change=change))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(where), os.environ.get("PYTHONPATH", "")]))


def wanted(plant: str, rounds: int, only: str) -> list[tuple[str, int]]:
    """What is run in this order: number 0 is not hurt."""
    of_all = (SHOWS[plant],) if plant else (only,) if only else ("lifecycle", "gang")
    return [(each, number) for number in range((1 if plant else rounds) + 1) for each in of_all]


def prove(  # noqa: PLR0917
    folder: Path, cases: list[tuple[str, int]], seed: int, done: Path, until: float, plant: str
) -> bool:
    """Run what is not done yet; each outcome is a line of *done*. Have the hosts networks of their own?"""
    lines = [json.loads(line) for line in done.read_text().splitlines()]
    made: dict[str, dict[str, Any]] = {line["name"]: line["made"] for line in lines}
    with faults.opened(folder) as room:
        for what, number in cases:
            name = f"{what}-{number}"
            if name in made:
                continue
            if time.monotonic() > until:
                break
            seen = one(room, what, name, random.Random(f"{seed} {name}"), made.get(f"{what}-0", {}), plant)
            made[name] = seen.made
            with done.open("a") as target:
                target.write(json.dumps(asdict(seen)) + "\n")
            print(f"{name}: hit {seen.hits}, missed {seen.missed}, wrong {seen.wrong}", flush=True)
            if "broken" in "".join(seen.wrong):  # what is left of it may be anything
                break
        return room.cluster.apart


def one(  # noqa: PLR0917
    room: Room, what: str, name: str, numbers: random.Random, unhurt: dict[str, Any], plant: str
) -> Seen:
    try:
        if what == "gang":
            return faults.gang(room, name, numbers, unhurt)
        return faults.lifecycle(room, name, numbers, unhurt, ("prepare", "train") if plant else faults.PHASES)
    except Exception as error:  # noqa: BLE001  # it never ended, or ended with an error: that is what we look for
        return Seen(name, wrong=[f"broken: {type(error).__name__}: {error}"])


def summary(seen: list[Seen], seed: int, minutes: float, *, apart: bool) -> dict[str, object]:
    hits = Counter(each for one in seen for each in one.hits)
    missed = Counter(each for one in seen for each in one.missed)
    wrong = Counter(each.partition(":")[0] for one in seen for each in one.wrong)
    again = sorted(each for one in seen for each in one.again_seconds)
    ended = sorted(each for one in seen for each in one.ended_seconds)
    return {
        "seed": seed,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[2], 1),
        "minutes": round(minutes, 1),
        "networks": "apart" if apart else "one",
        "lifecycles": sum(one.name.startswith("lifecycle") for one in seen),
        "gangs": sum(one.name.startswith("gang") for one in seen),
        "kills": hits.total() + missed.total(),
        "hit": hits.total(),
        "hits": " ".join(f"{each.replace(' ', '_')}={count}" for each, count in sorted(hits.items())),
        **{kind: wrong[kind] for kind in KINDS},
        "kill_to_stage_end_p50_s": at(again, 0.5),
        "kill_to_stage_end_max_s": at(again, 1.0),
        "death_to_all_ended_max_s": at(ended, 1.0),
    }


if __name__ == "__main__":
    sys.exit(main())
