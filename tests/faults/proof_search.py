"""`make proof-search`: kill -9 of everything at trial 37 of 100, and whether the search has noticed.

One at a time: the same hundred suggestions and values as without the kill, and at most the job in flight runs again.
Four at once: none is lost, none is there twice, and each suggestion follows from what it knew. SEED= is the search's.
A line goes to docs/proof/search.csv. PLANT=1, 2, 3 loses a trial of what is looked at, doubles one, changes what one
drew: each must be found; it then ends with 1 and leaves no line.
"""

import os
import random
import sys
import tempfile
from pathlib import Path

from bench.figures import append
from everloop import settings as configuration
from everloop import stack
from everloop.trials import Trial
from tests.conftest import free_port_base
from tests.faults.proof_compute import commit
from tests.faults.searching import run, suggestions, wrong_with

TABLE = Path(__file__).parents[2] / "docs" / "proof" / "search.csv"
TRIALS, KILL_AT = 100, 37


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


def main() -> int:
    plant = os.environ.get("PLANT", "")
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    trials, kill_at = int(os.environ.get("TRIALS", str(TRIALS))), int(os.environ.get("KILL_AT", str(KILL_AT)))
    print(f"SEED={seed}", flush=True)
    faults: list[str] = []
    for parallel in (1, 4):
        os.environ["EVERLOOP_SLOTS"] = str(parallel + 1)
        with tempfile.TemporaryDirectory() as name:
            here = configuration.load(data_dir=Path(name) / "data", port_base=free_port_base())
            try:
                found = run(here, trials=trials, kill_at=kill_at, parallel=parallel, seed=seed)
                wrong = wrong_with(planted(plant, found.killed), here, trials)
                if parallel == 1 and suggestions(found.killed) != suggestions(found.whole):
                    wrong.append("other suggestions than without the kill")
                if found.killed_at >= trials:
                    wrong.append("it was over before it was killed")
                if found.again > parallel:
                    wrong.append(f"{found.again} jobs ran again, {parallel} were in flight")
            finally:
                stack.down(here)
        told = {"seed": seed, "parallel": parallel, "trials": trials, "killed_at": found.killed_at}
        print(told, f"jobs again: {found.again}", *wrong, sep="\n", flush=True)
        faults += wrong
        if not plant and not wrong:
            append(TABLE, {"commit": commit(), **told, "jobs_again": found.again, "faults": len(wrong)})
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
