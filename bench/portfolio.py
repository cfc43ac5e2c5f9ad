"""Good starting points of each family: `python bench/portfolio.py [--families lightgbm xgboost] [--minutes 30]`.

Points of each family's space, drawn by a seed, are judged in 3 folds (by time: 3 stretches) on up to 3,000 rows of each
dev table (`dev_tables.py`). Then, greedily, the point is taken that lowers the mean over the tables of the best loss so
far; the family's defaults come first. Losses are shares of the table's best. Resumable: losses stand in a CSV file.
Prints the portfolio, and what it is worth when each table in turn has no say in it; a portfolio that then is no better
than the defaults is not taken.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.dev_trials import TABLES, Kept, drawn, ready, spaces, told

SIZE = 5
"""Points of a portfolio, the defaults with them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=["lightgbm", "xgboost", "linear", "forest"])
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("docs/proof/portfolio.csv"))
    given = parser.parse_args()
    kept, until = Kept(given.out), time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        tables = [ready(name, given.rows, Path(folder)) for name in TABLES]
        for family in given.families:
            # A range follows the table's size: points are drawn for the smallest of them.
            space = spaces(family, min(tables, key=lambda each: each.prepared.train_rows))
            random = np.random.default_rng(0)
            points = [*space.portfolio, *(drawn(space, random) for _ in range(given.points))]
            for point in points:
                for table in tables:
                    if time.monotonic() < until or (table.name, family, told(point)) in kept.losses:
                        kept.loss(table, family, point, None, told(point))
            learned(family, kept)
    return 0


def learned(family: str, kept: Kept) -> None:
    """Print the portfolio that the losses make."""
    names = list(TABLES)
    points = list(dict.fromkeys(point for _, of, point in kept.losses if of == family))
    whole = [point for point in points if all((name, family, point) in kept.losses for name in names)]
    if len(whole) < 2:
        print(f"{family}: too few points have a loss on each table", flush=True)
        return
    losses = np.array([[kept.losses[name, family, point] for name in names] for point in whole])
    shares = np.minimum(losses / losses.min(axis=0), 3.0)
    chosen = greedy(shares, whole.index("{}"))
    print(f"{family}: {len(whole)} points on {len(names)} tables; loss beside the best point of each table:")
    for size in range(1, len(chosen) + 1):
        print(f"  {shares[chosen[:size]].min(axis=0).mean():.4f} with {whole[chosen[size - 1]]}")
    others = []
    for place in range(len(names)):
        rest = [at for at in range(len(names)) if at != place]
        others.append(shares[greedy(shares[:, rest], whole.index("{}")), place].min())
    print(
        f"  {np.mean(others):.4f} on a table that had no say, defaults {shares[whole.index('{}')].mean():.4f}",
        flush=True,
    )


def greedy(shares: np.ndarray, first: int) -> list[int]:
    taken = [first]
    while len(taken) < min(SIZE, len(shares)):
        best = shares[taken].min(axis=0)
        means = np.minimum(shares, best).mean(axis=1)
        means[taken] = np.inf
        taken.append(int(np.argmin(means)))
    return taken


if __name__ == "__main__":
    sys.exit(main())
