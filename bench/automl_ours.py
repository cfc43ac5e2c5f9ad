"""Everloop's part of `bench/automl.py`: a lifecycle with `search:`, approved, then asked about the test rows."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd

from bench.dev_tables import DevTable, Pair
from everloop import errors
from everloop import settings as configuration
from everloop import stack as stacks
from everloop.artifacts import Artifacts
from everloop.client import Client
from tests.conftest import free_port_base
from tests.loop.test_stack import Launcher

READY_SECONDS, SERVED_SECONDS, PATIENCE_SECONDS = 300, 60, 1800
BATCH = 5000
"""Rows of one request."""
TIMED = 300


class FailedError(Exception):
    """A lifecycle did not reach its end; the message is what it said."""


def version() -> str:
    """Of Everloop."""
    return installed("everloop")


def end_what_was_left(cache: Path) -> None:
    """Stacks of a run that was killed: they would be in the way of what is measured now."""
    for folder in cache.glob("stack-*"):
        stacks.down(configuration.load(data_dir=folder / "data"))
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Here:
    """A stack that runs."""

    settings: configuration.Settings
    client: Client
    parallel: int

    def answered(
        self, model: str, table: DevTable, files: Pair, budget_s: int, seed: int
    ) -> tuple[Any, dict[str, Any]]:
        """What the model that a search found answers about the test rows, and what it took."""
        spec = {"model": model, "task": table.task, "target": table.target, "source": {"path": str(files.train)}}
        spec |= {"metric": table.metric, "training": {"seed": seed}}
        spec |= {"search": {"budget": f"{budget_s}s", "parallel": self.parallel}}
        spec |= {"monitor": None} | ({"time": table.time} if table.time else {})
        lifecycle = self.client.submit(spec)["id"]
        found = self.client.wait(lifecycle, until="gate", timeout=PATIENCE_SECONDS)
        if found["status"] != "waiting_approval":
            raise FailedError(f"{found['stage']}: {(found.get('error') or {}).get('message') or found.get('reason')}")
        facts = self._facts(found)
        self.client.approve(lifecycle, "bench")
        self.client.wait(lifecycle, timeout=PATIENCE_SECONDS)
        rows = pd.read_csv(files.test, low_memory=False).drop(columns=table.target)
        return self._asked(model, table, rows), facts | self._graph(found, rows)

    def _facts(self, found: dict[str, Any]) -> dict[str, Any]:
        """Seconds of its search and stages, and what a trial costs beside its own fits."""
        took = {stage["stage"]: stage["seconds"] or 0.0 for stage in found["stages"]}
        search = self.client.searched(found["id"])
        now, trials = search.now(), search.trials(limit=10_000)
        began, ended = (datetime.fromisoformat(now[name]) for name in ("started_at", "updated_at"))
        wall = (ended - began).total_seconds()
        beside = wall * min(self.parallel, len(trials)) - sum(trial["seconds"] for trial in trials)
        return {
            "search_s": round(wall, 2),
            "learn_s": round(took["train"] - wall, 2),
            "refit_s": round(took["refit"], 2),
            "export_s": round(took["export"], 2),
            "trials": len(trials),
            "overhead_ms": round(1000 * beside / len(trials), 1),
            "chosen": now["sentence"],
        }

    def _graph(self, found: dict[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
        """The exported graph: its size, and one row in ONNX Runtime on one thread, the median of 300."""
        digest = next(stage["blobs"]["model"] for stage in found["stages"] if stage["stage"] == "export")
        graph = Artifacts(self.settings.artifacts).get(digest)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        feed = {entry.name: _cell(rows[entry.name].iloc[0], "string" in entry.type) for entry in session.get_inputs()}
        taken = []
        for _ in range(TIMED):
            began = time.perf_counter()
            session.run(None, feed)
            taken.append(time.perf_counter() - began)
        return {"row_ms": round(float(np.median(taken)) * 1e3, 4), "model_mib": round(len(graph) / 2**20, 3)}

    def _asked(self, model: str, table: DevTable, rows: pd.DataFrame) -> Any:
        """Answers of the released version about *rows*: by class in the order of their texts, or values."""
        self._served(model)
        told: list[dict[str, Any]] = []
        for first in range(0, len(rows), BATCH):
            some = rows.iloc[first : first + BATCH].astype(object)
            asked = some.where(some.notna(), None).to_dict(orient="records")
            told += self.client.predict(model, asked)["predictions"]
        if table.task == "regression":
            return np.array([each["value"] for each in told])
        classes = sorted(told[0]["probabilities"])
        return np.array([[each["probabilities"][label] for label in classes] for each in told])

    def _served(self, model: str) -> None:
        deadline = time.monotonic() + SERVED_SECONDS
        while time.monotonic() < deadline:
            with suppress(errors.NotFound):
                self.client.schema(model)
                return
            time.sleep(0.3)
        raise FailedError(f"{model} is released and not served")


def _cell(value: Any, text: bool) -> Any:
    if text:
        return np.array([["" if pd.isna(value) else str(value)]], dtype=object)
    return np.array([[float(value) if isinstance(value, int | float | np.number) else 0.0]], dtype=np.float64)


@contextmanager
def stack(cache: Path, cores: int) -> Iterator[Here]:
    """A stack of its own with so many slots for trials; ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="stack-", dir=cache))
    os.environ["EVERLOOP_SLOTS"] = str(cores + 1)  # the last one is kept for drift checks
    settings = configuration.load(data_dir=folder / "data", port_base=free_port_base())
    try:
        launcher = Launcher(settings)
        deadline = time.monotonic() + READY_SECONDS
        while "/login" not in launcher.output.read_text():
            if launcher.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the stack does not start:\n{launcher.output.read_text()}")
            time.sleep(0.2)
        with Client(data_dir=settings.data_dir) as client:
            yield Here(settings, client, cores)
    finally:
        stacks.down(settings)
        shutil.rmtree(folder, ignore_errors=True)
