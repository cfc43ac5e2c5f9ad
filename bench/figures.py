"""What the measurements share: a line per goal, and the memory of a process."""

import csv
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
OWN = ("Private_Clean", "Private_Dirty", "Private_Hugetlb")


def said(name: str, value: float, limit: float, *, exact: bool = False, least: bool = False) -> bool:
    """Print `NAME VALUE goal LIMIT met|missed`. A goal is at most *limit*, exactly it, or at least it."""
    met = value == limit if exact else value >= limit if least else value <= limit
    print(f"{name} {value:.4g} goal {limit:g} {'met' if met else 'missed'}", flush=True)
    return met


def append(table: Path, row: Mapping[str, object]) -> None:
    """Add a row to a CSV file, which begins with the names of its columns."""
    table.parent.mkdir(parents=True, exist_ok=True)
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def commit() -> str:
    """What is measured: the commit of the tree, `-dirty` where a file differs from it that is no result or text."""

    def git(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)

    changed = git("diff", "--quiet", "HEAD", "--", ".", ":!*.csv", ":!*.md").returncode
    return git("describe", "--always").stdout.strip() + "-dirty" * bool(changed)


def memory_mib(pid: int | str = "self") -> tuple[float, float]:
    """What a process holds: its own, and with its part of what it shares (PSS: mapped files count)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines)}
    return sum(found.get(kind, 0) for kind in OWN) / 1024, found["Pss"] / 1024


class Watch:
    """In the block, the largest memory of a process, asked for ten times a second."""

    def __init__(self, pid: int | str = "self") -> None:
        self._pid, self._done = pid, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.own = self.pss = 0.0
        """MiB."""

    def _look(self) -> None:
        while True:
            try:
                own, pss = memory_mib(self._pid)
            except (OSError, KeyError):  # it has ended
                return
            self.own, self.pss = max(self.own, own), max(self.pss, pss)
            if self._done.wait(0.1):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
