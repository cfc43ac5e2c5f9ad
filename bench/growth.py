"""What many lifecycles leave behind: memory of each process and the size of scratch, lifecycle by lifecycle.

Runs small lifecycles one after the other, approves each, and keeps its place in a folder: called again with the same
`--folder` it goes on, with a stack of its own. What counts is the second half: caches fill in the first.
Exit code 1 when a goal is missed.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.figures import said
from bench.stack_memory import measured
from everloop import settings as configuration
from everloop import stack
from everloop.client import Client
from everloop.settings import Settings
from tests.conftest import free_port_base
from tests.loop.test_stack import Launcher

MOST_KB, MOST_SCRATCH_KB = 60.0, 4.0
"""Per lifecycle, in the second half. It was 330 KB of control's memory and 116 KB of scratch."""


def table(folder: Path) -> Path:
    path, numbers = folder / "small.csv", random.Random(0)
    rows = [f"{age},{int(age + numbers.gauss(0, 10) > 50)}" for age in (numbers.randint(18, 80) for _ in range(300))]
    path.write_text("\n".join(["age,left", *rows]) + "\n")
    return path


def one(client: Client, spec: dict[str, object], key: str) -> None:
    client.submit(spec, key)
    client.wait(key, until="gate", timeout=300, every=0.1)
    client.approve(key, "fine")
    found = client.wait(key, timeout=300, every=0.1)
    assert found["status"] == "released", found


def scratch_kb(here: Settings) -> float:
    """Of files and folders, as the disk counts them; some go while it looks."""
    blocks = 0
    for folder, folders, files in os.walk(here.scratch_dir / "jobs"):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                blocks += os.lstat(os.path.join(folder, name)).st_blocks  # noqa: PTH118  # as many as there are
    return blocks * 512 / 1e3


def look(here: Settings, number: int) -> dict[str, object]:
    return {"number": number, "mb": measured(here), "scratch_kb": scratch_kb(here), "session": _session(here)}


def _session(here: Settings) -> str:
    up = stack.read(here)
    return up.session if up else ""


def slope(points: list[tuple[float, float]]) -> float:
    """By least squares."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 2 else 0.0


def told(looks: list[dict[str, object]]) -> int:
    last = [each for each in looks if each["session"] == looks[-1]["session"]]  # a restart is a new beginning
    half = last[len(last) // 2 :]
    names = sorted(half[0]["mb"])  # type: ignore[call-overload]
    rates = {n: 1e3 * slope([(e["number"], e["mb"].get(n, 0.0)) for e in half]) for n in names}  # type: ignore[attr-defined]
    for name in names:
        first, end = looks[0]["mb"].get(name, 0.0), looks[-1]["mb"].get(name, 0.0)  # type: ignore[attr-defined]
        print(f"  {name:28} {first:6.1f} -> {end:6.1f} MB   {rates[name]:7.1f} KB per lifecycle")
    met = [
        said("control_kb_per_lifecycle", rates["workers control"], MOST_KB),
        said("scratch_kb_per_lifecycle", slope([(e["number"], e["scratch_kb"]) for e in half]), MOST_SCRATCH_KB),  # type: ignore[misc]
    ]
    return 0 if all(met) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lifecycles", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="where it keeps its place (default: a temporary one)")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "growth.jsonl"
    looks = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    source = {"path": str(table(folder))}
    spec = {"model": "small", "task": "binary", "target": "left", "source": source, "monitor": None}
    spec["training"] = {"rounds": 5}
    here = configuration.load(data_dir=folder / "data", port_base=free_port_base())
    Launcher(here).ready()
    try:
        with Client(data_dir=here.data_dir) as client:
            for number in range(looks[-1]["number"] + 1 if looks else 1, given.lifecycles + 1):
                one(client, spec, f"growth-{number}-{time.time_ns()}")
                looks.append(look(here, number))
                with notes.open("a") as kept:
                    kept.write(json.dumps(looks[-1]) + "\n")
        return told(looks)
    finally:
        stack.down(here)


if __name__ == "__main__":
    sys.exit(main())
