"""What a decision costs over 1,000,000 rows x 30 columns, beside Evidently's preset; each in a process of its own.

`python -m bench.drift.cost ours|preset FOLDER` is such a process: from two Parquet files to the word on each column.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROWS, NUMBERS, TEXTS = 1_000_000, 20, 10
SAMPLE_ROWS = 50_000
"""Of the reference, drawn at the release."""


def measured(folder: Path, peer: bool) -> dict[str, float]:
    """CPU seconds beside those to load what a warm process has, and MiB at most."""
    for place, name in enumerate(("reference", "current")):
        wide = _wide(ROWS, place)
        wide.to_parquet(folder / f"{name}.parquet", row_group_size=100_000)
        wide.sample(SAMPLE_ROWS, random_state=0).to_parquet(folder / f"{name}-sample.parquet", row_group_size=10_000)
        del wide
    seconds, mib = _measured("ours", folder)
    made = {"cpu": seconds, "mib": mib}
    if peer:
        theirs, their_mib = _measured("preset", folder)
        made |= {"peer_cpu": theirs, "peer_mib": their_mib}
    return made


def _wide(rows: int, seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    made = {f"n{place}": draw.normal(place * seed / 40, 1, rows).astype(np.float64) for place in range(NUMBERS)}
    made |= {f"c{place}": draw.choice([f"v{n}" for n in range(5 + place)], rows) for place in range(TEXTS)}
    return pd.DataFrame(made)


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
    """As a check does it: up to 50,000 seeded rows of each side; the reference was drawn at the release."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from activities.compute import PRELOAD
    from activities.compute.drift import MOST_ROWS, Pair, judge

    for name in PRELOAD:
        importlib.import_module(name)
    loading = _cpu()
    sides = []
    for name in ("reference-sample", "current"):
        file = pq.ParquetFile(folder / f"{name}.parquet")
        rows = np.sort(np.random.default_rng(0).choice(file.metadata.num_rows, MOST_ROWS, replace=False))
        pieces, start = [], 0
        for batch in file.iter_batches(65_536, use_threads=False):
            own = rows[(rows >= start) & (rows < start + len(batch))] - start
            pieces.append(pa.Table.from_batches([batch]).take(pa.array(own)))
            start += len(batch)
        sides.append(pa.concat_tables(pieces))
    pairs = [
        Pair(name, name[0] == "n", *(side[name].to_numpy(zero_copy_only=False) for side in sides))
        for name in sides[0].column_names
        if name[0] in "nc"
    ]
    judge(pairs)
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
