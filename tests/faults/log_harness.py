"""Prediction servers under load and the keeper of their log, killed at random: is every answer logged once?"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from activities.compute.predictions import Logged, signatures_of
from activities.predictions.index import LogIndex
from everloop import engine
from everloop.artifacts import Artifacts
from everloop.records import Route, Window
from everloop.settings import SERVE
from tests import api_parts as parts

WORKERS = 3
ALWAYS = Window(start=datetime(1970, 1, 1, tzinfo=UTC), end=datetime(2100, 1, 1, tzinfo=UTC))
ROW = {"age": 40, "purpose": "car"}

SERVING = """
import runpy, sys
from everloop.predictions import writing
writing.FULL_BYTES = 20_000  # so that files are full often
sys.argv = ["api", "serve"]
runpy.run_module("api", run_name="__main__")
"""
KEEPING = """
import asyncio, sys
from datetime import timedelta
from activities.predictions.keeping import LogKeeper
from everloop import settings as configuration
from everloop.artifacts import Artifacts
from everloop.store import Store
settings = configuration.load()
keeper = LogKeeper(
    Store(settings.database), Artifacts(settings.artifacts), settings.predictions_dir,
    grace=timedelta(seconds=float(sys.argv[1])), stale=timedelta(0), worth_rows=int(sys.argv[2]),
)
async def main():
    while True:
        await keeper.sweep()
        print("kept", flush=True)
        await asyncio.sleep(0.05)
asyncio.run(main())
"""

LATER = """
    import threading
    later = (served.route.version, lines, len(asked))
    threading.Timer(0.2, serving.log_of(name).append_lines, later).start()
"""

Plant = tuple[str, tuple[tuple[str, str, str], ...]]
PLANTS: dict[int, Plant] = {
    1: (
        "an answer is given before it is in the log",
        (
            (
                "api/serve/answering.py",
                "    serving.log_of(name).append_lines(served.route.version, lines, len(asked))\n",
                LATER,
            ),
        ),
    ),
    2: (
        "lines count on beside the Parquet that was made of them",
        (
            (
                "activities/predictions/keeping.py",
                "for row in gone:\n                row.replaced_at = now\n",
                "for row in gone:\n                row.stays = True\n",
            ),
        ),
    ),
    3: (
        "a file that is still written counts as closed",
        (
            (
                "activities/predictions/counting.py",
                "        yield False\n        return\n",
                "        yield True\n        return\n",
            ),
        ),
    ),
}


def planted(folder: Path, plant: int) -> Path:
    """A copy of the sources with a fault in it."""
    for name in ("everloop", "workflows", "activities", "api", "workers"):
        shutil.copytree(engine.source() / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, before, after in PLANTS[plant][1]:
        text = (folder / file).read_text()
        assert text.count(before) == 1, f"plant {plant} does not fit {file} any more: {before!r}"
        (folder / file).write_text(text.replace(before, after))
    return folder


class Server:
    """Several prediction servers on one port, and what they read."""

    def __init__(self, folder: Path, source: Path | None = None, said: int | None = None) -> None:
        """*said*: where its processes write what they have to say."""
        self.settings, self.store, self.signer = parts.deployed(folder)
        self.release(1)
        self.environment = engine.environment(self.settings.environment() | {"EVERLOOP_SERVE_WORKERS": str(WORKERS)})
        if source is not None:
            self.environment["PYTHONPATH"] = str(source)
        self.index = LogIndex(self.store, self.settings.predictions_dir, "default", "credit")
        self.parent = subprocess.Popen(
            [sys.executable, "-c", SERVING], env=self.environment, cwd="/", stdout=said, stderr=said
        )

    def release(self, seq: int) -> Route:
        return parts.release(self.store, Artifacts(self.settings.artifacts), self.signer, seq=seq)

    def client(self) -> httpx.Client:
        return parts.client_of(self.settings, f"http://127.0.0.1:{self.settings.port(SERVE)}")

    def ask(self, path: str) -> httpx.Response:
        """Over a connection of its own: whichever process takes it."""
        with self.client() as client:
            return client.get(path)

    def status(self) -> int | None:
        """The release that /status says, None where not all serve one."""
        try:
            models = self.ask("/status").json()["models"]
        except httpx.HTTPError:
            return None
        return models[0]["release_seq"] if models else None

    def processes(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.parent.pid).children()]

    def wait(self, look: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not look():
            assert self.parent.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, self.ask("/status").text
            time.sleep(0.05)

    def kill_one(self, draw: random.Random) -> None:
        """kill -9 of a process, and wait until another has its place."""
        victim = draw.choice(self.processes())
        os.kill(victim, signal.SIGKILL)
        self.wait(lambda: victim not in self.processes() and len(self.processes()) == WORKERS)

    def end(self) -> int:
        self.parent.terminate()
        return self.parent.wait(60)


@dataclass
class Keeper:
    """Counts and compacts, as control does, without rest."""

    server: Server
    grace: float = 1.0
    worth: int = 30
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-c", KEEPING, str(self.grace), str(self.worth)]
        self.process = subprocess.Popen(command, env=self.server.environment, cwd="/", stdout=subprocess.PIPE)

    def has_looked(self) -> None:
        """Wait until it has looked once."""
        assert self.process is not None and self.process.stdout is not None
        assert self.process.stdout.readline(), "the keeper has ended"

    def kill(self) -> bool:
        """kill -9. Was a child of it compacting?"""
        assert self.process is not None
        compacting = bool(psutil.Process(self.process.pid).children())
        self.process.kill()
        self.process.communicate()
        return compacting

    def finish(self) -> list[str]:
        """Let it look until nothing is left to do. Returns the files that nothing counts even then."""
        self.grace, self.worth = 0.0, 1
        self.start()
        assert self.process is not None and self.process.stdout is not None
        deadline, quiet = time.monotonic() + 120, 0
        left: list[str] = []
        while quiet < 3 and time.monotonic() < deadline:
            self.process.stdout.readline()
            lines = [part for part in self.server.index.parts().parts if part.kind == "lines"]
            left = _left(self.server)  # while it looks: killed in a compaction, it would leave files behind
            quiet = 0 if lines or left else quiet + 1
        self.kill()
        return left


@dataclass
class Load:
    """Callers who never ask twice, and what they were answered."""

    server: Server
    answered: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, callers: int = 4) -> None:
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(callers)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _ask(self, number: int) -> None:
        at = 0
        with self.server.client() as client:
            while not self.over.is_set():
                name = f"kill-{number}-{at}"
                at += 1
                try:
                    client.post("/models/credit/predict", json={"row": ROW, "request_id": name}).raise_for_status()
                except httpx.TransportError:  # its connection died with the process: not answered
                    self.failed.append(name)
                else:
                    self.answered.append(name)


def read(server: Server) -> tuple[list[str], int]:
    """The request ids that a reader finds now, and how many rows its files have before any is dropped."""
    listing = server.index.parts(ALWAYS)
    signatures = signatures_of(listing, Artifacts(server.settings.artifacts))
    logged = Logged(server.index.folder, listing, ALWAYS, signatures)
    return logged.table(["request_id"])["request_id"].to_pylist(), sum(part.rows for part in listing.parts)


class Hits(NamedTuple):
    """How many kills met somebody at work."""

    answering: int = 0
    """Servers that had questions which they have not answered."""
    compacting: int = 0
    """Keepers whose child was compacting."""


def run(server: Server, *, kills: int, seed: int | str) -> tuple[list[str], Load, Hits]:
    """Load, and so many kills of a server, with a kill of the keeper between; what is wrong, in words."""
    draw, wrong, hits = random.Random(seed), [], Hits()
    load, keeper = Load(server), Keeper(server)
    keeper.start()
    load.start()
    seen: set[str] = set()
    for kill in range(kills):
        time.sleep(draw.uniform(0.2, 1.0))
        failed = len(load.failed)
        server.kill_one(draw)
        hits = hits._replace(answering=hits.answering + (len(load.failed) > failed))
        if kill % 2 == 0:
            keeper.has_looked()
            time.sleep(draw.uniform(0.0, 0.7))  # somewhere in a compaction, or between two
            hits = hits._replace(compacting=hits.compacting + keeper.kill())
            keeper.start()
        found, counted = read(server)
        wrong += [f"kill {kill}: {len(seen - set(found))} rows are gone"] * bool(seen - set(found))
        wrong += [f"kill {kill}: {counted - len(found)} rows are there twice"] * (counted != len(found))
        seen = set(found)
    load.stop()
    server.wait(lambda: server.status() is not None)
    keeper.kill()
    code = server.end()
    wrong += [f"the server ended with {code}"] * bool(code)
    wrong += [f"{left} is left" for left in keeper.finish()]
    found, counted = read(server)
    wrong += [f"{len(set(load.answered) - set(found))} answered rows are lost"] * bool(set(load.answered) - set(found))
    wrong += [f"{counted - len(set(found))} rows count twice"] * (counted != len(set(found)))
    wrong += ["rows that nobody asked"] * bool(set(found) - set(load.answered) - set(load.failed))
    return wrong, load, hits


def _left(server: Server) -> list[str]:
    """Files that nothing counts."""
    known = {part.name for part in server.index.parts().parts}
    files = [path for path in server.index.folder.rglob("*") if path.is_file()]
    return [name for path in files if (name := str(path.relative_to(server.index.folder))) not in known]
