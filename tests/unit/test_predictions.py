"""The prediction log: what was appended is read back once, whatever died in between."""

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from everloop.errors import StorageLow, Unavailable
from everloop.predictions import PredictionLog, writing
from everloop.records import Window

NOON = datetime(2024, 3, 5, 12, tzinfo=UTC)
DAY = Window(start=datetime(2024, 3, 5, tzinfo=UTC), end=datetime(2024, 3, 6, tzinfo=UTC))


def row(request_id: str, at: datetime = NOON, index: int = 0) -> dict[str, object]:
    return {
        "request_id": request_id,
        "row": index,
        "key": None,
        "event_time": at.isoformat(),
        "logged_at": datetime.now(UTC).isoformat(),
        "version": 1,
        "features": {"größe": 1.5, "note": "a\nb"},
        "prediction": 0.25,
    }


@pytest.fixture
def log(tmp_path: Path):
    opened = PredictionLog(tmp_path / "default" / "credit")
    yield opened
    opened.close()


def test_rows_come_back_as_they_were_appended_and_only_those_of_the_window(log):
    inside, before, after = row("a"), row("b", DAY.start - timedelta(microseconds=1)), row("c", DAY.end)

    log.append([inside, before, after])

    assert list(log.read(DAY)) == [inside]


def test_a_window_is_half_open_and_in_utc_whatever_zone_the_row_used(log):
    log.append([row("a", datetime.fromisoformat("2024-03-06T00:30:00+01:00"))])  # 23:30 UTC the day before

    assert [found["request_id"] for found in log.read(DAY)] == ["a"]
    assert list(log.read(Window(start=DAY.end, end=DAY.end + timedelta(days=1)))) == []


def test_the_same_row_of_a_request_counts_once(log):
    log.append([row("a"), row("a", index=1)])
    log.append([row("a")])

    assert [(found["request_id"], found["row"]) for found in log.read(DAY)] == [("a", 0), ("a", 1)]


def test_a_torn_tail_is_passed_over_and_does_not_spoil_what_follows(tmp_path):
    killed = PredictionLog(tmp_path)
    killed.append([row("whole")])
    (torn,) = tmp_path.glob("live/*.jsonl")
    with torn.open("ab") as target:
        target.write(json.dumps(row("torn")).encode()[:40])

    PredictionLog(tmp_path).append([row("next")])

    assert sorted(found["request_id"] for found in PredictionLog(tmp_path).read(DAY)) == ["next", "whole"]


def test_every_answered_row_survives_kill_9(tmp_path):
    script = f"""
import sys, datetime
from pathlib import Path
sys.path.insert(0, {str(Path.cwd())!r})
from everloop.predictions import PredictionLog
log = PredictionLog(Path({str(tmp_path)!r}))
for number in range(10**9):
    log.append([{{"request_id": str(number), "row": 0, "event_time": "2024-03-05T12:00:00+00:00"}}])
    print(number, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    answered = [writer.stdout.readline().strip() for _ in range(200)]
    writer.send_signal(signal.SIGKILL)
    answered += writer.stdout.read().split()
    writer.wait()

    logged = [found["request_id"] for found in PredictionLog(tmp_path).read(DAY)]

    assert len(answered) >= 200
    assert set(answered) <= set(logged)
    assert len(logged) <= len(answered) + 1  # at most the one that was being answered


def test_a_file_belongs_to_one_version_and_its_name_says_so_once_it_is_locked(log):
    log.append([row("a"), row("b") | {"version": 2}, row("c")])

    names = sorted(path.name for path in (log.folder / "live").iterdir())
    assert [name.split("-")[0] for name in names] == ["v1", "v2"]
    for path in (log.folder / "live").iterdir():
        with path.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert [found["request_id"] for found in log.read(DAY)] == ["a", "c", "b"]


def test_a_full_file_is_followed_by_another_and_can_be_locked(log, monkeypatch):
    monkeypatch.setattr(writing, "FULL_BYTES", 500)
    for number in range(5):
        log.append([row(str(number))])
        if number == 2:
            log._tidy()
    log.sync()

    free = 0
    for path in (log.folder / "live").iterdir():
        with path.open() as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free += 1
    assert (free, len(list((log.folder / "live").iterdir()))) == (1, 2)
    assert len(list(log.read(DAY))) == 5


def test_a_full_disk_is_said_and_the_next_append_begins_another_file(log):
    log.append([row("a")])
    (written,) = log.folder.glob("live/*.jsonl")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # The second line is cut off by the kernel.
    resource.setrlimit(resource.RLIMIT_FSIZE, (written.stat().st_size + 50, limit[1]))
    try:
        with pytest.raises((StorageLow, Unavailable)):
            log.append([row("b")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)

    log.append([row("c")])

    assert sorted(found["request_id"] for found in log.read(DAY)) == ["a", "c"]


def test_a_place_that_cannot_be_written_is_an_error_that_says_so(tmp_path):
    (tmp_path / "model").write_text("a file where the folder should be")

    with pytest.raises(Unavailable, match="prediction log"):
        PredictionLog(tmp_path / "model").append([row("a")])


def test_rows_reach_the_disk_within_about_a_second(log, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(time.monotonic()), real(descriptor)))
    began = time.monotonic()

    log.append([row("a")])
    while not synced and time.monotonic() < began + 5:
        time.sleep(0.05)

    assert synced
    assert synced[0] - began < 2.5
