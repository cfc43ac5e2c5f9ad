"""`make proof-log`: prediction servers under load, kill -9 of one of them 20 times and of the log's keeper 10 times.

0 answered rows are lost and 0 count twice, across compaction, which is killed at random points too. PLANT=1..3 runs a
copy of the sources with a fault in it, which must be seen.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import log_harness as harness


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--plant", type=int, choices=sorted(harness.PLANTS), default=None)
    asked = parser.parse_args()
    random.seed(asked.seed)
    began = time.monotonic()
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
    print(
        f"seed {asked.seed}: {asked.kills} kills of a server, {(asked.kills + 1) // 2} of the keeper in "
        f"{time.monotonic() - began:.0f} s: {len(load.answered)} answered, {len(load.failed)} not, {rows} rows in "
        f"{files} files of Parquet; {len(wrong)} faults"
    )
    print(*wrong, sep="\n")
    if asked.plant is None:
        return int(bool(wrong))
    print(f"planted: {harness.PLANTS[asked.plant][0]}; {'seen' if wrong else 'NOT SEEN'}")
    return int(not wrong)


if __name__ == "__main__":
    sys.exit(main())
