"""The prediction log at 10 million rows: which window is next, and a window of a million rows read.

The rows are what the prediction server writes, through its own door; they are counted and compacted by the keeper's own
steps, in its own child processes. `--rows` makes fewer. Goals: the next window within 1 s, with what was appended since
the last look still to be counted, in a process that has loaded what control loads, opens no Parquet and holds at most
100 MiB more afterwards; a window of 1 M rows within 3 s, in a process that has read nothing before.
"""

import argparse
import asyncio
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

from activities.drift.windows import next_closed
from activities.predictions.index import LogIndex
from activities.predictions.keeping import LogKeeper
from bench import figures
from everloop.artifacts import Artifacts
from everloop.predictions import PredictionLog
from everloop.records import Field, Signature, Window
from everloop.specs import Monitor
from everloop.store import Store
from tests import api_parts as parts

ROWS = 10_000_000
DAYS = 10
START = datetime(2026, 1, 1, tzinfo=UTC)
AT_ONCE = 10_000
CONTROL_MIB = 100
NEW_ROWS = 5_000
"""Appended before the next window is asked for: more than a busy server answers between two looks of control."""
NUMBERS = tuple(f"number_{place}" for place in range(9))
FIELDS = (
    *(Field(name=name, kind="number") for name in NUMBERS),
    Field(name="purpose", kind="category", known=("car", "house", "school")),
    Field(name="home", kind="category", known=("rent", "owner")),
    Field(name="married", kind="boolean"),
    Field(name="opened", kind="datetime"),
)
"""Thirteen columns, as credit has."""
SIGNATURE = Signature(task="binary", fields=FIELDS, target="y", classes=("bad", "good"), positive="good")


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=ROWS)
    options.add_argument("--read", type=json.loads, help=argparse.SUPPRESS)
    options.add_argument("--next", type=json.loads, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.read or asked.next:
        print(json.dumps(read(asked.read) if asked.read else next_windows(asked.next)))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="everloop-log-"))
    try:
        return asyncio.run(measured(folder, asked.rows))
    finally:
        shutil.rmtree(folder)


async def measured(folder: Path, rows: int) -> int:
    settings, store, signer = parts.deployed(folder)
    artifacts = Artifacts(settings.artifacts)
    parts.release(store, artifacts, signer, made=(parts.tiny_model()[0], SIGNATURE))
    index = LogIndex(store, settings.predictions_dir, "default", "credit")
    write(index, rows)
    began = time.perf_counter()
    index.refresh()
    print(f"counted {rows / (time.perf_counter() - began):,.0f} rows/s, each byte once")
    await compacted(LogKeeper(store, artifacts, settings.predictions_dir), index, rows)
    met = [*next_window(settings.database, settings.predictions_dir), million(index)]
    return 0 if all(met) else 1


def write(index: LogIndex, rows: int) -> None:
    """As the server does: one write for each answer of some rows; event time goes on from day to day."""
    began, log = time.perf_counter(), PredictionLog(index.folder)
    random = np.random.default_rng(0)
    step = timedelta(days=DAYS) / rows
    for start in range(0, rows, AT_ONCE):
        log.append_lines(1, lines(random, start, min(AT_ONCE, rows - start), step), min(AT_ONCE, rows - start))
    log.close()
    size = sum(path.stat().st_size for path in index.folder.glob("live/*"))
    print(f"wrote {rows:,} rows, {size / 2**20:,.0f} MiB of lines, in {time.perf_counter() - began:.0f} s")


def lines(random: np.random.Generator, start: int, count: int, step: timedelta) -> bytes:
    numbers = random.normal(size=(count, len(NUMBERS))).round(6).tolist()
    chances = random.random(count).round(6).tolist()
    made = []
    for place in range(count):
        at = (START + (start + place) * step).isoformat()
        features = dict(zip(NUMBERS, numbers[place], strict=True)) | {
            "purpose": ("car", "house", "school")[place % 3],
            "home": ("rent", "owner")[place % 2],
            "married": place % 5 == 0,
            "opened": "2020-05-17",
        }
        chance = chances[place]
        row = {
            "request_id": f"00112233445566aa{start + place:016x}",
            "row": 0,
            "key": start + place,
            "event_time": at,
            "logged_at": at,
            "version": 1,
            "features": features,
            "prediction": {
                "label": "good" if chance >= 0.5 else "bad",
                "probability": chance,
                "probabilities": {"bad": 1 - chance, "good": chance},
            },
        }
        made.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return b"".join(made)


async def compacted(keeper: LogKeeper, index: LogIndex, rows: int) -> None:
    began = time.perf_counter()
    while any(part.kind == "lines" for part in index.parts().parts):
        await keeper.keep(index)
    took = time.perf_counter() - began
    size = sum(part.bytes for part in index.parts().parts)
    print(f"compacted {rows / took:,.0f} rows/s into {size / 2**20:,.0f} MiB of Parquet")


def next_window(database: str, predictions: Path) -> list[bool]:
    """The slowest of asking after each day, each time with new rows to be counted first; in a process like control."""
    command = [sys.executable, __file__, "--next", json.dumps({"database": database, "predictions": str(predictions)})]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{'opened' if told['parquet'] else 'opened no'} Parquet")
    return [
        figures.said("prediction_log.next_window_seconds", max(told["took"]), 1),
        figures.said("prediction_log.control_grew_mib", told["mib"], CONTROL_MIB) and not told["parquet"],
    ]


def next_windows(asked: dict[str, str]) -> dict[str, Any]:
    importlib.import_module("workers.control")
    index = LogIndex(Store(asked["database"]), Path(asked["predictions"]), "default", "credit")
    before = psutil.Process().memory_info().rss
    monitor, took = Monitor(window="day"), []
    log = PredictionLog(index.folder)
    random = np.random.default_rng(1)
    for day in range(DAYS - 1):
        log.append_lines(1, lines(random, 10**9 + day * NEW_ROWS, NEW_ROWS, timedelta(microseconds=1)), NEW_ROWS)
        began = time.perf_counter()
        index.refresh()
        window = next_closed(index, monitor, START + timedelta(days=day), datetime.now(UTC))
        took.append(time.perf_counter() - began)
        assert window == Window(start=START + timedelta(days=day), end=START + timedelta(days=day + 1)), window
    log.close()
    grew = psutil.Process().memory_info().rss - before
    return {"took": took, "mib": grew / 2**20, "parquet": "pyarrow.parquet" in sys.modules}


def million(index: LogIndex) -> bool:
    """A day in the middle: a million rows of ten million, in a fresh process that first loads what it needs."""
    window = Window(start=START + timedelta(days=4), end=START + timedelta(days=5))
    asked = {
        "folder": str(index.folder),
        "parts": index.parts(window).model_dump_json(),
        "window": window.model_dump_json(),
        "signature": SIGNATURE.model_dump_json(),
        "expected": index.rows(window),
    }
    command = [sys.executable, __file__, "--read", json.dumps(asked)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"read {told['rows']:,} rows and 13 columns, {told['mib']:.0f} MiB at most; a sample of 50,000 in "
          f"{told['sample']:.2f} s")  # fmt: skip
    return figures.said("prediction_log.window_of_a_million_seconds", told["whole"], 3)


def read(asked: dict[str, str]) -> dict[str, float]:
    from activities.compute.predictions import Logged
    from everloop.predictions import LogParts

    signature = Signature.model_validate_json(asked["signature"])
    listing = LogParts.model_validate_json(asked["parts"])
    window = Window.model_validate_json(asked["window"])
    with figures.Watch() as memory:
        took = {}
        for name, most in (("whole", None), ("sample", 50_000)):
            began = time.perf_counter()
            logged = Logged(Path(asked["folder"]), listing, window, {1: signature})
            columns = logged.columns(signature, None if most is None else logged.sample(most, 0))
            took[name] = time.perf_counter() - began
            assert len(columns["home"]) == (logged.rows if most is None else min(most, logged.rows))
    assert logged.rows == int(asked["expected"])
    return took | {"rows": logged.rows, "mib": memory.own}


if __name__ == "__main__":
    sys.exit(main())
