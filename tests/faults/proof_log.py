"""`make proof-log`: prediction servers under load; kill -9 of one of them 20 times (KILLS=), of the keeper 10 times.

0 answered rows are lost and 0 count twice, across compaction, which is killed at random points too. Five kills are one
round, with servers and a log of its own. MINUTES= (30) bounds it; with the same SEED on the same commit it goes on
where it was stopped. A kill has hit when the server left a question without an answer, or the keeper was compacting:
where none has, nothing is shown, and this ends with 1. PLANT=1..3 runs a copy of the sources with a fault in it (an
answer is given before it is in the log; lines count on beside the Parquet that was made of them; a file that is still
written counts as closed): it must end with 1. A line goes to docs/proof/log.csv.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import append, commit
from tests.faults import log_harness as harness

TABLE = Path(__file__).parents[2] / "docs" / "proof" / "log.csv"
KILLS_A_ROUND = 5


def main() -> int:
    plant = int(os.environ.get("PLANT", "0"))
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    kills, minutes = int(os.environ.get("KILLS", "20")), float(os.environ.get("MINUTES", "30"))
    tested = commit()
    kind = f"planted-{plant}-{os.getpid()}" if plant else "proof"
    done = Path(tempfile.gettempdir()) / f"everloop-{kind}-log-{seed}-{tested}.jsonl"
    done.touch()
    print(f"SEED={seed}, {done}", flush=True)
    until = time.monotonic() + 60 * minutes
    known = [json.loads(line) for line in done.read_text().splitlines()]
    for number in range(len(known), -(-kills // KILLS_A_ROUND)):
        if time.monotonic() > until:
            break
        known.append(a_round(min(KILLS_A_ROUND, kills - number * KILLS_A_ROUND), f"{seed} {number}", plant))
        print(known[-1], flush=True)
        with done.open("a") as target:
            target.write(json.dumps(known[-1]) + "\n")
        if known[-1]["wrong"]:
            break
    told = summary(known, plant, seed, tested)
    append(TABLE, told)
    wrong = [said for each in known for said in each["wrong"]]
    print(*(f"{name}: {value}" for name, value in told.items()), *wrong, sep="\n")
    if plant:
        print(f"planted: {harness.PLANTS[plant][0]}; {'seen' if wrong else 'NOT SEEN'}")
    if not told["hit_answering"] or not told["hit_compacting"]:
        print("no kill has met a server that answers, or none a keeper that compacts: nothing is shown")
        return 1
    return int(bool(wrong))


def a_round(kills: int, seed: str, plant: int) -> dict:
    """Servers and a log of their own, and so many kills."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="everloop-log-") as name:
        folder = Path(name)
        source = harness.planted(folder / "source", plant) if plant else None
        (folder / "data").mkdir()
        server = harness.Server(folder / "data", source, subprocess.DEVNULL)
        try:
            server.wait(lambda: server.status() == 1)
            wrong, load, hits = harness.run(server, kills=kills, seed=seed)
        finally:
            server.parent.kill()
        return {
            "seconds": round(time.monotonic() - began, 1),
            "kills_of_a_server": kills,
            "kills_of_the_keeper": (kills + 1) // 2,
            "hit_answering": hits.answering,
            "hit_compacting": hits.compacting,
            "answered": len(load.answered),
            "not_answered": len(load.failed),
            "rows_read": server.index.rows(harness.ALWAYS),
            "parquet_files": len(list(server.index.folder.glob("parquet/*/*"))),
            "wrong": wrong,
        }


def summary(rounds: list[dict], plant: int, seed: int, tested: str) -> dict[str, object]:
    counts: Counter[str] = Counter()
    for each in rounds:
        counts.update({name: value for name, value in each.items() if name != "wrong"})
    return {
        "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "commit": tested,
        "planted": harness.PLANTS[plant][0] if plant else "",
        "seed": seed,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),
        "minutes": round(counts.pop("seconds") / 60, 1),
        **counts,
        "faults": sum(len(each["wrong"]) for each in rounds),
    }


if __name__ == "__main__":
    sys.exit(main())
