"""Rows of `bench/automl.py`: kept one by one in CSV files inside the repository, added to over many sessions.

A row is on the disk as soon as it is measured. A table is judged when it is whole: three splits of ours and of every
peer. As long as one is not, the goals about tables are said to be incomplete, and are not judged.
"""

import csv
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.dev_tables import SPLITS, TABLES
from bench.figures import said

OURS, DEFAULT = "everloop", "lightgbm_default"
PEERS = (DEFAULT, "optuna_lightgbm", "flaml_automl", "autogluon_tabular")
TIE = 0.01
ENOUGH = 6
"""Tables of eight on which ours is to be among the best."""
COLUMNS = (
    "tool", "version", "commit", "table", "split", "budget_s", "metric", "loss", "wall_s", "search_s", "learn_s",
    "refit_s", "export_s", "row_ms", "model_mib", "trials", "overhead_ms", "chosen", "error", "seed", "cores",
    "machine", "python", "at", "others_before", "others_after", "load", "quiet",
)  # fmt: skip

Row = dict[str, Any]


@dataclass
class Results:
    """The rows of a file, the newest of each run."""

    path: Path
    budget_s: int
    loud: bool
    """Count rows that are not quiet."""
    only_of: str = ""
    """A commit: rows of ours of another do not count."""

    def rows(self) -> list[Row]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            counted = [row for row in csv.DictReader(file) if self._counts(row)]
        newest = {(row["tool"], row["table"], row["split"]): row for row in counted}
        return list(newest.values())

    def _counts(self, row: Mapping[str, str | None]) -> bool:
        if set(row) != set(COLUMNS) or None in row.values():  # a write that was killed, or another version's
            return False
        if self.only_of and row["tool"] == OURS and row["commit"] != self.only_of:
            return False
        return row["budget_s"] == str(self.budget_s) and (self.loud or row["quiet"] == "yes")

    def has(self, tool: str, table: str, split: int) -> bool:
        """Was it run? A peer that failed is not run again; ours is."""
        mine = [row for row in self.rows() if (row["tool"], row["table"], row["split"]) == (tool, table, str(split))]
        return bool(mine) and bool(mine[0]["loss"] or tool != OURS)

    def add(self, row: Row) -> None:
        """Append it, and see it on the disk. What a killed write has left becomes a line of its own."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        there = self.path.read_bytes() if self.path.exists() else b""
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if there and not there.endswith(b"\n"):
                file.write("\n")
            if not there:
                writer.writeheader()
            writer.writerow({name: row.get(name, "") for name in COLUMNS})
            file.flush()
            os.fsync(file.fileno())
        told = row["error"] if row.get("loss", "") == "" else f"{row['metric']} {row['loss']:.4f}"
        loud = "" if row["quiet"] == "yes" else "(the machine was busy: it does not count)"
        print(f"{row['tool']:17} {row['table']:12} {row['split']}  {told} {loud}", flush=True)


@dataclass
class Standing:
    """What there is of each table, and what is still to be measured."""

    losses: dict[str, dict[str, list[float]]]
    """By table and tool, split by split; of a tool that has all splits."""
    failed: dict[str, dict[str, str]]
    """By table, peers that failed on a split, with the error."""
    lacking: dict[str, list[str]] = field(default_factory=dict)
    """By table, `tool 2 of 3`."""

    @property
    def whole(self) -> list[str]:
        return [name for name in TABLES if not self.lacking[name] and OURS in self.losses.get(name, {})]


def standing(rows: Sequence[Row]) -> Standing:
    """A peer that failed on one split of a table is not judged on it, and does not keep the table from being whole."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    failed: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["loss"]:
            found.setdefault(row["table"], {}).setdefault(row["tool"], {})[row["split"]] = float(row["loss"])
        else:
            failed.setdefault(row["table"], {})[row["tool"]] = row["error"]
    made = Standing(
        {
            table: {tool: [each[split] for split in sorted(each)] for tool, each in tools.items() if _all(each)}
            for table, tools in found.items()
        },
        failed,
    )
    for table in TABLES:
        counts = {tool: len(found.get(table, {}).get(tool, {})) for tool in (OURS, *PEERS)}
        excused = {tool for tool in failed.get(table, {}) if tool != OURS}
        made.lacking[table] = [
            f"{tool} {count} of {SPLITS}" for tool, count in counts.items() if count < SPLITS and tool not in excused
        ]
    return made


def _all(splits: Mapping[str, float]) -> bool:
    return len(splits) == SPLITS


# --- the judgement --------------------------------------------------------------------------------


def paired(mine: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The mean difference of the same splits, and its standard error."""
    apart = [one - two for one, two in zip(mine, other, strict=True)]
    return statistics.mean(apart), statistics.stdev(apart) / len(apart) ** 0.5


def beyond(mine: Sequence[float], other: Sequence[float], tie: float) -> bool:
    """Is *mine* worse by more than a tie and more than a standard error of the paired difference?"""
    mean, error = paired(mine, other)
    return mean > max(tie * statistics.mean(other), error)


def judged(rows: Sequence[Row]) -> bool:
    """Prints the table, what it was made on, what is missing, and the goals. Is nothing missing, and all met?"""
    stands = standing(rows)
    print(markdown(stands.losses))
    _provenance(rows)
    for table, tools in stands.failed.items():
        for tool, error in tools.items():
            print(f"failed: {tool} on {table}: {error}")
    for table, missing in stands.lacking.items():
        if missing:
            print(f"incomplete: {table}: {', '.join(missing)}")
    whole = {name: stands.losses[name] for name in stands.whole}
    good = [name for name, tools in whole.items() if not beyond(tools[OURS], tools[_best(tools)], TIE)]
    worse = [name for name, tools in whole.items() if DEFAULT in tools and beyond(tools[OURS], tools[DEFAULT], 0.0)]
    print(f"of {len(whole)} whole tables, not among the best on: {', '.join(sorted(set(whole) - set(good))) or 'none'}")
    print(f"worse than LightGBM's default on: {', '.join(worse) or 'none'}")
    met = [*_tables(whole, good, worse), *_ours(rows)]
    return all(met)


def _best(tools: Mapping[str, Sequence[float]]) -> str:
    """The best peer."""
    return min((statistics.mean(each), tool) for tool, each in tools.items() if tool != OURS)[1]


def _tables(whole: Mapping[str, object], good: Sequence[str], worse: Sequence[str]) -> list[bool]:
    """Goals about all tables: judged when all are whole."""
    if len(whole) < len(TABLES):
        for name, found in (("tables_among_the_best", good), ("tables_worse_than_default", worse)):
            print(f"{name} {len(found)} incomplete: {len(whole)} of {len(TABLES)} tables are whole")
        return [False]
    return [
        said("tables_among_the_best", len(good), ENOUGH, least=True),
        said("tables_worse_than_default", len(worse), 0, exact=True),
    ]


def _ours(rows: Sequence[Row]) -> list[bool]:
    """Goals about each search of ours. Of all of them, or nobody knows the worst."""
    mine = [row for row in rows if row["tool"] == OURS and row["loss"]]
    if not mine:
        print("nothing of ours is measured yet")
        return [False]
    if len(mine) < len(TABLES) * SPLITS:
        print(f"incomplete: of ours {len(mine)} of {len(TABLES) * SPLITS} searches; the worst of these:")
    return [
        len(mine) == len(TABLES) * SPLITS,
        said("search_over_budget", max(float(row["search_s"]) / float(row["budget_s"]) for row in mine), 1.1),
        said("row_ms", max(float(row["row_ms"]) for row in mine), 1.0),
        said("model_mib", max(float(row["model_mib"]) for row in mine), 20.0),
    ]


def _provenance(rows: Iterable[Row]) -> None:
    """On which machines, and of ours by which commits: sessions may differ."""
    counts: dict[str, int] = {}
    for row in rows:
        own = f", commit {row['commit']}" if row["tool"] == OURS else ""
        where = f"{'ours' if own else 'peers'} on {row['machine']}{own}"
        counts[where] = counts.get(where, 0) + 1
    for where, count in sorted(counts.items()):
        print(f"{count} rows of {where}")


def markdown(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Mean losses of the three splits, the least in bold; then ours less the best peer's, with its standard error."""
    tools = [OURS, *PEERS]
    head = ["table", *tools, "ours less the best peer's"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for table in TABLES:
        each = found.get(table, {})
        if not each:
            continue
        means = {tool: statistics.mean(values) for tool, values in each.items()}
        least = min(means.values(), default=0.0)
        cells = ["**" * (means.get(tool) == least) for tool in tools]
        cells = [
            f"{mark}{means[tool]:.5g}{mark}" if tool in means else "" for tool, mark in zip(tools, cells, strict=True)
        ]
        lines.append(f"| {table} | {' | '.join(cells)} | {_apart(each, means)} |")
    return "\n".join(lines)


def _apart(each: Mapping[str, list[float]], means: Mapping[str, float]) -> str:
    peers = [tool for tool in means if tool != OURS]
    if not peers or OURS not in each:
        return ""
    best = min(peers, key=means.__getitem__)
    mean, error = paired(each[OURS], each[best])
    return f"{mean:+.2g} ± {error:.2g} ({100 * mean / means[best]:+.1f} %)"
