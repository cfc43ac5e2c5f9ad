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
        largest = max(largest, os.fstat(1).st_blocks * 512)  # what was dropped is a hole in the file
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


def hurt_reaper(request: Trial, job: ThisJob) -> Tried:
    """Stop or kill the process above, which has to end this one."""
    tick(request)
    os.kill(os.getppid(), signal.Signals[request.values["signal"]])
    time.sleep(0.5)
    return Tried(values={})


def forked(request: Trial, job: ThisJob) -> Tried:
    """A fork that holds all that this job does, also the slot's lock."""
    pid = os.fork()
    if pid:
        Path(request.values["diary"]).write_text(f"{os.getpid()} {pid} {os.getppid()}")
    time.sleep(600)
    return Tried(values={})


def leave(request: Trial, job: ThisJob) -> Tried:
    os._exit(request.values.get("status", 3))


def hush(request: Trial, job: ThisJob) -> Tried:
    """Close what the log comes from, and return twice."""
    forked = os.fork()
    if forked == 0:
        return Tried(values={"who": "the fork"})
    os.waitpid(forked, 0)
    print("the last line before")
    sys.stdout.close()
    sys.stderr.close()
    os.close(1)
    os.close(2)
    if request.values["wrong"]:
        raise ValueError("said after all")
    return Tried(values={"who": "the job"})


def other(request: Trial, job: ThisJob) -> Tried:
    return {"values": {}}  # type: ignore[return-value]


def chat(request: Trial, job: ThisJob) -> Tried:
    print("hello from the job", flush=True)
    for step in range(request.values["steps"]):
        job.report(step, loss=1.0 / (step + 1), nothing=float("nan"))
    return Tried(values={})


def surroundings(request: Trial, job: ThisJob) -> Tried:
    member = job.lease.members[0]
    told = {"cores": job.cores, "memory_mib": member.memory_mib}
    return Tried(values={"environment": dict(os.environ), "nice": os.nice(0), "argv": sys.argv} | told)


EATER = """
import sys, time
held = []
for _ in range(int(sys.argv[1])):
    held.append(b"x" * (1 << 20))
    time.sleep(0.002)
time.sleep(600)
"""


def eat(request: Trial, job: ThisJob) -> Tried:
    """Hold more and more memory, in one of the ways in which jobs do."""
    tick(request)
    mib, way = request.values["mib"], request.values["way"]
    if way == "itself":
        held(mib)
    elif way == "descendants":  # neither alone is too much, and one is in a session of its own
        command = [sys.executable, "-c", EATER, str(mib // 2)]
        eaters = [subprocess.Popen(command), subprocess.Popen(command, start_new_session=True)]
        Path(request.values["pids"]).write_text(" ".join(map(str, [os.getpid(), *(each.pid for each in eaters)])))
        time.sleep(600)
    elif way == "at once":
        bytes(1 << 50)
    return Tried(values={})


def held(mib: int) -> None:
    kept = []
    for _ in range(mib):
        kept.append(b"x" * (1 << 20))
        time.sleep(0.002)
    time.sleep(0.7)  # long enough to be looked at: a job's memory is, each half second


def shared(request: Trial, job: ThisJob) -> Tried:
    """What does not count: pages of a mapped file, and what a fork shares with its parent."""
    much = b"x" * (request.values["mib"] << 20)
    (job.scratch / "table").write_bytes(much)
    with (job.scratch / "table").open("rb") as table, mmap.mmap(table.fileno(), 0, prot=mmap.PROT_READ) as pages:
        total = sum(pages[at] for at in range(0, len(pages), 4096))
        forks = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                time.sleep(1.5)
                os._exit(0)
            forks.append(pid)
        for pid in forks:
            os.waitpid(pid, 0)
    return Tried(values={"total": total})


def halved(request: Trial, job: ThisJob) -> Tried:
    """A trainer with a batch."""
    tick(request)
    times = job.shrink(request.values["most"])
    held(request.values["mib"] >> times)
    return Tried(values={"shrunk": times})


def in_a_group(request: Trial, job: ThisJob) -> Tried:
    """Eat within a control group that has less than the lease says: the kernel ends it."""
    tick(request)
    (Path(request.values["group"]) / "cgroup.procs").write_text(str(os.getpid()))
    held(request.values["mib"])
    return Tried(values={})


def killed(request: Trial, job: ThisJob) -> Tried:
    tick(request)
    if Path(request.values["diary"]).read_text() == "x":
        time.sleep(3.5)  # a kill by the kernel a moment ago was another's
    os.kill(os.getpid(), signal.SIGKILL)
    return Tried(values={})
