"""Runs what is asked for and says how it lies to the goals.

    python -m bench.drift [--only cost flights_60k flights rodents chicago hotel_rates false_alarms]

cost: a decision beside Evidently's preset (cost.py). The tables: tables.py. false_alarms: 100 streams of shuffled rows.
Prints a line per goal, `NAME VALUE goal LIMIT met|missed`, and exits 1 when one is missed. Each part is a line of
bench/drift.csv as soon as it has ended; the same code goes on where it was stopped (--again: from the start;
--any-commit: lines of other code count too). Its code is the last commit that changed what is measured (MEASURED), so
the lines themselves may be committed meanwhile.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench.drift import alarms, cost, tables
from bench.drift.loop import Loop
from bench.figures import append, said

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "bench" / "drift.csv"
MEASURED = (
    "activities/compute", "activities/drift", "activities/trigger_policy.py", "activities/schema_breaks.py",
    "everloop/predictions", "everloop/records", "everloop/specs", "bench/drift", "examples/flights.py",
)  # fmt: skip
SEEDS = (0, 1, 2)
CPU_SECONDS, MEMORY_MIB = 4.0, 1200.0
STREAMS, STREAMS_AT_ONCE = 100, 10
FALSE_ALARMS = 0.05
MOST_RETRAININGS = 6

Figures = dict[str, float]


@dataclass
class Kept:
    """What was measured of this code, part by part."""

    tested: str
    again: bool
    any_commit: bool

    def of(self, name: str, seed: int, make: Callable[[], Figures]) -> Figures:
        """The figures of a part: as they were written down, or measured now."""
        known = None if self.again else self._written(name, seed)
        if known is not None:
            print(f"{name}, {seed}: {known} (measured before)", flush=True)
            return known
        print(f"{name}, {seed}", flush=True)
        began = time.monotonic()
        made = make()
        append(
            TABLE,
            {
                "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
                "commit": self.tested,
                "name": name,
                "seed": seed,
                "seconds": round(time.monotonic() - began, 1),
                "load": round(os.getloadavg()[0], 1),
                "figures": " ".join(f"{key}={value:.6g}" for key, value in made.items()),
            },
        )
        return made

    def _written(self, name: str, seed: int) -> Figures | None:
        if not TABLE.exists():
            return None
        with TABLE.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row["name"], row["seed"]) == (name, str(seed))]
        rows = [row for row in rows if row["commit"]]  # of an older bench: it told less
        rows = [row for row in rows if self.any_commit or ("dirty" not in self.tested and row["commit"] == self.tested)]
        return _read(rows[-1]["figures"]) if rows else None


def code() -> str:
    """The last commit that changed what is measured, `-dirty` where a file of it differs from what is committed."""

    def git(*command: str) -> str:
        told = subprocess.run(["git", *command, "--", *MEASURED], cwd=ROOT, capture_output=True, text=True, check=True)
        return told.stdout.strip()

    return git("log", "-1", "--format=%h") + ("-dirty" if git("status", "--porcelain") else "")


def _read(text: str) -> Figures:
    return {key: float(value) for key, _, value in (pair.partition("=") for pair in text.split())}


def figures_of(loop: Loop) -> Figures:
    return {
        "windows": len(loop.live),
        "frozen": float(np.mean(loop.frozen)),
        "live": float(np.mean(loop.live)),
        "last_frozen": loop.frozen[-1],
        "last_live": loop.live[-1],
        "retrainings": loop.retrainings,
        "released": loop.released,
        "worse_released": loop.worse["released"],
        "worse_rejected": loop.worse["not_better"],
        "breaker_open": loop.verdicts["breaker_open"],
        "quarantined": loop.verdicts["quarantined"],
    }


# --- goals ------------------------------------------------------------------------------------------


def of_flights(kept: Kept, name: str, rows: int | None, seeds: Sequence[int], folder: Path) -> Iterator[bool]:
    def one(seed: int) -> Figures:
        return figures_of(tables.flights(rows, seed, folder / f"{name}-{seed}"))

    told = [kept.of(name, seed, lambda seed=seed: one(seed)) for seed in seeds]  # type: ignore[misc]
    yield said(f"{name}_gain_auc", min(each["live"] - each["frozen"] for each in told), 0.03, least=True)
    yield said(f"{name}_retrainings", max(each["retrainings"] for each in told), MOST_RETRAININGS)


def of_rodents(kept: Kept, folder: Path) -> Iterator[bool]:
    told = kept.of("rodents", 0, lambda: figures_of(tables.rodents(folder / "rodents")))
    yield said("rodents_gain_accuracy", told["live"] - told["frozen"], 0.1, least=True)


def of_chicago(kept: Kept, folder: Path) -> Iterator[bool]:
    told = kept.of("chicago", 0, lambda: figures_of(tables.chicago(folder / "chicago")))
    yield said("chicago_rmse_live_by_frozen", told["live"] / told["frozen"], 0.8)


def of_hotel(kept: Kept, folder: Path) -> Iterator[bool]:
    """The season comes back in August: a challenger of the winter that is worse then must have been rejected."""
    told = kept.of("hotel_rates", 0, lambda: figures_of(tables.hotel(folder / "hotel")))
    yield said("hotel_rates_last_rmse_live_by_frozen", told["last_live"] / told["last_frozen"], 1.05)
    yield said("hotel_rates_rmse_live_by_frozen", told["live"] / told["frozen"], 1.0)
    yield said("hotel_rates_rejected", told["retrainings"] - told["released"], 1, least=True)
    yield said("hotel_rates_worse_released", told["worse_released"], 0)


def of_false_alarms(kept: Kept, streams: int, folder: Path) -> Iterator[bool]:
    """Windows of shuffled flights, of which none has moved."""

    def ten(first: int) -> Figures:
        return alarms.streams(range(first, first + STREAMS_AT_ONCE), folder / f"streams-{first}")

    firsts = range(0, streams, STREAMS_AT_ONCE)
    told = [kept.of("false_alarms", first, lambda first=first: ten(first)) for first in firsts]  # type: ignore[misc]
    total = {key: sum(each[key] for each in told) for key in told[0]}
    print(f"{total['windows']:.0f} windows; {total['columns'] / total['asked']:.2%} of the columns drifted")
    for name in alarms.ALARMS:
        of = "labelled" if name in alarms.BY_LABELS else "windows"
        yield said(f"false_alarms_{name}", total[name] / total[of], FALSE_ALARMS)


def of_cost(kept: Kept, folder: Path, peer: bool) -> Iterator[bool]:
    told = kept.of("cost", int(peer), lambda: cost.measured(folder, peer))
    yield said("decision_cpu_seconds", told["cpu"], CPU_SECONDS)
    yield said("decision_mib", told["mib"], MEMORY_MIB)
    if peer:
        print(f"Evidently's DataDriftPreset on all rows: {told['peer_cpu']:.1f} CPU-s, {told['peer_mib']:,.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--any-commit", action="store_true")
    asked = parser.parse_args()
    seeds, kept = SEEDS[: asked.seeds], Kept(code(), asked.again, asked.any_commit)
    with tempfile.TemporaryDirectory(prefix="everloop-drift-") as made:
        folder = Path(made)
        every: dict[str, Callable[[], Iterator[bool]]] = {
            "cost": lambda: of_cost(kept, folder, not asked.no_peer),
            "flights_60k": lambda: of_flights(kept, "flights_60k", 60_000, seeds, folder),
            "rodents": lambda: of_rodents(kept, folder),
            "chicago": lambda: of_chicago(kept, folder),
            "hotel_rates": lambda: of_hotel(kept, folder),
            "false_alarms": lambda: of_false_alarms(kept, asked.streams, folder),
            "flights": lambda: of_flights(kept, "flights", None, seeds, folder),
        }
        met = [each for name, goals in every.items() if not asked.only or name in asked.only for each in goals()]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
