"""Everloop's search beside AutoML tools: `python -m bench.automl`, in as many sessions as it takes.

Eight tables (`bench/dev_tables.py`), three pairs of train and test rows each, the same for all; 60 seconds of search on
two cores. Ours is a lifecycle with `search:` on a stack of its own, approved and asked over HTTP; the peers are the
scripts of `bench/peers/`, each in an environment that pip makes once under --cache, of the versions in its file. Every
loss (log loss, of numbers RMSE) is worked out here, from what was answered about the test rows.

A row is written as soon as it is measured, peers' to bench/automl_peers.csv, ours to bench/automl_ours.csv, to be
committed. What is there is not made again, on whichever machine: a run that was killed loses the row that it was at.
Table by table, so that each is whole as soon as may be. A row says how busy others kept the machine before and after
it; one that is not `quiet` is made again by the next run and counts only with --loud.

Prints a table, what is missing of it, and a line per goal, `NAME VALUE goal LIMIT met|missed`; goals about all tables
are judged when all are whole. Exits 1 when a goal is missed or cannot be judged yet.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import automl_ours
from bench.automl_rows import DEFAULT, OURS, PEERS, Results, Row, judged
from bench.dev_tables import SPLITS, TABLES, DevTable, Pair, pair
from bench.figures import commit
from everloop.errors import EverloopError

HERE = Path(__file__).resolve().parent
BORROWED = {DEFAULT: "optuna_lightgbm"}
"""Whose environment it runs in."""
BUDGET_S, CORES, SEED = 60, 2, 0
GRACE_S = 600
"""A peer may overrun its budget; after so much more it is ended."""
BESIDE_S = {OURS: 60, DEFAULT: 20}
OTHERWISE_S = 30
"""What a run takes beside its budget, mostly: in a box of time none begins that would not end in it."""
QUIET_CORES = 0.2
"""What others may use of the machine, before and after, in a quiet row."""


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
    began = time.monotonic()
    yield row
    row |= {
        "wall_s": round(time.monotonic() - began, 2),
        "load": round(os.getloadavg()[0], 2),
        "others_after": others(),
    }
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
    """What a peer did and answered. What goes wrong in it is in `error`; raises `NotInstalledError`."""
    program = environment(BORROWED.get(name, name), cache)
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


# --- all of it ------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["ours", "peers"])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--tools", nargs="+", default=list(PEERS), choices=list(PEERS), help="of the peers")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--minutes", type=float, help="begin no run that would not end in so many")
    parser.add_argument("--budget", type=int, default=BUDGET_S, help="seconds of each search; 60 is what counts")
    parser.add_argument("--again", action="store_true", help="rows of ours that another commit made are made again")
    parser.add_argument("--loud", action="store_true", help="count rows of a busy machine, and do not make them again")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "everloop-automl")
    parser.add_argument(
        "--rows", type=Path, help="the folder of the rows' files; bench/ where the budget is what counts"
    )
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs is ended, as after Ctrl-C
    asked.cache.mkdir(parents=True, exist_ok=True)
    automl_ours.end_what_was_left(asked.cache)
    folder = asked.rows or (HERE if asked.budget == BUDGET_S else asked.cache)
    peers = Results(folder / "automl_peers.csv", asked.budget, asked.loud)
    ours = Results(folder / "automl_ours.csv", asked.budget, asked.loud, commit() if asked.again else "")
    box = Box(asked.minutes)
    for name in asked.tables:
        if asked.only != "ours":
            _peers(name, asked, peers, box)
        if asked.only != "peers":
            _ours(name, asked, ours, box)
    return 0 if judged([*ours.rows(), *peers.rows()]) else 1


class Box:
    """A box of time."""

    def __init__(self, minutes: float | None) -> None:
        self._until = None if minutes is None else time.monotonic() + 60 * minutes

    def holds(self, seconds: float) -> bool:
        """Is there so much left?"""
        return self._until is None or time.monotonic() + seconds <= self._until


def _seconds(tool: str, budget_s: int) -> float:
    return (0 if tool == DEFAULT else budget_s) + BESIDE_S.get(tool, OTHERWISE_S)


def _peers(name: str, asked: argparse.Namespace, results: Results, box: Box) -> None:
    for split in range(asked.splits):
        for tool in asked.tools:
            if results.has(tool, name, split) or not box.holds(_seconds(tool, asked.budget)):
                continue
            try:
                _peer(tool, name, split, results, asked.cache)
            except NotInstalledError as error:  # nothing was measured: another session may have better luck
                print(f"{tool:17} {name:12} {split}  {error}", flush=True)


def _ours(name: str, asked: argparse.Namespace, results: Results, box: Box) -> None:
    left = [split for split in range(asked.splits) if not results.has(OURS, name, split)]
    if not left or not box.holds(_seconds(OURS, asked.budget)):
        return
    with automl_ours.stack(asked.cache, CORES) as here:
        for split in left:
            if box.holds(_seconds(OURS, asked.budget)):
                _search(here, name, split, results, asked.cache)


def _given(tool: str, version: str, name: str, split: int, budget_s: int) -> Row:
    about = {"tool": tool, "version": version, "table": name, "split": split, "budget_s": budget_s}
    about |= {"metric": TABLES[name].metric, "seed": SEED, "cores": CORES, "machine": machine()}
    return about | {"python": platform.python_version(), "commit": commit()}


def _peer(tool: str, name: str, split: int, results: Results, cache: Path) -> None:
    environment(BORROWED.get(tool, tool), cache)
    files = pair(name, split, cache / "tables")
    with watched(_given(tool, version_of(tool), name, split, results.budget_s)) as row:
        row.update(by_peer(tool, TABLES[name], files, results.budget_s, cache))
    results.add(row)


def _search(here: automl_ours.Here, name: str, split: int, results: Results, cache: Path) -> None:
    files = pair(name, split, cache / "tables")
    with watched(_given(OURS, automl_ours.version(), name, split, results.budget_s)) as row:
        try:
            answers, facts = here.answered(f"{name}-{split}", TABLES[name], files, results.budget_s, SEED)
        except (automl_ours.FailedError, EverloopError) as error:
            row["error"] = str(error)[:300]
        else:
            row.update(facts | {"loss": loss(TABLES[name], answers, files)})
    results.add(row)


if __name__ == "__main__":
    sys.exit(main())
