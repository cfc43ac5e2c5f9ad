"""What `init` costs beside DuckDB's own look at the same file: 1,000,000 rows of 30 columns, in one run.

    python bench/init.py [ROWS]

DuckDB sniffs all rows (`sample_size=-1`) and reads them typed into a table; `init` says how every column is read, held
against every row, and drafts a spec. Each is a process of its own, so that imports count. Says also what the two find.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
ROUNDS = 3


def make(path: Path) -> None:
    """10 whole numbers, 10 fractions, 6 categories, 2 times, a key and a target; some of it missing."""
    cells = [f"CAST(floor(random() * {10 ** (place % 6 + 1)}) AS BIGINT) AS n{place}" for place in range(10)]
    cells += [f"round(random() * 1000, {place % 4 + 2}) AS x{place}" for place in range(9)]
    cells += ["CASE WHEN random() < .05 THEN NULL ELSE round(random(), 3) END AS gaps"]
    cells += [
        f"'value ' || CAST(floor(random() * {5 * (place + 1) ** 2}) AS INTEGER) AS c{place}" for place in range(6)
    ]
    cells += [
        "TIMESTAMP '2024-01-01' + INTERVAL (i) SECOND AS at",
        "DATE '2020-01-01' + CAST(i % 900 AS INTEGER) AS day",
    ]
    cells += ["1000000000000000000 + i AS id", "CAST(random() < .3 AS INTEGER) AS y"]
    with duckdb.connect() as duck:
        duck.execute("SELECT setseed(0.5)")
        duck.execute(f"COPY (SELECT {', '.join(cells)} FROM range({ROWS}) r(i)) TO '{path}' (HEADER)")


DUCKDB = """
import duckdb, sys
with duckdb.connect() as duck:
    duck.execute(f"SELECT Columns FROM sniff_csv('{sys.argv[1]}', sample_size=-1)").fetchall()
    duck.execute(f"CREATE TABLE t AS SELECT * FROM read_csv('{sys.argv[1]}', sample_size=-1)")
"""


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        make(path)
        print(f"{ROWS:,} rows, 30 columns, {path.stat().st_size / 1e6:,.0f} MB")
        theirs, ours = [], []
        for _ in range(ROUNDS):  # one after the other, so that what else runs is shared
            theirs.append(timed([sys.executable, "-c", DUCKDB, str(path)]))
            draft = str(Path(folder) / "t.yaml")
            command = ["init", str(path), "--target", "y", "-o", draft, "--force"]
            ours.append(timed([sys.executable, "-m", "everloop.cli", *command]))
        print(f"DuckDB: {min(theirs):.2f} s ({', '.join(f'{one:.2f}' for one in theirs)})")
        print(f"init:   {min(ours):.2f} s ({', '.join(f'{one:.2f}' for one in ours)})")
        print(f"ratio:  {min(ours) / min(theirs):.2f}")


if __name__ == "__main__":
    main()
