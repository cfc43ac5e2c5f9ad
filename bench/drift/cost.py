"""What a decision costs over 1,000,000 rows x 30 columns, beside Evidently's preset; each in a process of its own.

Ours is the check's own job, from the compacted log and the reference of the release to the report: what a warm process
of a slot then still loads and does. The log is written, counted and compacted by the product first; that is not part of
the decision. `python -m bench.drift.cost ours|preset FOLDER` is such a process.
"""

import asyncio
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROWS, NUMBERS, TEXTS = 1_000_000, 20, 10
SAMPLE_ROWS = 50_000
"""Of the reference, drawn at the release."""
EVALUATED_ROWS = 5_000
AT_ONCE = 10_000
START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def measured(folder: Path, peer: bool) -> dict[str, float]:
    """CPU seconds beside those to load what a warm process has, and MiB at most."""
    (folder / "request.json").write_text(_request(folder).model_dump_json())
    seconds, mib = _measured("ours", folder)
    made = {"cpu": seconds, "mib": mib}
    if peer:
        for place, name in enumerate(("reference", "current")):
            _wide(ROWS, place).to_parquet(folder / f"{name}.parquet", row_group_size=100_000)
        theirs, their_mib = _measured("preset", folder)
        made |= {"peer_cpu": theirs, "peer_mib": their_mib}
    return made


def _wide(rows: int, seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    made = {f"n{place}": draw.normal(place * seed / 40, 1, rows).astype(np.float64) for place in range(NUMBERS)}
    made |= {f"c{place}": draw.choice([f"v{n}" for n in range(5 + place)], rows) for place in range(TEXTS)}
    return pd.DataFrame(made)


# --- what the check is asked ------------------------------------------------------------------------


def _request(folder: Path) -> Any:
    """The request of a check whose window holds all rows; the log lies in Parquet, as after a day."""
    from everloop.artifacts import Artifacts
    from everloop.contracts import DriftRequest
    from everloop.records import Champion, Field, Signature, Slot, Window
    from everloop.specs import Monitor
    from tests import api_parts

    settings, store, signer = api_parts.deployed(folder / "data")
    artifacts = Artifacts(settings.artifacts)
    fields = tuple(Field(name=f"n{place}", kind="number") for place in range(NUMBERS)) + tuple(
        Field(name=f"c{place}", kind="category", known=tuple(f"v{n}" for n in range(5 + place)))
        for place in range(TEXTS)
    )
    signature = Signature(task="binary", fields=fields, target="y", classes=("0", "1"), positive="1")
    api_parts.release(store, artifacts, signer, made=(api_parts.tiny_model()[0], signature))
    _wide(ROWS, 0).sample(SAMPLE_ROWS, random_state=0).to_parquet(folder / "sample.parquet", index=False)
    reference = artifacts.put((folder / "sample.parquet").read_bytes())
    answers = np.random.default_rng(3).random(EVALUATED_ROWS).tolist()
    evaluation = artifacts.put(json.dumps({"sample": {"answers": answers, "labels": []}}).encode())
    described = artifacts.put(signature.model_dump_json().encode())
    window = Window(start=START, end=START + DAY)
    (folder / "data.json").write_text(
        json.dumps({"artifacts": settings.artifacts, "predictions": str(settings.predictions_dir)})
    )
    return DriftRequest(
        project="default", model="credit", reference_sha256=reference.sha256, window=window, minimum_rows=100, seed=0,
        champion=Champion(
            version=1, model_digest="", model=described, signature=described, seen=described, release_seq=1
        ),
        slot=Slot(device="cpu0", token=1, holder="bench/run"), evaluation=evaluation, monitor=Monitor(),
        log=_logged(store, artifacts, settings.predictions_dir, window),
    )  # fmt: skip


def _logged(store: Any, artifacts: Any, predictions_dir: Path, window: Any) -> Any:
    """The files of the log after its keeper has compacted all rows."""
    from activities.predictions.index import LogIndex
    from activities.predictions.keeping import LogKeeper
    from everloop.predictions import PredictionLog

    index = LogIndex(store, predictions_dir, "default", "credit")
    log = PredictionLog(index.folder)
    for lines, rows in _lines():
        log.append_lines(1, lines, rows)
    log.close()
    index.refresh()
    keeper = LogKeeper(store, artifacts, predictions_dir)
    while any(part.kind == "lines" for part in index.parts().parts):
        asyncio.run(keeper.keep(index))
    return index.parts(window)


def _lines() -> Iterator[tuple[bytes, int]]:
    """What the prediction server writes: at most `AT_ONCE` rows at once."""
    import orjson

    wide, chances = _wide(ROWS, 1), np.random.default_rng(2).random(ROWS).tolist()
    step = DAY / ROWS
    for start in range(0, ROWS, AT_ONCE):
        lines = []
        for place, features in enumerate(wide[start : start + AT_ONCE].to_dict("records"), start):
            at, chance = (START + place * step).isoformat(), chances[place]
            row = {
                "request_id": f"{place:032x}", "row": 0, "key": place, "event_time": at, "logged_at": at, "version": 1,
                "features": features,
                "prediction": {
                    "label": str(int(chance >= 0.5)), "probability": chance,
                    "probabilities": {"0": 1 - chance, "1": chance},
                },
            }  # fmt: skip
            lines.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        yield b"".join(lines), len(lines)


# --- the processes ----------------------------------------------------------------------------------


def _measured(what: str, folder: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", __spec__.name, what, str(folder)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"), "1")
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"{what}: {told['loading']:.1f} CPU-s to load what a warm process has, {told['cpu']:.1f} for the rest")
    return float(told["cpu"]), float(told["mib"])


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _told(loading: float) -> None:
    """What this process has used beside *loading* its modules, and its largest memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    mib = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"loading": loading, "cpu": _cpu() - loading, "mib": mib}))


def _ours(folder: Path) -> None:
    """The check's job. `Job` of the tests writes no checkpoints; this one asks for none."""
    from activities.compute import PRELOAD

    for name in PRELOAD:
        importlib.import_module(name)
    loading = _cpu()
    from activities.compute import drift
    from everloop.artifacts import Artifacts
    from everloop.contracts import DriftRequest
    from tests.job import FolderJob

    about = json.loads((folder / "data.json").read_text())
    job = FolderJob(folder)
    job.artifacts, job.predictions_dir = Artifacts(about["artifacts"]), Path(about["predictions"])
    report = drift.measure(DriftRequest.model_validate_json((folder / "request.json").read_text()), job)
    assert (report.rows, len(report.columns)) == (ROWS, NUMBERS + TEXTS)
    _told(loading)


def _preset(folder: Path) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    loading = _cpu()
    definition = DataDefinition(
        numerical_columns=[f"n{place}" for place in range(NUMBERS)],
        categorical_columns=[f"c{place}" for place in range(TEXTS)],
    )
    sides = [
        Dataset.from_pandas(pd.read_parquet(folder / f"{name}.parquet"), data_definition=definition)
        for name in ("current", "reference")
    ]
    Report([DataDriftPreset()]).run(*sides)
    _told(loading)


if __name__ == "__main__":
    {"ours": _ours, "preset": _preset}[sys.argv[1]](Path(sys.argv[2]))
