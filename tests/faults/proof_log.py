"""`make proof-log`: prediction servers under load, kill -9 of one of them 20 times and of the log's keeper 10 times.

0 answered rows are lost and 0 count twice, across compaction, which is killed at random points too. PLANT=1..3 runs a
copy of the sources with a fault in it, which must be seen. A line goes to docs/proof/log.csv.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import append, commit
from tests.faults import log_harness as harness

TABLE = Path(__file__).parents[2] / "docs" / "proof" / "log.csv"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--plant", type=int, choices=sorted(harness.PLANTS), default=None)
    asked = parser.parse_args()
    random.seed(asked.seed)
    began, tested = time.monotonic(), commit()
    with tempfile.TemporaryDirectory(prefix="everloop-log-") as name:
        folder = Path(name)
        source = None if asked.plant is None else harness.planted(folder / "source", asked.plant)
        (folder / "data").mkdir()
        server = harness.Server(folder / "data", source, subprocess.DEVNULL)
        try:
            server.wait(lambda: server.status() == 1)
            wrong, load = harness.run(server, kills=asked.kills, seed=asked.seed)
        finally:
            server.parent.kill()
        files = len(list(server.index.folder.glob("parquet/*/*")))
        rows = server.index.rows(harness.ALWAYS)
    told: dict[str, object] = {
        "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "commit": tested,
        "planted": harness.PLANTS[asked.plant][0] if asked.plant else "",
        "seed": asked.seed,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "kills_of_a_server": asked.kills,
        "kills_of_the_keeper": (asked.kills + 1) // 2,
        "answered": len(load.answered),
        "not_answered": len(load.failed),
        "rows_read": rows,
        "parquet_files": files,
        "faults": len(wrong),
    }
    append(TABLE, told)
    print(*(f"{name}: {value}" for name, value in told.items()), *wrong, sep="\n")
    if asked.plant is None:
        return int(bool(wrong))
    print(f"planted: {harness.PLANTS[asked.plant][0]}; {'seen' if wrong else 'NOT SEEN'}")
    return int(not wrong)


if __name__ == "__main__":
    sys.exit(main())
