"""Memory and time of every job from snapshot to export, for 5,000,000 rows x 20 columns.

    PYTHONPATH=. python bench/chain.py

Each stage is a job as the compute worker starts it: `activities.jobs.child` on a request, in a process of its own.
Prints a line per goal, `NAME VALUE goal LIMIT met|missed`, and exits 1 when one is missed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.figures import Watch, said
from bench.prepare import generate

ROOT = Path(__file__).resolve().parent.parent
GOAL_MIB = 2048
STAGES = {
    "snapshot": "data.snapshot",
    "validate": "data.validate",
    "prepare": "features.prepare",
    "train": "training.train",
    "evaluate": "evaluation.evaluate",
    "refit": "training.refit",
    "export": "export.export",
}
LEFT = {"prepare": "prepared", "train": "trained", "refit": "refitted"}
"""What later stages call a stage's result."""


def run(stage: str, request: dict[str, Any], folder: Path) -> tuple[dict[str, Any], Watch, str]:
    """One job: its result, its memory, and its time in words."""
    job = folder / stage
    (job / "scratch").mkdir(parents=True)
    order = {
        "root": "activities.compute",
        "function": STAGES[stage],
        "request": request,
        "digest": "",
        "log": "",
        "artifacts": str(folder / "artifacts"),
        "predictions_dir": str(folder / "predictions"),
        "scratch": str(job / "scratch"),
    }
    (job / "request.json").write_text(json.dumps(order))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"), "1")
    started, before = time.perf_counter(), processor_seconds()
    with (job / "log").open("w") as log:
        command = [sys.executable, "-m", "activities.jobs.child", str(job)]
        child = subprocess.Popen(command, env=os.environ | threads, cwd=ROOT, stdout=log, stderr=log)
        with Watch(child.pid) as watch:
            child.wait()
    seconds = time.perf_counter() - started
    processor = processor_seconds() - before
    if not (job / "result.json").exists():
        sys.exit(f"{stage}: {(job / 'error.json').read_text()}\n{(job / 'log').read_text()[-2000:]}")
    return (
        json.loads((job / "result.json").read_text())["result"],
        watch,
        f"{seconds:.1f} s, {processor:.1f} s of processor time",
    )


def processor_seconds() -> float:
    """Of the jobs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as made:
        folder = Path(made)
        source = folder / "table.parquet"
        generate(source, arguments.rows)
        spec = {"model": "bench", "task": "binary", "target": "y", "source": {"path": str(source)}}
        spec |= {"training": {"rounds": arguments.rounds}} | ({"time": arguments.time} if arguments.time else {})
        print(f"{arguments.rows:,} rows x 20 columns, {source.stat().st_size >> 20:,} MiB of Parquet")
        known: dict[str, Any] = {"spec": spec, "champion": None}
        met = []
        for stage in STAGES:
            result, watch, took = run(stage, wanted(stage, known), folder)
            known[LEFT.get(stage, stage)] = result
            print(f"{stage}: {took}, {watch.own:.0f} MiB of its own, {watch.pss:.0f} MiB with mapped files")
            met.append(said(f"{stage}_mib", watch.pss, GOAL_MIB))
        parity = known["export"]["parity"]
        met.append(said("parity_mismatches", parity["mismatches"], 0, exact=True))
    return 0 if all(met) else 1


def wanted(stage: str, known: dict[str, Any]) -> dict[str, Any]:
    """The request of *stage*, of what is known so far."""
    from everloop import contracts

    fields = getattr(contracts, f"{stage.capitalize()}Request").model_fields
    return {name: value for name, value in known.items() if name in fields}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--time", help="a column of times to split by; without it rows are split by their hashes")
    parser.add_argument("--folder", type=Path, help="where the table and the results go; the system's own by default")
    sys.exit(main(parser.parse_args()))
