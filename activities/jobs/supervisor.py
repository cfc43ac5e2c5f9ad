"""The Dask task: start a job under a reaper, relay its progress, end it when it is no longer wanted.

The task holds nothing: whatever happens to this process, the reaper ends the job (lifeline), the slot's lock
keeps the next attempt waiting until the old one is gone, and a finished result is found again on disk.

    scratch/jobs/<run id>/<activity id>/crashes, shrunk    a line for each
                                       /<token>/request.json, result.json or error.json, scratch/
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from distributed import get_worker
from distributed.core import Status

from activities.jobs import reaper, threads, warming
from activities.jobs.mark import BLANK, LEASE, MARK
from activities.jobs.memory import HINT, MIB, SHRINKS, Memory, may_shrink, share
from activities.jobs.numbered import numbered
from activities.jobs.progress import Progress
from activities.jobs.slot import Locks, Slot
from everloop import disk, engine, logs
from everloop.errors import JobFailed, OutOfMemory, StorageLow, TrainerFailed

POLL_SECONDS = 0.1
RELAY_SECONDS = 0.2
SIGNALLED = 128  # the reaper's exit code for a killed job is this plus the signal
REAPER_KILLED, NEVER_BEGAN = -1, -2
SHRUNK = "shrunk"
"""In an activity's folder: a line for each time that it ran out of memory."""
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONSAFEPATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES")
"""All that a job inherits: no database address, no Temporal address, no keys."""
PASSED_ON_FOR = re.compile(
    r"PIP_|(SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|(HTTPS?|ALL|NO)_PROXY)$", re.IGNORECASE
)
"""And what pip needs to find what a user's code requires; it is taken away before that code runs."""
ABOUT_THE_STAGE = ("function", "root", "request", "digest", "token", "lease", "checkpoints", "checkpoint_seconds")
TOLD = (*ABOUT_THE_STAGE, "gang", "log", "artifacts", "predictions_dir", "floor_bytes")
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
    rank: int
    device: str
    live: tuple[int, ...]
    """Tokens of the leases that are live on the device."""
    whole: bool
    """It has the whole device, a GPU, to itself."""
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
    memory_bytes: int
    """What the job's processes may hold together; 0: this machine's share of a slot, one of `slots`."""
    slots: int
    gang: NotRequired[dict[str, Any]]
    """Of a rank among several: fields of `gang.Gang`."""


class Outcome(TypedDict, total=False):
    """How it ended: exactly one of `result`, `error`, `crash`, `unwanted`."""

    result: dict[str, Any]
    error: dict[str, str]
    """`error` (class name), `message`, `field`, `hint`."""
    crash: str
    """What killed the job: `SIGSEGV`."""
    unwanted: bool
    crashes: int
    ended_at: float
    """By this machine's clock: in a gang the first one that ended badly is to blame."""
    seconds: float
    log: str
    kept: bool
    resumed: dict[str, Any] | None
    """`records.Resumed`."""
    artifacts: list[dict[str, Any]]
    used: dict[str, int]
    """`Memory.measured`."""


def supervise(order: Order) -> Outcome:
    """Run the job of *order* to its end on this slot, or return the result that an earlier attempt has left.

    Waits for the slot's lock first: the child of a lost attempt may still be ending.
    """
    task = Task(order["topic"])
    slot = _slot(order)
    with slot.held(task.wanted, whole=order.get("whole", False)) as locks:
        if locks is None or not slot.others_gone(order.get("live", ()), task.wanted):
            return {"unwanted": True}
        kept = _kept(order)
        if kept is not None:
            return kept
        slot.end_orphans()
        shutil.rmtree(_job_folder(order) / "scratch", ignore_errors=True)  # it may be what fills the disk
        low = _low(order)
        if low is not None:
            return low
        try:
            return _attempt(order, task, locks)
        except OSError as error:
            if disk.is_full(error):
                return _no_room(order)
            raise


def _slot(order: Order) -> Slot:
    return Slot(Path(order["slots_dir"]), order["environment"][MARK], order["token"], order.get("rank", 0))


def _attempt(order: Order, task: "Task", locks: Locks) -> Outcome:
    while True:
        memory = Memory(order.get("memory_bytes") or share(order.get("slots", 1)))
        job = _prepare(order, memory.limit)
        try:
            code = _run(order, task, job, locks, memory)
            if code == REAPER_KILLED:  # whatever of the job is left has nobody above it, and may hold the slot's lock
                _slot(order).end_orphans()
            outcome = _outcome(order, job, code, memory, unwanted=task.ended) | {"ended_at": time.time()}
            outcome["used"] = memory.measured()
        finally:
            warming.cool_down_later()
            shutil.rmtree(job / "scratch", ignore_errors=True)
        if task.ended or order.get("gang") or not _again_with_less(order, job, outcome):
            return outcome


def _again_with_less(order: Order, job: Path, outcome: Outcome) -> bool:
    """Has it run out of memory, and said that it can do with less? It is told how often by `shrink`."""
    if outcome.get("error", {}).get("error") != OutOfMemory.__name__:
        return False
    with (Path(order["folder"]) / SHRUNK).open("a") as shrunk:
        shrunk.write(outcome["error"]["message"] + "\n")
    times = _shrunk(order)
    again = may_shrink(job, times)
    if not again and times > 1:
        outcome["error"]["message"] += f"; tries with less: {times - 1}"
    with (Path(order["logs_dir"]) / order["log"]).open("a") as log:
        log.write(outcome["error"]["message"] + ("; it is run again with less\n" if again else "\n"))
    return again


def _shrunk(order: Order) -> int:
    """How often this activity has run out of memory, over all its attempts and tokens."""
    with contextlib.suppress(OSError):
        return len((Path(order["folder"]) / SHRUNK).read_text().splitlines())
    return 0


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


def _kept(order: Order) -> Outcome | None:
    """The result of an attempt with this token or an older one, for the same question."""
    folder = Path(order["folder"])
    if order.get("gang", {}).get("rank"):  # rank 0's result is the gang's: without it all begin again
        return None
    for token, of_token in numbered(folder) if folder.exists() else []:
        if token > order["token"]:
            continue
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((of_token / "result.json").read_text())
            if found["digest"] == order["digest"]:
                return _left(found) | {"kept": True}
    return None


def _prepare(order: Order, limit: int) -> Path:
    """The folder of this token, with the request in it and nothing of a former attempt. *limit*: in bytes."""
    job = _job_folder(order)
    shutil.rmtree(job / "scratch", ignore_errors=True)
    (job / "scratch").mkdir(parents=True)
    for left in ("error.json", "result.json", SHRINKS):
        (job / left).unlink(missing_ok=True)
    (Path(order["logs_dir"]) / order["log"]).parent.mkdir(parents=True, exist_ok=True)
    (job / reaper.ROOM).touch()
    asked = {name: value for name, value in order.items() if name in TOLD}
    if "lease" in asked:
        members = [{"memory_mib": limit // MIB} | _said(member) for member in order["lease"]["members"]]
        asked["lease"] = order["lease"] | {"members": members}
    (job / "request.json").write_text(json.dumps(asked | {"shrink": _shrunk(order)}))
    return job


def _said(member: dict[str, Any]) -> dict[str, Any]:
    """A member of a lease without a memory of 0, which says nothing."""
    return {name: value for name, value in member.items() if name != "memory_mib" or value}


def _run(order: Order, task: Task, job: Path, locks: Locks, memory: Memory) -> int:
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
    start["lease"] = _slot(order).text
    start["modules"] = [f"{order['root']}.{name}" for name in order["request"].get("preload", ())]
    try:
        try:
            warm = warming.warm_up(order["root"], _environment(order["environment"]))
            warm.send(start, reaper.Pipes(life_r, events_w, locks.part, log, status_w, locks.device))
        finally:
            for theirs in (life_r, events_w, log, status_w):
                os.close(theirs)
        return _relay(task, events_r, life_w, status_r, log=Path(order["logs_dir"]) / order["log"], memory=memory)
    finally:
        os.close(life_w)  # whatever happened here, the job ends with us
        while os.read(status_r, 64):
            pass
        os.close(status_r)
        os.close(events_r)
        if task.ended:
            task.tell(gone=True)


def _environment(extra: dict[str, str]) -> dict[str, str]:
    ours = engine.environment()
    single = dict.fromkeys(threads.THREADS, "1")  # a job sets its lease's by call: activities/jobs/threads.py
    passed_on = {name: value for name, value in ours.items() if name in PASSED_ON or PASSED_ON_FOR.match(name)}
    return passed_on | single | {LEASE: BLANK} | extra


def _relay(task: Task, events: int, life: int, status: int, *, log: Path, memory: Memory) -> int:
    """Pass progress on until the reaper is gone; end the job when the task is no longer wanted, or over its memory.

    Keeps its log small.
    """
    progress = Progress(task.tell)
    sources = [status, events]
    told = b""
    while True:
        ready = select.select(sources, [], [], POLL_SECONDS)[0]
        if events in ready and not progress.read(events):
            sources.remove(events)
        if status in ready:
            said = os.read(status, 64)
            told += said
            memory.reaper = _reaper(told)
            if not said:
                logs.bound(log)
                progress.flush()
                return _code(told)
        logs.bound(log)
        if memory.look():
            _end(life, reaper.NOW)
        if not task.ended and not task.wanted():
            task.ended = True
            _end(life, _farewell(task.key))
        _go_on(memory.reaper)
        progress.flush(RELAY_SECONDS)


def _go_on(pid: int) -> None:
    """A reaper that somebody has stopped (the job can) would hold the slot for ever: without effect on another."""
    if pid:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)


_graces: dict[str, float] = {}
"""Seconds of the jobs that are given more than the usual grace, by the keys of their tasks."""


def allow(key: str, seconds: float) -> None:
    """The job of the task *key*, which is cancelled next, may take *seconds* to keep what it has learned."""
    _graces[key] = seconds


AT_ONCE = -1.0
"""As a grace: none. Of a gang without one of its ranks nothing can be kept any more."""


def _farewell(key: str) -> bytes:
    seconds = _graces.pop(key, 0.0)
    if seconds == AT_ONCE:
        return reaper.NOW
    return reaper.LONGER + b"%d" % int(seconds * 1000) if seconds else b"K"


def _end(life: int, how: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(life, how)


def _reaper(told: bytes) -> int:
    """The reaper's pid, 0 before it has said it."""
    pid, said, _ = told.removeprefix(b"+").partition(b";")
    return int(pid) if said else 0


def _code(told: bytes) -> int:
    """The exit code that the reaper told, or why it could not."""
    if not told:
        return NEVER_BEGAN
    return int(told.partition(b";")[2] or REAPER_KILLED)


def _outcome(order: Order, job: Path, code: int, memory: Memory, *, unwanted: bool) -> Outcome:
    """Read what the job has left; its exit code alone is not believed."""
    with contextlib.suppress(OSError, ValueError):
        return _left(json.loads((job / "result.json").read_text()))
    if unwanted:
        return {"unwanted": True}
    lacked = _lacked(code, memory)
    if lacked is not None:
        return _out_of_memory(lacked, memory)
    with contextlib.suppress(OSError, ValueError):
        told = json.loads((job / "error.json").read_text())
        kept = told.pop("artifacts", [])
        return {**_failed(order, told, memory), "artifacts": kept}
    return _ended(order, code)


def _failed(order: Order, error: dict[str, str], memory: Memory) -> Outcome:
    """What the job has written down, with the figures that only we know."""
    if error["error"] == StorageLow.__name__:
        return _low(order) or {"error": error}  # there is room where we look: it was another disk
    if error["error"] == OutOfMemory.__name__:
        return _out_of_memory(error["message"], memory)
    if error["error"] == JobFailed.__name__ and (low := _low(order)) is not None:
        return low  # what a library says of a full disk is often something else: it is tried with room
    return {"error": error}


def _lacked(code: int, memory: Memory) -> str | None:
    """What is to be said of a job that was ended for want of memory; None when it was not."""
    if memory.over:
        return ""
    by_kernel = code == SIGNALLED + signal.SIGKILL and memory.killed_by_kernel()
    return "the kernel ended it, since the machine had none left" if by_kernel else None


def _out_of_memory(what: str, memory: Memory) -> Outcome:
    why = f" ({what})" if what else ""
    message = f"the job ran out of memory{why}: {memory.figures()}"
    return {"error": {"error": OutOfMemory.__name__, "message": message, "field": "", "hint": HINT}}


def _ended(order: Order, code: int) -> Outcome:
    """It left nothing: what its end says."""
    if code == REAPER_KILLED:  # and the job with it: who does that once will do it again, if it was the job
        return _crashed(order, "the end of its reaper")
    if code == NEVER_BEGAN:
        return _crashed(order, "the end of the process that it is forked from")
    if code == reaper.NO_ROOM and not (_job_folder(order) / reaper.ROOM).exists():
        return _no_room(order)
    low = _low(order)
    if low is not None and (code < SIGNALLED or code == SIGNALLED + signal.SIGBUS):  # SIGBUS: a mapped file's page
        return low
    if SIGNALLED < code <= SIGNALLED + signal.SIGRTMAX:
        return _crashed(order, _signal(code - SIGNALLED))
    return {"error": _gone(code, of_a_user=bool(order["request"].get("code")))}


def _gone(code: int, *, of_a_user: bool) -> dict[str, str]:
    """The error of a job that ended by itself, with *code*, and has left nothing."""
    if not of_a_user:
        message = f"the job ended with exit code {code} and left no result"
        return {"error": JobFailed.__name__, "message": message, "field": "", "hint": ""}
    message = f"the trainer ended the process with exit code {code} and left no result"
    hint = "it must return what it has learned, or raise: without os._exit, in it or in a library that it calls"
    return {"error": TrainerFailed.__name__, "message": message, "field": "trainer", "hint": hint}


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
    steps = [0]
    with contextlib.suppress(OSError):  # nothing was kept, or it is gone since
        for _, of_token in numbered(folder):
            steps += [step for step, _ in numbered(of_token)]
    return max(steps)
