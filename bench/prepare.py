"""What preparation costs beside pandas, polars and DuckDB doing the same.

    PYTHONPATH=. python bench/prepare.py --rows 20000000

A table of 20 columns is generated as Parquet and as CSV. Each tool, in a process of its own with the same number of
threads, fits (counts, exact medians, the 100 most frequent values of each category, on the train rows), transforms
(filled and cast numbers, calendar parts, codes) and writes float32. Ours also writes target, part, fold and row number,
and takes three exact quantiles. The CSV is read by our snapshot stage (dialect, rules held against every row, typed
Parquet, digests) and by DuckDB (`sample_size=-1`, typed Parquet).
Prints a line per goal, `NAME VALUE goal LIMIT met|missed`, and exits 1 when one is missed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Watch, memory_mib, said

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = [f"n{place}" for place in range(10)] + ["w0", "w1"]
DATES = ["t0", "t1"]
CATEGORIES = {"c0": 5, "c1": 50, "c2": 300, "c3": 20_000}
STEP = 500_000
TRAIN_SHARE = 0.64
MOST_VALUES = 100
CUT = 1_000_000
"""Rows on which the result is compared with that of the small path, which holds the table in memory."""
PANDAS_BYTES = 640
"""Per row: it holds the whole table."""
GOAL_RATIO, GOAL_CSV, GOAL_MIB = 1.25, 1.3, 800
TOOLS = ("ours", "duckdb", "polars", "pandas")
Runs = list[dict[str, float]]
READERS = ("ours_csv", "duckdb_csv")


def generate(path: Path, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    writer = None
    for start in range(0, rows, STEP):
        count = min(STEP, rows - start)
        random = np.random.default_rng([7, start])
        columns: dict[str, Any] = {}
        for place, name in enumerate(NUMBERS[:10]):
            values = random.normal(size=count) * 10.0 ** (place % 5)
            columns[name] = pa.array(values, mask=random.random(count) < 0.05 if place % 2 else None)
        for name in NUMBERS[10:]:
            columns[name] = pa.array(random.integers(0, 1000, count).astype(np.float64))
        columns["b"] = pa.array(random.random(count) < 0.3)
        first = 15 * 10**14 + start * 10**6  # later files are later in time
        for name in DATES:
            moments = first + random.integers(0, STEP, count) * 10**6
            columns[name] = pa.array(moments).cast(pa.timestamp("us", "UTC"))
        for name, distinct in CATEGORIES.items():
            texts = pa.array([f"{name} value {value}" for value in range(distinct)])
            columns[name] = texts.take(pa.array(random.integers(0, distinct, count)))
        noise = random.normal(size=count)
        columns["y"] = pa.array((columns["n0"].to_numpy() + noise > 0).astype(np.float64))
        table = pa.table(columns)
        writer = writer or pa.parquet.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> dict[str, float]:
    """Wall and processor seconds."""
    return {"seconds": time.perf_counter() - started[0], "cpu": time.process_time() - started[1]}


# --- the same work by four tools ----------------------------------------------------------------


def ours(source: Path, target: Path, rows: int, threads: int) -> dict[str, float]:
    import numpy as np

    from activities.compute import data, features
    from activities.compute.resources import Resources

    table, spec = our_table(source), our_spec(source)
    numbers = np.arange(rows)
    part = np.where(numbers < train_rows(rows), features.TRAIN, features.TEST).astype(np.int8)
    goal = data.target_of(table, spec)
    started = clock()
    learned = numbers[part == features.TRAIN]
    pipeline = features.fit(spec, table, goal, learned, scratch=target.parent, resources=Resources(threads))
    fitted = since(started)
    features.write(target, pipeline, table, numbers, y=goal.values, part=part, fresh=part > features.TEST)
    done = since(started)
    (target.parent / "pipeline.json").write_bytes(pipeline.dump())
    return done | {"fit": fitted["cpu"]}


def identity(source: Path, target: Path, rows: int, threads: int) -> dict[str, float]:
    """Who each row is: what a later challenger is held against, and what a split without a time follows."""
    from activities.compute import data

    del target, rows, threads
    table, started = our_table(source), clock()
    data.row_hashes(table)
    return since(started)


def our_table(source: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet

    from activities.compute import data, rows
    from everloop.records import Column

    kinds = {pa.float64(): "number", pa.bool_(): "boolean", pa.string(): "category"}
    file = pa.parquet.ParquetFile(source)
    nulls = [
        sum(file.metadata.row_group(group).column(place).statistics.null_count for group in range(file.num_row_groups))
        for place in range(len(file.schema_arrow))
    ]
    columns = tuple(
        Column(name=field.name, kind=kinds.get(field.type, "datetime"), nulls=count)
        for field, count in zip(file.schema_arrow, nulls, strict=True)
    )
    return data.Table(rows.Stored([source]), columns)


def our_spec(source: Path) -> Any:
    from everloop.specs import LifecycleSpec

    values = {"model": "bench", "task": "binary", "target": "y", "source": {"path": str(source)}}
    return LifecycleSpec.model_validate(values)


def train_rows(rows: int) -> int:
    return int(rows * TRAIN_SHARE)


def duckdb(source: Path, target: Path, rows: int, threads: int) -> dict[str, float]:
    import duckdb

    connection = duckdb.connect(
        config={"threads": threads, "memory_limit": "2GB", "temp_directory": str(target.parent / "spill")}
    )
    started = clock()
    table = f"read_parquet('{source}', file_row_number = true)"
    train = f"(SELECT * FROM {table} WHERE file_row_number < {train_rows(rows)})"
    asked = ", ".join(f"count({name}), min({name}), max({name})" for name in [*NUMBERS, "b", *DATES])
    connection.execute(f"SELECT {asked} FROM {train}").fetchone()
    fills = {
        name: connection.execute(f"SELECT quantile_disc({name}, 0.5) FROM {train}").fetchone()[0]  # type: ignore[index]
        for name in NUMBERS
    }
    joins, columns = "", [f"coalesce({name}, {fills[name]!r})::FLOAT AS {name}" for name in NUMBERS]
    columns.append("b::INT::FLOAT AS b")
    for name in DATES:
        moment = f"make_timestamp(epoch_us({name}))"
        columns += [f"{part}({moment})::FLOAT AS {name}_{part}" for part in ("hour", "isodow", "day", "month")]
        columns.append(f"(epoch_us({name}) / 86400e6)::FLOAT AS {name}_elapsed")
    for name in CATEGORIES:
        connection.execute(
            f"CREATE TEMP TABLE of_{name} AS SELECT value, 1 + row_number() OVER (ORDER BY n DESC, value) AS code FROM "
            f"(SELECT {name} AS value, count(*) AS n FROM {train} GROUP BY 1 ORDER BY n DESC, value "
            f"LIMIT {MOST_VALUES})"
        )
        joins += f" LEFT JOIN of_{name} ON of_{name}.value = {name}"
        columns.append(f"coalesce(of_{name}.code, 1)::FLOAT AS {name}")
    made = f"SELECT {', '.join(columns)}, y FROM {table}{joins}"
    connection.execute(f"COPY ({made}) TO '{target}' (FORMAT parquet, COMPRESSION uncompressed)")
    return since(started)


def polars(source: Path, target: Path, rows: int, threads: int) -> dict[str, float]:
    import polars as pl

    del threads  # set before polars is loaded
    started = clock()
    table = pl.scan_parquet(source)
    train = table.head(train_rows(rows))
    stats = []
    for name in NUMBERS:
        column = pl.col(name)
        stats += [column.median().alias(name), column.min().alias(f"{name}_low"), column.max().alias(f"{name}_high")]
        stats.append(column.null_count().alias(f"{name}_nulls"))
    found = train.select(stats).collect(engine="streaming")
    columns = [pl.col(name).fill_null(found[name][0]).cast(pl.Float32) for name in NUMBERS]
    columns.append(pl.col("b").cast(pl.Float32))
    for name in DATES:
        moment = pl.col(name).dt
        parts = {"hour": moment.hour(), "day": moment.day(), "month": moment.month(), "weekday": moment.weekday()}
        columns += [part.cast(pl.Float32).alias(f"{name}_{word}") for word, part in parts.items()]
        columns.append((moment.epoch("us") / 86400e6).cast(pl.Float32).alias(f"{name}_elapsed"))
    for name in CATEGORIES:
        counts = train.group_by(name).len().collect(engine="streaming")
        top = counts.sort(["len", name], descending=[True, False]).head(MOST_VALUES)[name].to_list()
        codes = {value: float(code) for code, value in enumerate(top, 2)}
        columns.append(pl.col(name).replace_strict(codes, default=1.0, return_dtype=pl.Float32))
    table.select([*columns, pl.col("y")]).sink_ipc(target)
    return since(started)


def pandas(source: Path, target: Path, rows: int, threads: int) -> dict[str, float]:
    import numpy as np
    import pandas as pd

    del threads
    started = clock()
    table = pd.read_parquet(source)
    train = table.head(train_rows(rows))
    made: dict[str, Any] = {}
    for name in NUMBERS:
        train[name].agg(["count", "min", "max"])
        made[name] = table[name].fillna(train[name].median()).astype("float32")
    made["b"] = table["b"].astype("float32")
    for name in DATES:
        for part in ("hour", "day", "month", "weekday"):
            made[f"{name}_{part}"] = getattr(table[name].dt, part).astype("float32")
        made[f"{name}_elapsed"] = (table[name].astype("int64") / 86400e6).astype("float32")
    for name in CATEGORIES:
        codes = {value: code for code, value in enumerate(train[name].value_counts().index[:MOST_VALUES], 2)}
        made[name] = table[name].map(codes).fillna(1).astype("float32")
    made["y"] = table["y"]
    frame = pd.DataFrame(made)
    assert isinstance(frame["n0"].to_numpy(), np.ndarray)
    frame.to_feather(target, compression="uncompressed")
    return since(started)


# --- CSV ----------------------------------------------------------------------------------------


def ours_csv(source: Path, target: Path, rows: int, threads: int) -> dict[str, float]:
    from activities.compute import data
    from everloop.contracts import SnapshotRequest
    from tests.job import FolderJob

    del threads  # the stage is of one thread
    target.mkdir()
    job, request, started = FolderJob(target), SnapshotRequest(spec=our_spec(source)), clock()
    taken = data.snapshot(request, job)
    assert taken.rows == rows
    return since(started)


def duckdb_csv(source: Path, target: Path, rows: int, threads: int) -> dict[str, float]:
    del rows
    import duckdb

    connection = duckdb.connect(
        config={"threads": threads, "memory_limit": "2GB", "temp_directory": str(target.parent / "spill")}
    )
    started = clock()
    read = f"SELECT * FROM read_csv('{source}', sample_size = -1)"
    connection.execute(f"COPY ({read}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
    return since(started)


# --- measuring ----------------------------------------------------------------------------------


def child(arguments: argparse.Namespace) -> None:
    """One tool's work in this process; the figures go to stdout."""
    tools: dict[str, Callable[..., dict[str, float]]] = {
        each.__name__: each for each in (ours, duckdb, polars, pandas, identity, ours_csv, duckdb_csv)
    }
    with Watch() as watch:
        found = tools[arguments.child](arguments.source, arguments.target, arguments.rows, arguments.threads)
    print(json.dumps(found | {"mib": max(watch.own, memory_mib()[0])}))


def measured(tool: str, source: Path, folder: Path, rows: int, threads: int) -> dict[str, float]:
    target = folder / f"{tool}.out"
    command = [sys.executable, __file__, "--child", tool, "--source", str(source), "--target", str(target)]
    command += ["--rows", str(rows), "--threads", str(threads)]
    environment = os.environ | {"POLARS_MAX_THREADS": str(threads), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return found


def equal_to_the_small_path(source: Path, folder: Path) -> bool:
    """Is what goes through chunks and two threads what one chunk of a table in memory gives, byte by byte?"""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    sys.path.insert(0, str(ROOT))
    from activities.compute import data, features
    from activities.compute.resources import Resources

    file = pa.parquet.ParquetFile(source)
    batches, count = [], 0
    for batch in file.iter_batches(250_000):
        batches.append(batch)
        count += len(batch)
        if count >= CUT:
            break
    held, cut = pa.Table.from_batches(batches), folder / "cut.parquet"
    pa.parquet.write_table(held, cut, row_group_size=77_777)
    big, spec = our_table(cut), our_spec(cut)
    made = []
    for table, size, threads in ((data.Table(held, big.columns), 10**9, 1), (big, 50_001, 2)):
        goal = data.target_of(table, spec)
        part = np.zeros(len(table), np.int8)
        pipeline = features.fit(
            spec, table, goal, np.arange(train_rows(len(table))), scratch=folder, resources=Resources(threads)
        )
        path, every = folder / "cut.arrow", np.arange(len(table))
        features.write(path, pipeline, table, every, y=goal.values, part=part, fresh=part > 0, size=size)
        made.append((pipeline.dump(), path.read_bytes()))
    return made[0] == made[1]


def compared(tools: Sequence[str], source: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Runs]:
    """Each tool's runs, in turn, so that a busy moment hits all alike."""
    runs: dict[str, Runs] = {tool: [] for tool in tools}
    if "pandas" in runs and (needed := arguments.rows * PANDAS_BYTES >> 20) > (free := available_mib()):
        print(f"pandas: left out, it would hold {needed:,} MiB and {free:,} are free")
        del runs["pandas"]
    rows = arguments.rows if source.suffix == ".parquet" else arguments.csv_rows
    for _ in range(arguments.repeat):
        for tool, found in runs.items():
            found.append(measured(tool, source, folder, rows, arguments.threads))
            print(f"  {tool}: {found[-1]['seconds']:.2f} s", flush=True)
    for tool, found in runs.items():
        best = min(found, key=lambda run: run["seconds"])
        fit = f" ({best['fit']:.2f} s of it to fit)" if "fit" in best else ""
        figures = f"{best['seconds']:.2f} s, {best['cpu']:.2f} s of processor time{fit}"
        print(f"{tool}: {figures}, {max(run['mib'] for run in found):.0f} MiB private", flush=True)
    return runs


def available_mib() -> int:
    told = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in told if line.startswith("MemAvailable:")) >> 10


def ratio(runs: dict[str, Runs], own: str, unit: str) -> float:
    """Of our best run to the best of all others."""
    others = [run[unit] for tool, found in runs.items() if tool != own for run in found]
    return min(run[unit] for run in runs[own]) / min(others)


def of_parquet(folder: Path, arguments: argparse.Namespace) -> list[bool]:
    source = folder / "table.parquet"
    generate(source, arguments.rows)
    size = source.stat().st_size >> 20
    print(f"{arguments.rows:,} rows x 20 columns, {size:,} MiB of Parquet, {arguments.threads} thread(s)")
    runs = compared(arguments.tools, source, folder, arguments)
    who = measured("identity", source, folder, arguments.rows, arguments.threads)
    print(f"row identity, apart: {who['seconds']:.2f} s, {who['mib']:.0f} MiB private")
    processor = ratio(runs, "ours", "cpu")
    print(f"in processor time, which other work on the machine disturbs less: {processor:.2f} times the best other")
    return [
        said("parquet_ratio", ratio(runs, "ours", "seconds"), GOAL_RATIO),
        said("private_mib", max(run["mib"] for run in runs["ours"]), GOAL_MIB),
        said("equal_to_small_path", equal_to_the_small_path(source, folder), 1, exact=True),
    ]


def of_csv(folder: Path, arguments: argparse.Namespace) -> list[bool]:
    source, parquet = folder / "table.csv", folder / "csv.parquet"
    generate(parquet, arguments.csv_rows)
    with duckdb_module().connect(config={"threads": 1}) as connection:
        connection.execute(f"COPY (FROM read_parquet('{parquet}')) TO '{source}' (HEADER)")
    parquet.unlink()
    print(f"{arguments.csv_rows:,} rows x 20 columns, {source.stat().st_size >> 20:,} MiB of CSV")
    runs = compared(READERS, source, folder, arguments)
    processor = ratio(runs, "ours_csv", "cpu")
    print(f"in processor time, which other work on the machine disturbs less: {processor:.2f} times DuckDB")
    return [said("csv_ratio", ratio(runs, "ours_csv", "seconds"), GOAL_CSV)]


def duckdb_module() -> Any:
    import duckdb

    return duckdb


def main(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as made:
        parts: dict[str, Callable[[Path, argparse.Namespace], list[bool]]] = {"parquet": of_parquet, "csv": of_csv}
        met = []
        for part in arguments.parts:
            folder = Path(made) / part
            folder.mkdir()
            met += parts[part](folder, arguments)
            shutil.rmtree(folder)
    return 0 if all(met) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--csv-rows", type=int, help="as many as --rows by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the table and the results go; the system's own by default")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), help="ours, and others")
    parser.add_argument("--parts", nargs="+", choices=("parquet", "csv"), default=["parquet", "csv"])
    parser.add_argument("--child", choices=(*TOOLS, *READERS, "identity"), help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.csv_rows = given.csv_rows or given.rows
    if given.child:
        child(given)
        sys.exit(0)
    sys.exit(main(given))
