"""Which choices among features help: `python bench/choices.py [--families lightgbm linear] [--trials 50]`.

First each choice alone, beside the family's defaults, then a random search of so many trials over all of them at once,
in 3 folds (by time: 3 stretches) on up to 3,000 rows of each dev table and of two of strangers' files. What a fold
chooses, it chooses by its own train rows. Prints, for each choice, the loss beside the defaults on each table (below 1:
better), and on how many tables it is better by more than 0.5 %. Resumable: losses stand in a CSV file.
"""

import argparse
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.dev_trials import TABLES, Kept, Ready, drawn, prepared, ready, told
from everloop import choices

INPUTS = Path("/work/shared/inputs")
STRANGERS = {"t5_names": ("binary", "target"), "t1_values": ("binary", "income")}
METHODS = ("mutual_information", "correlation", "importance", "l1")
ALONE: tuple[dict[str, Any], ...] = (
    *({"features.selection": method, "features.keep": keep} for method in METHODS for keep in (0.5, 0.8)),
    {"features.near_duplicates": 0.95},
    *({"features.skew": how} for how in ("log1p", "yeo_johnson", "quantile")),
    {"features.interactions": 3},
    {"features.interactions": 6},
)
BETTER = 0.995


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=["lightgbm", "linear"])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("docs/proof/choices.csv"))
    given = parser.parse_args()
    kept, until = Kept(given.out), time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        tables = [*(ready(name, given.rows, Path(folder)) for name in TABLES), *strangers(Path(folder))]
        for family in given.families:
            for table in tables:
                for point in ({}, *ALONE):
                    if skewed(point) and family not in choices.LINES:
                        continue
                    if time.monotonic() < until:
                        judged(kept, table, family, point)
            alone(family, kept)
        random = {(family, table.name): np.random.default_rng(1) for family in given.families for table in tables}
        for _ in range(given.trials):
            for family, table in product(given.families, tables):
                columns = table.prepared.feature_count
                space = choices.space(table.spec, family, table.prepared.train_rows, columns)
                point = drawn(space, random[family, table.name])
                if time.monotonic() < until:
                    judged(kept, table, family, point)
    searched(kept)
    return 0


def skewed(point: dict[str, Any]) -> bool:
    return point.get("features.skew", choices.OFF) != choices.OFF


def strangers(folder: Path) -> list[Ready]:
    found = []
    for name, (task, target) in STRANGERS.items():
        path = INPUTS / f"{name}.csv"
        if path.exists():
            frame = pd.read_csv(path, skipinitialspace=True)
            frame.columns = [column.strip() for column in frame.columns]
            found.append(prepared(name, frame, task, target, None, folder))
    return found


def judged(kept: Kept, table: Ready, family: str, point: dict[str, Any]) -> float:
    chosen = choices.chosen(table.spec.features, point) if point else None
    return kept.loss(table, family, {}, chosen, told(point))


def alone(family: str, kept: Kept) -> None:
    names = list(dict.fromkeys(table for table, _, _ in kept.losses))
    print(f"{family}: loss beside the defaults, table by table ({', '.join(names)})")
    for point in ALONE:
        plain = [kept.losses.get((name, family, told({})), np.nan) for name in names]
        own = [kept.losses.get((name, family, told(point)), np.nan) for name in names]
        shares = np.array(own) / np.array(plain)
        if np.isnan(shares).all():
            continue
        better = int((shares < BETTER).sum())
        listed = " ".join(f"{share:.3f}" for share in shares)
        print(f"  {told(point)}: {listed}; mean {np.nanmean(shares):.4f}, better on {better}", flush=True)


def searched(kept: Kept) -> None:
    """What the best of a random search has chosen. Its loss is of the folds that chose it: too good by a little."""
    for family in dict.fromkeys(of for _, of, _ in kept.losses):
        for name in dict.fromkeys(table for table, _, _ in kept.losses):
            own = {point: loss for (table, of, point), loss in kept.losses.items() if (table, of) == (name, family)}
            if told({}) not in own:
                continue
            best = min(own, key=lambda point: own[point])
            print(f"{name} {family}: {own[best] / own[told({})]:.4f} of the defaults' loss, {len(own)} trials: {best}")


if __name__ == "__main__":
    sys.exit(main())
