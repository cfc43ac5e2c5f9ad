"""Everloop's search beside AutoML tools: `python bench/automl.py`.

Eight tables (`bench/dev_tables.py`), three pairs of train and test rows each, the same for all; 60 seconds of search on
two cores. Ours is a lifecycle with `search:` on a stack of its own, approved and asked over HTTP; the peers are the
scripts of `bench/peers/`, each in an environment that pip makes once under --cache, of the versions in its file. Every
loss (log loss, of numbers RMSE) is worked out here, from what was answered about the test rows.

A row of results says how busy others kept the machine before and after it. Rows that are not `quiet` are made again by
the next run and count only with --loud. Peers' rows are kept in bench/automl_peers.csv, ours under --cache; what is
there and quiet is not made again, so a run that was stopped (--minutes) goes on.

Prints a table and a line per goal, `NAME VALUE goal LIMIT met|missed`; exits 1 when one is missed.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import automl_ours
from bench.dev_tables import SPLITS, TABLES, DevTable, Pair, pair
from bench.figures import append, said

HERE = Path(__file__).resolve().parent
OURS, DEFAULT = "everloop", "lightgbm_default"
PEERS = (DEFAULT, "optuna_lightgbm", "flaml_automl", "autogluon_tabular")
BORROWED = {DEFAULT: "optuna_lightgbm"}
"""Whose environment it runs in."""
BUDGET_S, CORES, SEED = 60, 2, 0
GRACE_S = 600
"""A peer may overrun its budget; after so much more it is ended."""
QUIET_CORES = 0.2
"""What others may use of the machine, before and after, in a quiet row."""
TIE = 0.01
COLUMNS = (
    "tool", "version", "table", "split", "budget_s", "metric", "loss", "search_s", "learn_s", "refit_s", "export_s",
    "row_ms", "model_mib", "trials", "overhead_ms", "chosen", "error", "seed", "cores", "machine", "python", "at",
    "others_before", "others_after", "load", "quiet",
)  # fmt: skip

Row = dict[str, Any]


# --- how busy the machine is ----------------------------------------------------------------------


def others(seconds: float = 3.0) -> float:
    """Cores that are in use by others, while this process sleeps."""

    def busy() -> float:
        ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")

    before = busy()
    time.sleep(seconds)
    return round((busy() - before) / seconds, 2)


def machine() -> str:
    """The processor's name, as the kernel has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.machine())} x {os.cpu_count()}"


@contextmanager
def watched(row: Row) -> Iterator[Row]:
    """Write down how busy the machine is around what happens in the block."""
    row |= {"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M}", "others_before": others()}
    yield row
    row |= {"load": round(os.getloadavg()[0], 2), "others_after": others()}
    row["quiet"] = "yes" if max(row["others_before"], row["others_after"]) <= QUIET_CORES else "no"


# --- peers ----------------------------------------------------------------------------------------


class NotInstalledError(Exception):
    """An environment cannot be made; the message is what was tried and what pip said."""


def environment(name: str, cache: Path) -> Path:
    """The Python of a peer's environment, made once of the versions in its file."""
    folder, wanted = cache / "venvs" / name, HERE / "peers" / f"{name}.txt"
    program, stamp = folder / "bin" / "python", folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return program
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    done = subprocess.run(
        [program, "-m", "pip", "install", "--quiet", "-r", str(wanted)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotInstalledError(f"pip install -r bench/peers/{wanted.name}: {done.stderr.strip().splitlines()[-1]}")
    stamp.write_text(wanted.read_text())
    return program


def version_of(name: str) -> str:
    """Of the library that the peer is, as its file pins it."""
    library = {DEFAULT: "lightgbm", "optuna_lightgbm": "optuna", "flaml_automl": "flaml"}.get(name, "autogluon.tabular")
    lines = (HERE / "peers" / f"{BORROWED.get(name, name)}.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.lower().startswith(f"{library}=="))


def by_peer(name: str, table: DevTable, files: Pair, budget_s: int, cache: Path) -> Row:
    """What a peer did and answered. What goes wrong is in `error`."""
    try:
        program = environment(BORROWED.get(name, name), cache)
    except NotInstalledError as error:
        return {"error": str(error)}
    with tempfile.TemporaryDirectory(dir=cache) as made:
        folder = Path(made)
        asked = {"task": table.task, "target": table.target, "time": table.time, "budget_s": budget_s, "cores": CORES}
        asked |= {"seed": SEED, "train": str(files.train), "test": str(files.test)}
        (folder / "question.json").write_text(json.dumps(asked))
        command = [program, HERE / "peers" / f"{name}.py", folder]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=budget_s + GRACE_S, check=False, cwd=folder
            )
        except subprocess.TimeoutExpired:
            return {"error": f"did not end within {budget_s + GRACE_S} s"}
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
        facts = json.loads((folder / "facts.json").read_text())
        row = {name: round(facts[name], 2) for name in ("search_s", "refit_s")}
        row |= {"trials": facts.get("trials", ""), "chosen": str(facts.get("best", ""))[:60]}
        return row | {"loss": loss(table, np.load(folder / "answers.npy"), files)}


def loss(table: DevTable, answers: Any, files: Pair) -> float:
    """Of answers about the test rows: by class, in the order of the classes' texts, or the values."""
    truth = pd.read_csv(files.test, usecols=[table.target], low_memory=False)[table.target]
    if table.task == "regression":
        return float(np.sqrt(np.mean((truth.to_numpy(float) - answers) ** 2)))
    known = pd.read_csv(files.train, usecols=[table.target], low_memory=False)[table.target]
    classes = sorted(known.astype(str).unique())
    place = truth.astype(str).map({label: at for at, label in enumerate(classes)}).to_numpy()
    told = answers / answers.sum(axis=1, keepdims=True)
    return float(-np.mean(np.log(np.clip(told[np.arange(len(place)), place], 1e-15, 1))))


# --- results --------------------------------------------------------------------------------------


@dataclass
class Results:
    """The rows of a file, the newest of each run."""

    path: Path
    budget_s: int
    loud: bool
    """Count rows that are not quiet."""

    def rows(self) -> list[Row]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            counted = [row for row in csv.DictReader(file) if self._counts(row)]
        newest = {(row["tool"], row["table"], row["split"]): row for row in counted}
        return list(newest.values())

    def _counts(self, row: Row) -> bool:
        return int(row["budget_s"]) == self.budget_s and (self.loud or row["quiet"] == "yes")

    def has(self, tool: str, table: str, split: int) -> bool:
        """Was it run? A peer that failed is not run again; ours is."""
        mine = [row for row in self.rows() if (row["tool"], row["table"], row["split"]) == (tool, table, str(split))]
        return bool(mine) and bool(mine[0]["loss"] or tool != OURS)

    def add(self, row: Row) -> None:
        append(self.path, {name: row.get(name, "") for name in COLUMNS})
        told = f"{row['metric']} {row['loss']:.4f}" if "loss" in row else row["error"]
        loud = "" if row["quiet"] == "yes" else "(the machine was busy)"
        print(f"{row['tool']:17} {row['table']:12} {row['split']}  {told} {loud}", flush=True)


def losses(rows: list[Row]) -> dict[str, dict[str, list[float]]]:
    """By table and tool, split by split; a tool that lacks one of the three is not judged on that table."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row["loss"]:
            found.setdefault(row["table"], {}).setdefault(row["tool"], {})[row["split"]] = float(row["loss"])
    return {
        table: {tool: [each[split] for split in sorted(each)] for tool, each in tools.items() if len(each) == SPLITS}
        for table, tools in found.items()
    }


# --- the judgement --------------------------------------------------------------------------------


def paired(mine: list[float], other: list[float]) -> tuple[float, float]:
    """The mean difference of the same splits, and its standard error."""
    apart = [one - two for one, two in zip(mine, other, strict=True)]
    return statistics.mean(apart), statistics.stdev(apart) / len(apart) ** 0.5


def beyond(mine: list[float], other: list[float], tie: float) -> bool:
    """Is *mine* worse by more than a tie and more than a standard error of the paired difference?"""
    mean, error = paired(mine, other)
    return mean > max(tie * statistics.mean(other), error)


def judged(rows: list[Row]) -> bool:
    """Prints the table and the goals. Are all met?"""
    found = losses(rows)
    whole = {name: found[name] for name in TABLES if len(found.get(name, {})) > 1 and OURS in found[name]}
    print(markdown(found))
    if not whole:
        print("nothing to judge yet: no table has three splits of ours and of a peer")
        return False
    best = {
        name: min((statistics.mean(each), tool) for tool, each in tools.items() if tool != OURS)[1]
        for name, tools in whole.items()
    }
    good = [name for name, tools in whole.items() if not beyond(tools[OURS], tools[best[name]], TIE)]
    worse = [name for name, tools in whole.items() if DEFAULT in tools and beyond(tools[OURS], tools[DEFAULT], 0.0)]
    print(f"not among the best on: {', '.join(sorted(set(whole) - set(good))) or 'none'}")
    print(f"worse than LightGBM's default on: {', '.join(worse) or 'none'}")
    mine = [row for row in rows if row["tool"] == OURS and row["loss"]]
    met = [
        said("tables_among_the_best", len(good), 6, least=True),
        said("tables_worse_than_default", len(worse), 0, exact=True),
        said("search_over_budget", max(float(row["search_s"]) / float(row["budget_s"]) for row in mine), 1.1),
        said("row_ms", max(float(row["row_ms"]) for row in mine), 1.0),
        said("model_mib", max(float(row["model_mib"]) for row in mine), 20.0),
    ]
    return all(met)


def markdown(found: dict[str, dict[str, list[float]]]) -> str:
    """Mean losses of the three splits, the least in bold; then ours less the best peer's, with its standard error."""
    tools = [OURS, *PEERS]
    head = ["table", *tools, "ours less the best peer's"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for table, each in found.items():
        means = {tool: statistics.mean(values) for tool, values in each.items()}
        least = min(means.values(), default=0.0)
        cells = ["**" * (means.get(tool) == least) for tool in tools]
        cells = [
            f"{mark}{means[tool]:.5g}{mark}" if tool in means else "" for tool, mark in zip(tools, cells, strict=True)
        ]
        lines.append(f"| {table} | {' | '.join(cells)} | {_apart(each, means)} |")
    return "\n".join(lines)


def _apart(each: dict[str, list[float]], means: dict[str, float]) -> str:
    peers = [tool for tool in means if tool != OURS]
    if not peers or OURS not in each:
        return ""
    best = min(peers, key=means.__getitem__)
    mean, error = paired(each[OURS], each[best])
    return f"{mean:+.2g} ± {error:.2g} ({100 * mean / means[best]:+.1f} %)"


# --- all of it ------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["ours", "peers"])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--tools", nargs="+", default=list(PEERS), choices=list(PEERS), help="of the peers")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    parser.add_argument("--budget", type=int, default=BUDGET_S, help="seconds of each search; 60 is what counts")
    parser.add_argument("--loud", action="store_true", help="count rows of a busy machine, and do not make them again")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "everloop-automl")
    parser.add_argument("--peers-file", type=Path, help="where peers' rows are kept; bench/automl_peers.csv")
    asked = parser.parse_args()
    asked.cache.mkdir(parents=True, exist_ok=True)
    kept = asked.peers_file or (HERE / "automl_peers.csv" if asked.budget == BUDGET_S else asked.cache / "peers.csv")
    peers = Results(kept, asked.budget, asked.loud)
    ours = Results(asked.cache / "ours.csv", asked.budget, asked.loud)
    until = time.monotonic() + 60 * (asked.minutes or 1e6)
    runs = [(name, split) for split in range(asked.splits) for name in asked.tables]
    if asked.only != "ours":
        for name, split in runs:
            for tool in asked.tools:
                if not peers.has(tool, name, split) and time.monotonic() < until:
                    _peer(tool, name, split, peers, asked.cache)
    left = [run for run in runs if not ours.has(OURS, *run)]
    if asked.only != "peers" and left:
        with automl_ours.stack(asked.cache, CORES) as here:
            for name, split in left:
                if time.monotonic() < until:
                    _ours(here, name, split, ours, asked.cache)
    return 0 if judged([*ours.rows(), *peers.rows()]) else 1


def _given(tool: str, version: str, name: str, split: int, budget_s: int) -> Row:
    about = {"tool": tool, "version": version, "table": name, "split": split, "budget_s": budget_s}
    about |= {"metric": TABLES[name].metric, "seed": SEED, "cores": CORES, "machine": machine()}
    return about | {"python": platform.python_version()}


def _peer(tool: str, name: str, split: int, results: Results, cache: Path) -> None:
    files = pair(name, split, cache / "tables")
    with watched(_given(tool, version_of(tool), name, split, results.budget_s)) as row:
        row.update(by_peer(tool, TABLES[name], files, results.budget_s, cache))
    results.add(row)


def _ours(here: automl_ours.Here, name: str, split: int, results: Results, cache: Path) -> None:
    files = pair(name, split, cache / "tables")
    with watched(_given(OURS, automl_ours.version(), name, split, results.budget_s)) as row:
        try:
            answers, facts = here.answered(f"{name}-{split}", TABLES[name], files, results.budget_s, SEED)
        except automl_ours.FailedError as error:
            row["error"] = str(error)
        else:
            row.update(facts | {"loss": loss(TABLES[name], answers, files)})
    results.add(row)


if __name__ == "__main__":
    sys.exit(main())
