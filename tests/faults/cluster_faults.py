"""A control plane and two hosts that share no disk with it, on which lifecycles and gangs are killed: what is seen.

`proof_clusters.py` runs these again and again, `make proof-clusters`.
"""

import contextlib
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import psutil
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlmodel import col, select

from everloop import settings as configuration
from everloop import stack
from everloop.client import Client
from everloop.settings import Settings
from everloop.store import StageRow, Store
from tests.conftest import free_port_base
from tests.faults.gang_faults import LONGEST_SECONDS, TOLERANCE
from tests.faults.hosts import Cluster, Network, cluster_of_two, until
from tests.faults.test_gang_elastic import spec_of as gang_of
from tests.faults.test_kill_each_stage import spec_of, write_table
from tests.loop.test_stack import Launcher, everloop
from tests.postgres import postgres
from tests.seaweed import seaweed

SECONDS = 400.0
"""That a stage may take, and the whole stack to be ready: on a machine that is shared with others."""
JOBS = {
    "snapshot": "data.snapshot", "validate": "data.validate", "prepare": "features.prepare",
    "train": "training.train", "evaluate": "evaluation.evaluate", "refit": "training.refit", "export": "export.export",
}  # fmt: skip
PHASES = (*JOBS, "gate", "release")
SAME = ("table", "pipeline")
"""What `prepare` leaves: two members leave the bytes that one leaves."""


@dataclass
class Seen:
    """What one lifecycle has met, and what came of it."""

    name: str
    hits: list[str] = field(default_factory=list)
    """`job in train`, `host in prepare`, `control at gate`, `rank of a gang`: kills that met what they aimed at."""
    missed: list[str] = field(default_factory=list)
    """What was over before the kill came."""
    wrong: list[str] = field(default_factory=list)
    """`bytes`, `metric`, `redone`, `stages`, `late`, `devices`, `left`, `journal`, `broken`, with what was seen."""
    again_seconds: list[float] = field(default_factory=list)
    """From a kill in a stage to that stage's end."""
    ended_seconds: list[float] = field(default_factory=list)
    """From a rank's death to the end of all."""
    made: dict[str, Any] = field(default_factory=dict)
    """Of an unhurt one, what the others are compared with."""


@dataclass
class Room:
    """The control plane as it runs now, and the hosts."""

    here: Settings
    cluster: Cluster
    store: Store
    folder: Path
    launcher: Launcher

    def client(self) -> Client:
        return Client(data_dir=self.here.data_dir)

    def kill_the_control_plane(self) -> None:
        """kill -9 of all its processes at one moment, and `everloop up` again."""
        self.launcher.kill_everything()
        self.launcher = launched(self.here)

    def jobs(self, function: str) -> dict[str, list[int]]:
        """Pids of the processes of a stage, by host."""
        found: dict[str, list[int]] = {}
        for name, host in self.cluster.hosts.items():
            for pid in host.running():
                with contextlib.suppress(psutil.Error):
                    if psutil.Process(pid).name() == function[:15]:
                        found.setdefault(name, []).append(pid)
        return found

    def stage(self, lifecycle: str, stage: str) -> StageRow | None:
        """Its last row."""
        with self.store.read() as session:
            rows = select(StageRow).where(StageRow.lifecycle == lifecycle, StageRow.stage == stage)
            return session.exec(rows.order_by(col(StageRow.position).desc())).first()

    def stages(self, lifecycle: str) -> list[StageRow]:
        with self.store.read() as session:
            rows = select(StageRow).where(StageRow.lifecycle == lifecycle).order_by(col(StageRow.position))
            return list(session.exec(rows).all())

    def done(self, lifecycle: str, stage: str) -> bool:
        found = self.stage(lifecycle, stage)
        return found is not None and found.status != "running"

    def checkpoints(self) -> list[str]:
        """The whole ones of trainings on the store."""
        url = f"{self.cluster.environment['EVERLOOP_ARTIFACTS_URL']}/checkpoints"
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        return [path for path in files.find(root) if "/training.train/" in path and path.endswith("/digests.json")]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Room]:
    """Postgres, S3, somebody's Dask scheduler, two hosts and a control plane; all of it ends with the block."""
    network = Network()
    network.make()
    here = configuration.load(data_dir=folder / "control", port_base=free_port_base())
    try:
        with (
            postgres() as server,
            seaweed(folder / "s3", network.address) as bucket,
            cluster_of_two(folder, here.data_dir, bucket, network) as cluster,
            _environment(cluster, f"{server}postgres"),
        ):
            for host in cluster.hosts.values():
                host.start()
            store = None
            try:
                launcher = launched(here)
                store = Store(f"{server}postgres")
                room = Room(here, cluster, store, folder, launcher)
                with room.client() as client:
                    until(lambda: len(client.nodes()) == len(cluster.hosts), SECONDS, "the hosts are not in the pool")
                yield room
            finally:
                stack.down(here)
                if store is not None:
                    store.close()
    finally:
        network.remove()


@contextlib.contextmanager
def _environment(cluster: Cluster, database: str) -> Iterator[None]:
    until(lambda: _answers(database), 60, "Postgres does not answer")
    told = {"EVERLOOP_DATABASE_URL": database, "EVERLOOP_CHECKPOINT_SECONDS": "0.4", "EVERLOOP_AWAY_SECONDS": "3"}
    before = dict(os.environ)
    os.environ.update(cluster.environment | told)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _answers(database: str) -> bool:
    try:
        with sa.create_engine(database).connect():
            return True
    except OperationalError:
        return False


def launched(here: Settings) -> Launcher:
    """`everloop up`; again where the machine was too busy for it to be ready in its time."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        launcher = Launcher(here)
        while launcher.process.poll() is None:
            if "/login" in launcher.output.read_text():
                return launcher
            time.sleep(0.2)
    raise AssertionError(launcher.output.read_text())


# --- a lifecycle ------------------------------------------------------------------------------------


def lifecycle(
    room: Room, name: str, numbers: random.Random, unhurt: dict[str, Any], phases: Sequence[str] = PHASES
) -> Seen:
    """One that is killed in each of its *phases*: mostly the job, in two of them the whole host.

    Two members prepare it. *unhurt*: `made` of one of which nothing was killed, and which one member has prepared;
    empty: this is to be that one.
    """
    seen = Seen(name)
    hosts = set(numbers.sample(list(JOBS), 2))
    spec = spec_of(write_table(room.folder, random.Random(0)), name) | {"monitor": None}
    spec |= {"training": {"rounds": 800, "early_stopping": 1000, "learning_rate": 0.001, "leaves": 31}}
    if unhurt:
        spec["resources"] = {"stages": {"prepare": {"members": 2}}}
    if "release" not in phases:
        spec["until"] = "train"
    with room.client() as client:
        client.submit(spec, name)
        for stage in JOBS if unhurt else ():
            if stage in phases:
                _kill_in(room, seen, stage, numbers, whole_host=stage in hosts)
        if "release" in phases:
            _released(room, client, seen, numbers, killed=bool(unhurt))
        client.wait(name, timeout=SECONDS)
    _judge(room, seen, unhurt, phases)
    return seen


def _kill_in(room: Room, seen: Seen, stage: str, numbers: random.Random, *, whole_host: bool) -> None:
    """kill -9 of a process of *stage*, or of all on its host, which is then started again."""
    what = f"{'host' if whole_host else 'job'} in {stage}"
    running = until(
        lambda: room.jobs(JOBS[stage]) or room.done(seen.name, stage), SECONDS, f"{seen.name}: {stage} does not begin"
    )
    if stage == "train":
        until(lambda: room.checkpoints() or room.done(seen.name, stage), SECONDS, "no checkpoint on the store")
    time.sleep(numbers.random() * 0.2)
    running = room.jobs(JOBS[stage])
    if not running or room.done(seen.name, stage):
        seen.missed.append(what)
        return
    name = numbers.choice(sorted(running))
    host = room.cluster.hosts[name]
    if whole_host:
        host.kill()
    else:
        psutil.Process(numbers.choice(running[name])).kill()
    began = time.monotonic()
    hit = not room.done(seen.name, stage)
    (seen.hits if hit else seen.missed).append(what)
    if whole_host:
        host.start()
    until(lambda: room.done(seen.name, stage), SECONDS, f"{seen.name}: {stage} does not end")
    if hit:
        seen.again_seconds.append(round(time.monotonic() - began, 2))


def _released(room: Room, client: Client, seen: Seen, numbers: random.Random, *, killed: bool) -> None:
    client.wait(seen.name, until="gate", timeout=SECONDS)
    if killed:
        room.kill_the_control_plane()
        seen.hits.append("control at gate")
    until(lambda: _approved(client, seen.name), SECONDS, "it cannot be approved")
    if killed:
        time.sleep(numbers.random() * 0.3)
        over = room.done(seen.name, "release")
        room.kill_the_control_plane()
        (seen.missed if over else seen.hits).append("control in release")


def _approved(client: Client, name: str) -> bool:
    with contextlib.suppress(Exception):  # the API may not be there yet, nor what it asks
        client.approve(name, "seen")
        return True
    return False


def _judge(room: Room, seen: Seen, unhurt: dict[str, Any], phases: Sequence[str]) -> None:
    rows = room.stages(seen.name)
    by_stage = {row.stage: row for row in rows}
    train, prepare = by_stage["train"], by_stage["prepare"]
    seen.made = {"stages": [row.stage for row in rows if row.status == "done"], "metrics": train.metrics}
    seen.made |= {"model": train.blobs.get("model", "")} | {each: prepare.blobs.get(each, "") for each in SAME}
    if room.checkpoints():
        seen.wrong.append(f"left: checkpoints {room.checkpoints()[:2]}")
    if not all(seen.made.values()):
        seen.wrong.append(f"broken: it left {seen.made}")
    if not unhurt:
        return
    if "release" in phases and seen.made["stages"] != unhurt["stages"]:
        seen.wrong.append(f"stages: {[(row.stage, row.status) for row in rows]}, unhurt {unhurt['stages']}")
    for each in (*SAME, "model"):
        if seen.made[each] != unhurt[each]:
            seen.wrong.append(f"bytes: {each} is {seen.made[each][:12]}, unhurt {unhurt[each][:12]}")
    _compare(seen, train, unhurt)
    if len((prepare.ran or {}).get("members", ())) != 2:
        seen.wrong.append(f"devices: two members were to prepare it: {prepare.ran}")
    _verify(room, seen)


def _compare(seen: Seen, train: StageRow, unhurt: dict[str, Any]) -> None:
    """What was learned with what was learned where nothing was killed."""
    for each, value in unhurt["metrics"].items():
        if abs(train.metrics.get(each, 1e9) - value) > TOLERANCE:
            seen.wrong.append(f"metric: {each} is {train.metrics.get(each)}, unhurt {value}")
    resumed = (train.ran or {}).get("resumed") or {}
    if any(each.endswith(("in train", "of a gang")) for each in seen.hits) and not resumed.get("step"):
        seen.wrong.append(f"redone: the training began anew: {resumed}")


def _verify(room: Room, seen: Seen) -> None:
    verified = everloop(room.here, "journal", "verify")
    if verified.returncode:
        seen.wrong.append(f"journal: {verified.stdout[-300:]}{verified.stderr[-300:]}")


# --- a gang -----------------------------------------------------------------------------------------


def gang(room: Room, name: str, numbers: random.Random, unhurt: dict[str, Any]) -> Seen:
    """Two ranks that train together across both hosts; one is killed, or its host."""
    seen, folder = Seen(name), room.folder / name
    folder.mkdir()
    spec = gang_of(folder) | {"resources": {"members": 2}, "model": name}
    spec["params"] = {"epochs": 60, "width": 32, "rate": 0.001}
    with room.client() as client:
        client.submit(spec, name)
        if unhurt:
            _kill_a_rank(room, seen, numbers)
        client.wait(name, timeout=SECONDS)
        logs = [client.logs(name, "train", rank=rank) for rank in (0, 1)]
    row = room.stage(name, "train")
    if row is None or row.status != "done":
        seen.wrong.append(f"stages: train is {row and row.status}")
        return seen
    seen.made = {"metrics": row.metrics}
    on = {each["device"].rpartition("-")[2] for each in row.ran.get("members", ())}
    if on != set(room.cluster.hosts):
        seen.wrong.append(f"devices: its ranks ran on {sorted(on)}")
    if logs[0] == logs[1]:
        seen.wrong.append("left: both ranks have one log")
    if unhurt:
        _compare(seen, row, unhurt)
        _verify(room, seen)
    return seen


def _kill_a_rank(room: Room, seen: Seen, numbers: random.Random) -> None:
    until(lambda: room.checkpoints() or room.done(seen.name, "train"), SECONDS, "no checkpoint on the store")
    ranks = room.jobs(JOBS["train"])
    what = numbers.choice(["rank of a gang", "host of a gang"])
    if len(ranks) < len(room.cluster.hosts) or room.done(seen.name, "train"):
        seen.missed.append(what)
        return
    name = numbers.choice(sorted(ranks))
    if what == "host of a gang":
        room.cluster.hosts[name].kill()
    else:
        psutil.Process(ranks[name][0]).kill()
    began = time.monotonic()
    seen.hits.append(what)
    _ended(seen, [pid for pids in ranks.values() for pid in pids], began)
    if what == "host of a gang":
        room.cluster.hosts[name].start()


def _ended(seen: Seen, pids: Sequence[int], began: float) -> None:
    """Until none of the ranks runs any more."""
    while alive := [pid for pid in pids if _runs(pid)]:
        if time.monotonic() - began > LONGEST_SECONDS:
            seen.wrong.append(f"late: {len(alive)} ranks live {LONGEST_SECONDS:.0f} s after the death of one")
            for pid in alive:
                with contextlib.suppress(psutil.Error):
                    psutil.Process(pid).kill()
            return
        time.sleep(0.02)
    seen.ended_seconds.append(round(time.monotonic() - began, 2))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
