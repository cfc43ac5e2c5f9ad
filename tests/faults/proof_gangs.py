"""`make proof-gangs`: a gang of four ranks, kill -9 of one of them KILLS= (10) times, and what came of it in one line.

By the ranks' own diaries: no rank outlives another's death by more than 2 s, no two attempts run at one time, all ranks
of an attempt go on from one epoch, and the loss is that of the same training without kills (tolerance 1e-6).
PLANT=1, 2, 3 puts a fault into the machinery (the others are not ended; attempts meet in one place; ranks other than 0
begin anew): it then has to end with 1 and leaves no line in docs/proof/gangs.csv.
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from activities.jobs import orders, ranks
from bench.figures import append
from tests.conftest import free_port_base
from tests.faults import gang_faults as gangs
from tests.faults import jobs_harness as harness
from tests.faults.proof_compute import at, commit
from workers import temporal

HERE = Path(__file__).parents[2]
TABLE = HERE / "docs" / "proof" / "gangs.csv"
MEMBERS = ("cpu0", "cpu1", "cpu2", "cpu3")
IN_JOBS = {
    "3": "from activities.jobs.gang import Followed\nFollowed.newest = lambda self: (self._gang.agreed(''), None)[1]\n"
}


def main() -> int:
    plant, kills = os.environ.get("PLANT", ""), int(os.environ.get("KILLS", "10"))
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"SEED={seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="everloop-gangs-") as folder:
        planted(plant, Path(folder))
        port = free_port_base()
        server = temporal.start(Path(folder) / "temporal.db", port, None, Path(folder) / "temporal.log")
        try:
            seen = asyncio.run(prove(Path(folder), f"127.0.0.1:{port}", kills, random.Random(seed)))
        except Exception as error:  # noqa: BLE001  # it never ended, or with an error: that is what we look for
            seen = gangs.Seen(wrong=[f"broken: {type(error).__name__}: {error}"])
        finally:
            server.stop()
    ended, again = sorted(seen.ended_seconds), sorted(seen.again_seconds)
    told: dict[str, object] = {
        "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "commit": commit(), "seed": seed, "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1), "minutes": round((time.monotonic() - began) / 60, 1),
        "ranks": len(MEMBERS), "kills": seen.kills, "wrong": len(seen.wrong), "loss": seen.loss,
        "accuracy": seen.accuracy, "death_to_all_ended_p50_s": at(ended, 0.5),
        "death_to_all_ended_max_s": at(ended, 1.0),
        "death_to_epoch_p50_s": at(again, 0.5), "death_to_epoch_max_s": at(again, 1.0),
    }  # fmt: skip
    print(*(f"{name}: {value}" for name, value in told.items()), sep="\n")
    print(*(f"WRONG {each}" for each in seen.wrong), sep="\n")
    if not plant and not seen.wrong:
        append(TABLE, told)
    return int(bool(seen.wrong) or seen.kills < kills)


def planted(plant: str, folder: Path) -> None:
    """A fault in the machinery."""
    if plant == "1":

        async def nobody(left: object) -> None:
            await asyncio.sleep(2 * gangs.LONGEST_SECONDS)

        real = ranks.together
        ranks.together = lambda tasks, end, tell: real(tasks, nobody, tell)
    if plant == "2":
        orders.Orders._meeting_place = lambda self, asked: str(folder / asked.job.replace("/", "-"))
        ranks.leave = lambda orders: None
    if plant in IN_JOBS:
        (folder / "planted.py").write_text(IN_JOBS[plant])
        os.environ["EVERLOOP_TEST_PLANTED"] = str(folder)


async def prove(folder: Path, address: str, kills: int, numbers: random.Random) -> gangs.Seen:
    dask = await asyncio.to_thread(gangs.room, folder / "data", address, len(MEMBERS))
    try:
        async with harness.bridge(dask.settings, dask, root=gangs.ROOT) as bridge:
            return await gangs.killed(bridge, folder, MEMBERS, kills, numbers, epochs=20 * (kills + 2))
    finally:
        await asyncio.to_thread(dask.stop)


if __name__ == "__main__":
    sys.exit(main())
