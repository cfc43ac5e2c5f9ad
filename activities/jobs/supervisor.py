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
from typing import Any

from distributed import get_worker
from distributed.core import Status

from activities.jobs import ended, home, reaper, threads, warming
from activities.jobs.ended import NEVER_BEGAN, REAPER_KILLED
from activities.jobs.mark import BLANK, LEASE, MARK
from activities.jobs.memory import MIB, SHRINKS, Memory, may_shrink, share
from activities.jobs.numbered import numbered
from activities.jobs.order import Order, Outcome
from activities.jobs.progress import Progress
from activities.jobs.slot import Locks, Slot
from everloop import disk, engine, logs
from everloop import settings as configuration
from everloop.errors import OutOfMemory

POLL_SECONDS = 0.1
RELAY_SECONDS = 0.2
SHRUNK = "shrunk"
"""In an activity's folder: a line for each time that it ran out of memory."""
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONSAFEPATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES")
"""All that a job inherits: no database address, no Temporal address, no keys."""
PASSED_ON_FOR = re.compile(
    r"PIP_|(SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|(HTTPS?|ALL|NO)_PROXY)$", re.IGNORECASE
)
"""And what pip needs to find what a user's code requires; it is taken away before that code runs."""
PASSED_ON_FOR_ARTIFACTS = re.compile(r"(AWS|FSSPEC|GOOGLE|AZURE)_")
"""And where artifacts are not files: the store's address and the key of its bucket."""
ABOUT_THE_STAGE = ("function", "root", "request", "digest", "token", "lease", "checkpoints", "checkpoint_seconds")
TOLD = (*ABOUT_THE_STAGE, "depot", "gang", "lent", "log", "artifacts", "predictions_dir", "floor_bytes")
"""Of an order, what the job reads."""


def supervise(order: Order) -> Outcome:
    """Run the job of *order* to its end on this slot, or return the result that an earlier attempt has left.

    Waits for the slot's lock first: the child of a lost attempt may still be ending.
    """
    order = home.at_home(order, configuration.load().data_dir)
    task = Task(order["topic"], home.SentLog(order) if order.get("away") else None)
    try:
        return _supervised(order, task)
    finally:
        task.send_log(whole=True)


def _supervised(order: Order, task: "Task") -> Outcome:
    slot = _slot(order)
    with slot.held(task.wanted, whole=order.get("whole", False)) as locks:
        if locks is None or not slot.others_gone(order.get("live", ()), task.wanted):
            return {"unwanted": True}
        kept = _kept(order)
        if kept is not None:
            return kept
        slot.end_orphans()
        shutil.rmtree(ended.job_folder(order) / "scratch", ignore_errors=True)  # it may be what fills the disk
        if (low := ended.low(order)) is not None:
            return low
        try:
            return _attempt(order, task, locks)
        except OSError as error:
            if disk.is_full(error):
                return ended.no_room(order)
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
            outcome = ended.outcome(order, job, code, memory, unwanted=task.ended) | {"ended_at": time.time()}
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


class Task:
    """The Dask task that runs here, as its worker sees it."""

    def __init__(self, topic: str, log: home.SentLog | None = None) -> None:
        """*log*: of a job whose log nobody else can read where it is written."""
        self.worker = get_worker()
        self._log = log
        self.key = self.worker.get_current_task()
        self.topic = topic
        self.ended = False
        """The job was told to end."""

    def wanted(self) -> bool:
        """False once the key was cancelled, its client has died, the scheduler was lost or this worker closes."""
        # Internals of distributed, pinned by tests/unit/test_jobs_processes.py.
        state = self.worker.state.tasks.get(self.key)
        alive = self.worker.status in (Status.running, Status.paused)
        return state is not None and state.state != "cancelled" and alive

    def tell(self, **event: Any) -> None:  # noqa: ANN401
        self.worker.log_event(self.topic, {"key": self.key} | event)

    def send_log(self, *, whole: bool = False) -> None:
        """What is new in the log, a piece of it or all."""
        if self._log is not None and (whole or self._log.due()):
            for piece in self._log.pieces(whole=whole):
                self.tell(log=piece)


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
                return ended.left(found) | {"kept": True}
    return None


def _prepare(order: Order, limit: int) -> Path:
    """The folder of this token, with the request in it and nothing of a former attempt. *limit*: in bytes."""
    job = ended.job_folder(order)
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
            warm = warming.warm_up(order["root"], _environment(order))
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


def _environment(order: Order) -> dict[str, str]:
    ours = engine.environment()
    single = dict.fromkeys(threads.THREADS, "1")  # a job sets its lease's by call: activities/jobs/threads.py
    passed_on = {name: value for name, value in ours.items() if name in PASSED_ON or PASSED_ON_FOR.match(name)}
    if not order["artifacts"].startswith("/"):
        passed_on |= {name: value for name, value in ours.items() if PASSED_ON_FOR_ARTIFACTS.match(name)}
    return passed_on | single | {LEASE: BLANK} | order["environment"]


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
        task.send_log()


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
