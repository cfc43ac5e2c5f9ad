"""A disk that is full for real (a small tmpfs): what writes waits, says why, and goes on when there is room."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from api.app import create_app
from everloop import disk
from everloop.artifacts import Artifacts
from everloop.errors import StorageLow
from everloop.predictions import PredictionLog
from everloop.settings import API
from everloop.store import AuditRow, Store
from tests import api_parts as parts
from tests.conftest import missing
from tests.faults import jobs_harness as harness

SIZE_MIB, FLOOR_MIB = 24, 2


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        missing("the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Iterator[Path]:
    """A disk of 24 MiB."""
    with mounted(tmp_path_factory.mktemp("small"), f"size={SIZE_MIB}m") as folder:
        yield folder


@pytest.fixture
def other(tmp_path) -> Iterator[Path]:
    """A disk of 1 MiB where nothing of ours lies, and with room for few files."""
    with mounted(tmp_path, "size=1m,nr_inodes=20") as folder:
        yield folder


def fill(ballast: Path) -> None:
    """Write until there is not one page left."""
    with ballast.open("wb", buffering=0) as target, contextlib.suppress(OSError):
        while target.write(b"x" * 65536):
            pass
    assert disk.low([ballast.parent], 1)


@pytest.fixture(scope="module")
def settings(small, temporal_server):
    made = harness.new_settings(small / "data", temporal_server.address, slots=1)
    return replace(made, disk_floor_mib=FLOOR_MIB)


@pytest.fixture(scope="module")
def dask(settings):
    started = harness.Dask(settings)
    started.start_all()
    yield started
    started.stop()


async def test_a_job_that_fills_a_disk_which_is_none_of_ours_says_which(settings, dask, other):
    async with harness.bridge(settings, dask, compute=False) as bridge:
        with pytest.raises(StorageLow, match=f"No space left on device: full is .*{other}"):
            await bridge.jobs_as("run-other", "trial.gorge", token=1, way="plain", place=str(other / "ballast"))


def test_a_disk_that_holds_no_more_files_is_full_however_much_is_free(other):
    assert "holds only" in str(disk.low([other], 1))
    assert disk.low([other], 0) is None
    assert disk.low([other.parent], 1) is None


async def test_a_job_on_a_full_disk_waits_for_room_however_it_is_told(settings, dask, small):
    ballast = small / "ballast"
    async with harness.bridge(settings, dask, compute=False) as bridge:
        await bridge.jobs_as("run-0", "trial.echo")
        for number, way in enumerate(("plain", "swallowed", "silent", "sqlite", "mapped")):
            with pytest.raises(StorageLow, match=r"\d+ MiB are free at .* and 2 MiB are needed"):
                await bridge.jobs_as(f"run-{way}", "trial.gorge", token=number + 1, way=way)
            if way in ("silent", "mapped"):  # its end cannot be told from another while the disk is full: scratch goes
                assert disk.low([small], settings.disk_floor_bytes) is None
        # Outside its own folder, so that its end cannot even be written down.
        with pytest.raises(StorageLow, match="0 MiB are free"):
            await bridge.jobs_as("run-outside", "trial.gorge", token=7, way="plain", place=str(ballast))
        # Nothing begins while it is full.
        with pytest.raises(StorageLow, match="0 MiB are free"):
            await bridge.jobs_as("run-none", "trial.echo", token=8)
        ballast.unlink()
        assert (await bridge.jobs_as("run-none", "trial.echo", token=8)).values["blob"]


def test_submit_is_refused_before_anything_starts_and_a_running_lifecycle_says_why_it_waits(small):
    here = replace(parts.settings_in(small / "api"), disk_floor_mib=FLOOR_MIB)
    here.data_dir.mkdir()
    store = Store(here.database)
    store.migrate()
    with store.write() as session:
        session.add(parts.lifecycle("credit-1"))
    ballast = small / "ballast"
    with parts.running(create_app(here), here.port(API)) as url, parts.client_of(here, url) as client:

        def submit(key: str) -> httpx.Response:
            return client.post("/api/v1/lifecycles", json=parts.SPEC, headers={"Idempotency-Key": key})

        fill(ballast)
        try:
            refused = submit("one")
            shown = client.get("/api/v1/lifecycles/credit-1").json()
            home = client.get("/").text
        finally:
            ballast.unlink()
        after = client.get("/api/v1/lifecycles/credit-1").json()
        calm = client.get("/").text
        again = submit("one")
    store.close()

    assert (refused.status_code, refused.json()["code"]) == (507, "storage_low")
    assert "nothing is started: 0 MiB are free" in refused.json()["detail"]
    assert shown["wait"].startswith("Waiting for room on the disk since ")
    assert "0 MiB are free" in shown["wait"]
    assert shown["wait"].endswith("it goes on by itself when there is room.")
    assert "Waiting for room on the disk" in home
    assert "no job starts and nothing can be submitted until there is room" in home
    assert "The disk is nearly full" not in calm
    assert after["wait"] == ""
    assert again.json()["code"] == "unavailable"  # no Temporal here: it got past the disk


def test_what_writes_says_that_the_disk_is_full_and_leaves_nothing_behind(small):
    folder = small / "writers"
    artifacts, store = Artifacts(str(folder / "artifacts"), 0), Store(f"sqlite:///{folder / 'everloop.db'}")
    artifacts.put(b"first")
    store.migrate()
    source = small.parent / "source.bin"
    source.write_bytes(b"y" * (1 << 20))
    log = PredictionLog(folder / "predictions")
    ballast = small / "ballast"
    fill(ballast)
    try:
        with pytest.raises(StorageLow, match="0 MiB are free"):
            artifacts.put(b"z" * (1 << 20))
        with pytest.raises(StorageLow, match="0 MiB are free"):
            artifacts.put_file(source)
        with pytest.raises(StorageLow), store.write() as session:
            session.add_all(AuditRow(**AUDIT, subject="s" * 5000) for _ in range(200))
        with pytest.raises(StorageLow):
            log.append([{"event_time": "2024-01-01T00:00:00+00:00", "text": "t" * 100_000}])
    finally:
        ballast.unlink()
    assert list((folder / "artifacts" / "incoming").iterdir()) == []
    assert artifacts.get(artifacts.put(b"z" * 1000)) == b"z" * 1000
    with store.write() as session:
        session.add(AuditRow(**AUDIT, subject="after"))
    log.append([{"event_time": "2024-01-01T00:00:00+00:00"}])
    log.close()
    store.close()


AUDIT = {"at": parts.NOW, "person": "ada", "action": "POST", "status": 200, "request_id": "1"}


def test_whatever_a_library_makes_of_a_full_disk_is_known_for_it():
    for error in (
        OSError(28, "No space left on device"),
        OSError("131072 requested and 4096 written"),  # numpy
        RuntimeError('IO Error: Could not write file "/x": No space left on device'),  # DuckDB
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
        StorageLow(),
    ):
        assert disk.is_full(error)
        wrapped = ValueError("the model could not be written")
        wrapped.__cause__ = error
        assert disk.is_full(wrapped)
    assert not disk.is_full(OSError(2, "No such file"))
