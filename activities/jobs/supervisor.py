"""The Dask task: start a job under a reaper, relay its progress, end it when it is no longer wanted.

The task holds nothing: whatever happens to this process, the reaper ends the job (lifeline), the slot's lock
keeps the next attempt waiting until the old one is gone, and a finished result is found again on disk.

    scratch/jobs/<run id>/<activity id>/crashes            one line per crash, over all tokens
                                       /<token>/request.json, result.json or error.json, scratch/
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from distributed import get_worker
from distributed.core import Status

from activities.jobs import reaper, threads
from everloop import disk, engine, logs
from everloop.errors import StorageLow

POLL_SECONDS = 0.1
RELAY_SECONDS = 0.2
GRACE_SECONDS = 2.0
"""From SIGTERM to SIGKILL for a job that is no longer wanted."""
MOST_LINES = 500  # progress lines in one message; the last ones are kept
SIGNALLED = 128  # the reaper's exit code for a killed job is this plus the signal
REAPER_KILLED, NEVER_BEGAN = -1, -2
WARM = "activities.jobs.warm"  # not imported: this process stays light
MARK = "EVERLOOP_SLOT"
"""In the environment of every job of a slot: who carries it belongs to that slot."""
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONSAFEPATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES")
"""All that a job inherits: no database address, no Temporal address, no keys."""


ABOUT_THE_STAGE = ("function", "root", "request", "digest", "token", "lease", "checkpoints", "checkpoint_seconds")
TOLD = (*ABOUT_THE_STAGE, "log", "artifacts", "predictions_dir", "floor_bytes")
"""Of an order, what the job reads."""


class Order(TypedDict):
    """What the compute worker asks for. Plain values only: they cross to another process, maybe another host."""

    topic: str
    function: str
    root: str
    """The package that holds the function: `activities.compute`."""
    request: dict[str, Any]
    digest: str
    """Of the function and the request without its slot: a kept result must be of the same question."""
    token: int
    device: str
    folder: str
    """`scratch/jobs/<run id>/<activity id>`."""
    log: str
    logs_dir: str
    slots_dir: str
    environment: dict[str, str]
    artifacts: str
    predictions_dir: str
    grace_seconds: float
    checkpoints: str
    """`scratch/checkpoints/<chain>/<stage>/<question>`: outlives tokens and runs."""
    checkpoint_seconds: float
    lease: dict[str, Any]
    """`records.Lease`."""
    floor_bytes: int
    """What stays free on the disk: below this no job starts."""


class Outcome(TypedDict, total=False):
    """How it ended: exactly one of `result`, `error`, `crash`, `unwanted`."""

    result: dict[str, Any]
    error: dict[str, str]
    """`error` (class name), `message`, `field`, `hint`."""
    crash: str
    """What killed the job: `SIGSEGV`, `MemoryError`."""
    unwanted: bool
    crashes: int
    seconds: float
    log: str
    kept: bool
    resumed: dict[str, Any] | None
    """`records.Resumed`."""
    artifacts: list[dict[str, Any]]


def supervise(order: Order) -> Outcome:
    """Run the job of *order* to its end on this slot, or return the result that an earlier attempt has left.

    Waits for the slot's lock first: the child of a lost attempt may still be ending.
    """
    task = Task(order["topic"])
    with _slot(order, task) as lock:
        if lock is None:
            return {"unwanted": True}
        kept = _kept(order)
        if kept is not None:
            return kept
        _end_orphans(order["environment"][MARK])
        shutil.rmtree(_job_folder(order) / "scratch", ignore_errors=True)  # it may be what fills the disk
        low = _low(order)
        if low is not None:
            return low
        try:
            return _attempt(order, task, lock)
        except OSError as error:
            if disk.is_full(error):
                return _no_room(order)
            raise


def _attempt(order: Order, task: "Task", lock: int) -> Outcome:
    job = _prepare(order)
    try:
        code = _run(order, task, job, lock)
        return _outcome(order, job, code, unwanted=task.ended)
    finally:
        shutil.rmtree(job / "scratch", ignore_errors=True)


def _low(order: Order) -> Outcome | None:
    """How a job ends that finds too little room, or None where there is enough."""
    found = disk.low(_written(order), order.get("floor_bytes", 0))
    return None if found is None else _told(found)


def _no_room(order: Order) -> Outcome:
    return _low(order) or _told(disk.full(Path(order["folder"]), order.get("floor_bytes", 0)))


def _told(error: StorageLow) -> Outcome:
    return {"error": {"error": "StorageLow", "message": str(error), "field": "", "hint": error.hint}}


def _written(order: Order) -> list[Path]:
    local = [Path(order["artifacts"])] if order["artifacts"].startswith("/") else []
    return [Path(order["folder"]), Path(order["logs_dir"]), *local]


def _job_folder(order: Order) -> Path:
    return Path(order["folder"]) / str(order["token"])


class Task:
    """The Dask task that runs here, as its worker sees it."""

    def __init__(self, topic: str) -> None:
        self.worker = get_worker()
        self.key = self.worker.get_current_task()
        self.topic = topic
        self.ended = False
        """The job was told to end."""

    def wanted(self) -> bool:
        """False once the key was cancelled, its client has died, the scheduler was lost or this worker closes."""
        # Internals of distributed, pinned by tests/unit/test_jobs_internals.py.
        state = self.worker.state.tasks.get(self.key)
        alive = self.worker.status in (Status.running, Status.paused)
        return state is not None and state.state != "cancelled" and alive

    def tell(self, **event: Any) -> None:  # noqa: ANN401
        self.worker.log_event(self.topic, {"key": self.key} | event)


@contextlib.contextmanager
def _slot(order: Order, task: Task) -> Iterator[int | None]:
    """The slot's lock as a file descriptor, or None when the task is no longer wanted."""
    folder = Path(order["slots_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{order['device']}.lock").open("a") as lock:
        while not _locked(lock.fileno()):
            if not task.wanted():
                yield None
                return
            time.sleep(POLL_SECONDS / 2)
        yield lock.fileno()


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kept(order: Order) -> Outcome | None:
    """The result of an attempt with this token or an older one, for the same question."""
    folder = Path(order["folder"])
    tokens = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    for token in sorted((each for each in tokens if each <= order["token"]), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((folder / str(token) / "result.json").read_text())
            if found["digest"] == order["digest"]:
                return _left(found) | {"kept": True}
    return None


def _prepare(order: Order) -> Path:
    """The folder of this token, with the request in it and nothing of a former attempt."""
    job = _job_folder(order)
    shutil.rmtree(job / "scratch", ignore_errors=True)
    (job / "scratch").mkdir(parents=True)
    for left in ("error.json", "result.json"):
        (job / left).unlink(missing_ok=True)
    (Path(order["logs_dir"]) / order["log"]).parent.mkdir(parents=True, exist_ok=True)
    (job / "request.json").write_text(json.dumps({name: value for name, value in order.items() if name in TOLD}))
    return job


def _run(order: Order, task: Task, job: Path, lock: int) -> int:
    """Start reaper and job, relay events until both are gone. The job's exit code, or 128 + signal.

    `REAPER_KILLED` or `NEVER_BEGAN` when there is none.
    """
    life_r, life_w = os.pipe()
    events_r, events_w = os.pipe()
    status_r, status_w = os.pipe()
    os.set_blocking(events_r, False)
    os.set_blocking(events_w, False)  # a slow reader must never stall the job
    log = os.open(Path(order["logs_dir"]) / order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    start: reaper.Start = {"name": order["function"], "folder": str(job), "grace_seconds": order["grace_seconds"]}
    try:
        try:
            warm_up(order["root"], order["environment"]).send(
                start, reaper.Pipes(life_r, events_w, lock, log, status_w)
            )
        finally:
            for theirs in (life_r, events_w, log, status_w):
                os.close(theirs)
        return _relay(task, events_r, life_w, status_r, Path(order["logs_dir"]) / order["log"])
    finally:
        os.close(life_w)  # whatever happened here, the job ends with us
        while os.read(status_r, 64):
            pass
        os.close(status_r)
        os.close(events_r)
        if task.ended:
            task.tell(gone=True)


class Warm:
    """The process that jobs are forked from, with the heavy place loaded."""

    def __init__(self, root: str, environment: dict[str, str]) -> None:
        self.environment = environment
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WARM, root, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=_environment(environment),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
        self.pid = self._process.pid

    def serves(self, environment: dict[str, str]) -> bool:
        return self._process.poll() is None and environment == self.environment

    def send(self, start: reaper.Start, fds: reaper.Pipes) -> None:
        socket.send_fds(self._control, [json.dumps(start).encode()], fds)

    def close(self) -> None:
        """It ends by itself; its jobs go on."""
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)


_warm: Warm | None = None
_warming = threading.Lock()


def warm_up(root: str, environment: dict[str, str]) -> Warm:
    """Have the heavy place loaded beside this Dask worker; returns at once, the loading goes on."""
    global _warm  # noqa: PLW0603  # one per Dask worker process, like the worker itself
    with _warming:
        if _warm is not None and not _warm.serves(environment):
            _warm.close()
            _warm = None
        if _warm is None:
            _warm = Warm(root, environment)
        return _warm


def start_warm(root: str, environment: dict[str, str]) -> None:
    """`warm_up` as a Dask task."""
    warm_up(root, environment)


def _environment(extra: dict[str, str]) -> dict[str, str]:
    ours = engine.environment()
    single = dict.fromkeys(threads.THREADS, "1")  # a job sets its lease's by call: activities/jobs/threads.py
    return {name: ours[name] for name in PASSED_ON if name in ours} | single | extra


def _end_orphans(mark: str) -> None:
    """Kill what a killed reaper has left behind: we hold the slot's lock, so whoever carries its mark is an orphan."""
    wanted = f"{MARK}={mark}".encode()
    spared = _warm.pid if _warm else 0
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0") and int(path.parent.name) != spared:
                os.kill(int(path.parent.name), signal.SIGKILL)


def _relay(task: Task, events: int, life: int, status: int, log: Path) -> int:
    """Pass progress on until the reaper is gone; end the job when the task is no longer wanted. Keeps its log small."""
    progress = Progress(task)
    sources = [status, events]
    told = b""
    while True:
        ready = select.select(sources, [], [], POLL_SECONDS)[0]
        if events in ready and not progress.read(events):
            sources.remove(events)
        if status in ready:
            said = os.read(status, 64)
            told += said
            if not said:
                logs.bound(log)
                progress.flush()
                return _code(told)
        logs.bound(log)
        if not task.ended and not task.wanted():
            task.ended = True
            with contextlib.suppress(BrokenPipeError):
                os.write(life, b"K")
        progress.flush(RELAY_SECONDS)


def _code(told: bytes) -> int:
    """The exit code that the reaper told, or why it could not."""
    if not told:
        return NEVER_BEGAN
    return int(told.removeprefix(reaper.FORKED) or REAPER_KILLED)


class Progress:
    """The job's progress lines, passed on in batches."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.partial = b""
        self.lines: list[Any] = []
        self.told = 0.0

    def read(self, events: int) -> bool:
        """Take what is there; False at the end."""
        data = os.read(events, 1 << 16)
        *lines, self.partial = (self.partial + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # torn by a full pipe
                self.lines.append(json.loads(line))
        return bool(data)

    def flush(self, every: float = 0.0) -> None:
        if self.lines and time.monotonic() - self.told >= every:
            self.task.tell(lines=self.lines[-MOST_LINES:])
            self.lines = []
            self.told = time.monotonic()


def _outcome(order: Order, job: Path, code: int, *, unwanted: bool) -> Outcome:
    """Read what the job has left; its exit code alone is not believed."""
    with contextlib.suppress(OSError, ValueError):
        return _left(json.loads((job / "result.json").read_text()))
    if unwanted:
        return {"unwanted": True}
    with contextlib.suppress(OSError, ValueError):
        error = json.loads((job / "error.json").read_text())
        if error["error"] == "StorageLow":
            return _no_room(order)  # with the figures
        if error["error"] == "JobFailed" and (low := _low(order)) is not None:
            return low  # what a library says of a full disk is often something else: it is tried with room
        return _crashed(order, "MemoryError") if error["error"] == "MemoryError" else {"error": error}
    return _ended(order, code)


def _ended(order: Order, code: int) -> Outcome:
    """It left nothing: what its end says."""
    if code == REAPER_KILLED:  # and the job with it: not the job's fault
        _end_orphans(order["environment"][MARK])
        return {"crash": "the end of its reaper", "crashes": 0}
    if code == NEVER_BEGAN:
        return _crashed(order, "the end of the process that it is forked from")
    if code == reaper.NO_ROOM:
        return _no_room(order)
    low = _low(order)
    if low is not None and (code < SIGNALLED or code == SIGNALLED + signal.SIGBUS):  # SIGBUS: a mapped file's page
        return low
    if code > SIGNALLED:
        return _crashed(order, _signal(code - SIGNALLED))
    message = f"the job ended with exit code {code} and left no result"
    return {"error": {"error": "JobFailed", "message": message, "field": "", "hint": ""}}


def _left(found: dict[str, Any]) -> Outcome:
    return {
        "result": found["result"],
        "seconds": found["seconds"],
        "log": found["log"],
        "resumed": found.get("resumed"),
        "artifacts": found.get("artifacts", []),
    }


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _crashed(order: Order, what: str) -> Outcome:
    """Count it: the count outlives tokens and attempts, so that a poison job stops.

    A job that has kept more of its work than at the crash before is none: it is counted anew.
    """
    path, kept = Path(order["folder"]) / "crashes", _kept_steps(order)
    with contextlib.suppress(OSError, ValueError):
        if int(path.read_text().splitlines()[-1].rpartition(" ")[2]) < kept:
            path.unlink()
    with path.open("a") as crashes:
        crashes.write(f"{what} {kept}\n")
    return {"crash": what, "crashes": len(path.read_text().splitlines())}


def _kept_steps(order: Order) -> int:
    """The last step of which there is a checkpoint."""
    folder = Path(order.get("checkpoints") or order["folder"])
    steps = [int(path.name) for path in folder.glob("*/*") if path.name.isdigit()]
    return max(steps, default=0)
