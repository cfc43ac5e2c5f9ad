"""DuckDB as the data rooms use it: one connection per job, made after the fork, and nothing downloaded ever."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

MEMORY = "1GB"
"""What a connection may hold before it spills to its scratch folder."""


@contextmanager
def connection(
    scratch: Path, threads: int = 1, memory: str = MEMORY, *, cache_files: bool = True
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that spills to *scratch*. Never open one in a process that forks.

    *cache_files*: what was read of Parquet files may stay in memory, for who reads it again.
    """
    spill = scratch / f"duckdb-{os.getpid()}"
    made = duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "threads": threads,
            "memory_limit": memory,
            "enable_external_file_cache": cache_files,
            "temp_directory": str(spill),
            "preserve_insertion_order": "true",
        },
    )
    try:
        made.execute("SET TimeZone = 'UTC'")
        made.execute("SET enable_progress_bar = false")
        yield made
    finally:
        made.close()


def parquet(paths: Sequence[Path], columns: int) -> str:
    """Parquet files as a table in SQL. Its columns are c0, c1, ...: DuckDB takes names that differ in case for one."""
    files = ", ".join(text(str(path)) for path in paths)
    names = ", ".join(f"c{place}" for place in range(columns))
    return f"read_parquet([{files}], hive_partitioning = false) AS t({names})"


LEAST_GROUP, MOST_GROUP, GROUP_CELLS = 2048, 122_880, 8_000_000
"""Rows that are written at once, and the values that they may have: a group is in memory until it is whole."""


def copy(query: str, target: Path, width: int, duck: duckdb.DuckDBPyConnection) -> None:
    """Write the rows of *query*, which has *width* columns, as Parquet."""
    group = max(LEAST_GROUP, min(MOST_GROUP, GROUP_CELLS // width))
    duck.execute(f"COPY ({query}) TO {text(str(target))} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {group})")


def text(value: str) -> str:
    """*value* as SQL."""
    return "'" + value.replace("'", "''") + "'"


def name(value: str) -> str:
    """A column's name as SQL."""
    return '"' + value.replace('"', '""') + '"'
