"""How a job has ended, by what it has left and by its exit code; what stands in its place when that is nothing."""

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

from activities.jobs import reaper
from activities.jobs.depot import kept_in
from activities.jobs.memory import HINT, Memory
from activities.jobs.order import Order, Outcome
from everloop import disk
from everloop.errors import JobFailed, OutOfMemory, StorageLow, TrainerFailed

SIGNALLED = 128  # the reaper's exit code for a killed job is this plus the signal
REAPER_KILLED, NEVER_BEGAN = -1, -2


def outcome(order: Order, job: Path, code: int, memory: Memory, *, unwanted: bool) -> Outcome:
    """Read what the job has left; its exit code alone is not believed."""
    with contextlib.suppress(OSError, ValueError):
        return left(json.loads((job / "result.json").read_text()))
    if unwanted:
        return {"unwanted": True}
    lacked = _lacked(code, memory)
    if lacked is not None:
        return _out_of_memory(lacked, memory)
    with contextlib.suppress(OSError, ValueError):
        told = json.loads((job / "error.json").read_text())
        kept = told.pop("artifacts", [])
        return {**_failed(order, told, memory), "artifacts": kept}
    return of_nothing(order, code)


def _failed(order: Order, error: dict[str, str], memory: Memory) -> Outcome:
    """What the job has written down, with the figures that only we know."""
    if error["error"] == StorageLow.__name__:
        return low(order) or {"error": error}  # there is room where we look: it was another disk
    if error["error"] == OutOfMemory.__name__:
        return _out_of_memory(error["message"], memory)
    if error["error"] == JobFailed.__name__ and (found := low(order)) is not None:
        return found  # what a library says of a full disk is often something else: it is tried with room
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


def of_nothing(order: Order, code: int) -> Outcome:
    """It left nothing: what its end says."""
    if code == REAPER_KILLED:  # and the job with it: who does that once will do it again, if it was the job
        return crashed(order, "the end of its reaper")
    if code == NEVER_BEGAN:
        return crashed(order, "the end of the process that it is forked from")
    if code == reaper.NO_ROOM and not (job_folder(order) / reaper.ROOM).exists():
        return no_room(order)
    found = low(order)
    if found is not None and (code < SIGNALLED or code == SIGNALLED + signal.SIGBUS):  # SIGBUS: a mapped file's page
        return found
    if SIGNALLED < code <= SIGNALLED + signal.SIGRTMAX:
        return crashed(order, _signal(code - SIGNALLED))
    return {"error": _gone(code, of_a_user=bool(order["request"].get("code")))}


def _gone(code: int, *, of_a_user: bool) -> dict[str, str]:
    """The error of a job that ended by itself, with *code*, and has left nothing."""
    if not of_a_user:
        message = f"the job ended with exit code {code} and left no result"
        return {"error": JobFailed.__name__, "message": message, "field": "", "hint": ""}
    message = f"the trainer ended the process with exit code {code} and left no result"
    hint = "it must return what it has learned, or raise: without os._exit, in it or in a library that it calls"
    return {"error": TrainerFailed.__name__, "message": message, "field": "trainer", "hint": hint}


def left(found: dict[str, Any]) -> Outcome:
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


def crashed(order: Order, what: str) -> Outcome:
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
    with contextlib.suppress(OSError):  # it cannot be asked
        return max([0, *(step for _, step in kept_in(folder, order.get("depot", "")).places())])
    return 0


def low(order: Order) -> Outcome | None:
    """How a job ends that finds too little room, or None where there is enough."""
    found = disk.low(_written(order), order.get("floor_bytes", 0))
    return None if found is None else _told(found)


def no_room(order: Order) -> Outcome:
    return low(order) or _told(disk.full(Path(order["folder"]), order.get("floor_bytes", 0)))


def _told(error: StorageLow) -> Outcome:
    return {"error": {"error": "StorageLow", "message": str(error), "field": "", "hint": error.hint}}


def _written(order: Order) -> list[Path]:
    local = [Path(order["artifacts"])] if order["artifacts"].startswith("/") else []
    return [Path(order["folder"]), Path(order["logs_dir"]), *local]


def job_folder(order: Order) -> Path:
    return Path(order["folder"]) / str(order["token"])
