"""Jobs that end in every way a job can end."""

import contextlib
import ctypes
import mmap
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from activities.jobs.child import ThisJob
from everloop.errors import DatasetTooSmall, StorageLow
from job_functions.words import Trial, Tried


def echo(request: Trial, job: ThisJob) -> Tried:
    blob = job.artifacts.put(b"bytes")
    return Tried(
        values=request.values | {"blob": blob.sha256, "token": request.slot.token, "scratch": str(job.scratch)}
    )


def stay(request: Trial, job: ThisJob) -> Tried:
    """Write down when it began and when it ended: the tests look for overlaps."""
    diary = Path(request.values["diary"])
    note(diary, "begin")
    deadline = time.monotonic() + request.values["seconds"]
    while time.monotonic() < deadline:
        time.sleep(0.02)
    note(diary, "end")
    return Tried(values={})


def note(diary: Path, what: str) -> None:
    with diary.open("a") as target:
        target.write(f"{what} {os.getpid()} {time.time()}\n")


def tick(request: Trial) -> None:
    with Path(request.values["diary"]).open("a") as target:
        target.write("x")


def family(request: Trial, job: ThisJob) -> Tried:
    """Descendants of every kind: in the group, in a session of its own, and an orphan of a dead parent."""
    diary = Path(request.values["diary"])
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    pids = [os.getpid(), subprocess.Popen(sleeper).pid, subprocess.Popen(sleeper, start_new_session=True).pid]
    if request.values.get("orphan"):
        parent = "import subprocess as s, sys; print(s.Popen(sys.argv[1:], stdout=2, start_new_session=True).pid)"
        pids.append(int(subprocess.check_output([sys.executable, "-c", parent, *sleeper])))
    if request.values.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    diary.write_text(" ".join(map(str, pids)))
    time.sleep(600)
    return Tried(values={})


def flood(request: Trial, job: ThisJob) -> Tried:
    """Print far more than a log may hold, at some pace, and say how large the log ever was."""
    largest = 0
    for number in range(request.values["lines"]):
        print(number, "x" * 60_000, flush=True)
        largest = max(largest, os.fstat(1).st_size)
        time.sleep(0.002)
    print("the last line")
    return Tried(values={"largest": largest})


def wrong(request: Trial, job: ThisJob) -> Tried:
    raise ValueError("the shapes do not fit\nsecond line")


def small(request: Trial, job: ThisJob) -> Tried:
    raise DatasetTooSmall("12 rows are too few", field="source", hint="give it 100")


def full(request: Trial, job: ThisJob) -> Tried:
    tick(request)
    if len(Path(request.values["diary"]).read_text()) < 2:
        raise StorageLow("1 MiB is free")
    return Tried(values={})


def gorge(request: Trial, job: ThisJob) -> Tried:
    """Fill the disk, in one of the ways in which libraries do and tell it."""
    path = Path(request.values["place"]) if "place" in request.values else job.scratch / "much"
    WAYS[request.values["way"]](path)
    return Tried(values={})


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as target:
        while target.write(b"x" * 65536):
            pass


def swallowed(path: Path) -> None:
    """What C++ says: no errno."""
    with contextlib.suppress(OSError):
        fill(path)
    raise RuntimeError("[Fatal] Model could not be saved")


def silent(path: Path) -> None:
    with contextlib.suppress(OSError):
        fill(path)
    os._exit(1)


def sqlite(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE much (bytes BLOB)")
        while True:
            connection.execute("INSERT INTO much VALUES (zeroblob(1000000))")


def mapped(path: Path) -> None:
    """A sparse file that is mapped: the page that finds no room ends the process by SIGBUS."""
    with path.open("w+b") as target:
        target.truncate(1 << 30)
        with mmap.mmap(target.fileno(), 1 << 30) as pages:
            for at in range(0, 1 << 30, 4096):
                pages[at] = 1


WAYS = {"plain": fill, "swallowed": swallowed, "silent": silent, "sqlite": sqlite, "mapped": mapped}


def segfault(request: Trial, job: ThisJob) -> Tried:
    tick(request)
    ctypes.string_at(0)
    return Tried(values={})


def memory(request: Trial, job: ThisJob) -> Tried:
    tick(request)
    raise MemoryError


def leave(request: Trial, job: ThisJob) -> Tried:
    os._exit(3)


def other(request: Trial, job: ThisJob) -> Tried:
    return {"values": {}}  # type: ignore[return-value]


def chat(request: Trial, job: ThisJob) -> Tried:
    print("hello from the job", flush=True)
    for step in range(request.values["steps"]):
        job.report(step, loss=1.0 / (step + 1), nothing=float("nan"))
    return Tried(values={})


def surroundings(request: Trial, job: ThisJob) -> Tried:
    return Tried(values={"environment": dict(os.environ), "nice": os.nice(0), "argv": sys.argv, "cores": job.cores})
