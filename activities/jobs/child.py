"""A job: `python -m activities.jobs.child FOLDER [EVENTS_FD]` calls one function of the heavy place.

`FOLDER/request.json` says which. It leaves `result.json` (whole or not at all) or `error.json`, and its
traceback on stderr, which is the attempt's log. A folder can be run again by hand.
"""

import importlib
import json
import os
import re
import signal
import sys
import time
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from activities.jobs import gpu, lent, surroundings, threads
from activities.jobs.checkpoints import Stopped
from activities.jobs.context import BY_HAND, CHECKPOINT_SECONDS, NO_EVENTS, ThisJob
from activities.jobs.gang import Gang, RankEnded, alone, checkpoints
from activities.jobs.reaper import NO_ROOM, ROOM
from everloop import disk, streams
from everloop.artifacts import FLOOR_BYTES, Artifacts
from everloop.errors import EverloopError, Invalid, JobFailed, NotFound, OutOfMemory, StorageLow, text, unknown
from everloop.records import Lease

OURS = str(Path(__file__).parent)
"""Of the stages' own code, only what runs them is never to blame."""
STOPPED = 128 + signal.SIGTERM
"""Exit code of a job that was told to end and has kept what it had learned: as if the signal had ended it."""
FUNCTION = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")


def main(folder: Path, events: int = NO_EVENTS) -> int:
    """Run the request in *folder*. Leaves result.json or error.json; never raises for what the function does.

    The exit code: 0, `NO_ROOM` when the disk is so full that neither could be written, or `STOPPED`.
    """
    try:
        return _run(folder, events)
    except Exception as error:
        if not disk.is_full(error):
            raise
        traceback.print_exc()
        (folder / ROOM).unlink(missing_ok=True)
        return NO_ROOM


def _run(folder: Path, events: int) -> int:
    order = json.loads((folder / "request.json").read_text())
    started = time.monotonic()
    job: ThisJob | None = None
    try:
        if code := order["request"].get("code"):
            kept = Artifacts(order["artifacts"], order.get("floor_bytes", FLOOR_BYTES))
            surroundings.enter(code, kept, folder, events, f"{order['root']}.{order['function'].split('.')[0]}")
        job = _job(folder, order, events)
        threads.allow(job.cores)
        if "lease" in order:
            gpu.check(job.member)
            job.limit()
        with streams.guest():
            result = _call(find(order["root"], order["function"]), order["request"], job)
        if job.gave_up():
            return STOPPED
    except Stopped:
        return STOPPED  # as somebody asked for: neither a result nor an error
    except BaseException as error:  # noqa: BLE001  # SystemExit of a library is a failed job too
        _log(error)
        _leave(folder / "error.json", {**_told(error), "artifacts": _kept(job)})
        return 0
    left = {"result": result, "digest": order["digest"], "log": order["log"], "seconds": time.monotonic() - started}
    left["resumed"] = job.resumed.model_dump(mode="json") if job.resumed else None
    left["artifacts"] = _kept(job)
    _leave(folder / "result.json", left)
    job.ended()
    return 0


def _job(folder: Path, order: dict[str, Any], events: int) -> ThisJob:
    floor = order.get("floor_bytes", FLOOR_BYTES)
    gang = Gang(**order["gang"]) if order.get("gang") else alone()
    kept = Path(order.get("checkpoints") or folder / "checkpoints")
    predictions = Path(order["predictions_dir"])
    if url := order.get("lent"):
        predictions = folder / "scratch" / "lent"
        lent.borrow(url, predictions)
    return ThisJob(
        Artifacts(order["artifacts"], floor),
        predictions,
        folder / "scratch",
        events,
        checkpoints(kept, order.get("token", 0), floor, gang, order.get("depot", "")),
        checkpoint_seconds=order.get("checkpoint_seconds", CHECKPOINT_SECONDS),
        lease=Lease.model_validate(order["lease"]) if "lease" in order else BY_HAND,
        gang=gang,
    )


def _kept(job: ThisJob | None) -> list[dict[str, Any]]:
    """The files that it kept for people."""
    return [blob.model_dump(mode="json") for blob in job.logged] if job else []


def find(root: str, function: str) -> Callable[..., Any]:
    """The function `data.snapshot` below *root*. Raises `NotFound`."""
    if not FUNCTION.fullmatch(function):
        raise NotFound(f"{function!r} is not the name of a job", field="function", hint="it is `<module>.<function>`")
    module, name = function.split(".")
    try:
        found = getattr(importlib.import_module(f"{root}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name != f"{root}.{module}":
            raise
        raise NotFound(f"there is no {root}.{module}", field="function") from None
    except AttributeError:
        raise NotFound(f"{root}.{module} has no function {name}", field="function") from None
    return typing.cast("Callable[..., Any]", found)


def _call(function: Callable[..., Any], request: dict[str, Any], job: ThisJob) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    returns: type[BaseModel] = hints.pop("return")
    takes: type[BaseModel] = next(iter(hints.values()))
    try:
        result = function(takes.model_validate(request), job)
    except RankEnded:
        return {}
    if not isinstance(result, returns):
        raise JobFailed(f"{function.__name__} returned {type(result).__name__}, not {returns.__name__}")
    return result.model_dump(mode="json")


def _log(error: BaseException) -> None:
    """What went wrong, into the log. Of a wrong request or wrong data people need no stack: it is not our code's."""
    if isinstance(error, Invalid):
        print(f"{type(error).__name__}: {error}", *([f"  {error.hint}"] if error.hint else []), sep="\n")  # noqa: T201
    else:
        traceback.print_exc()


def _told(error: BaseException) -> dict[str, str]:
    """The error as the supervisor passes it on; one line, the rest is in the log."""
    if not isinstance(error, StorageLow) and disk.is_full(error):  # whatever a library made of it
        error = disk.elsewhere(error)
    if _out_of_memory(error) and not isinstance(error, EverloopError):
        said = (text(error).splitlines() or [""])[0][:500]
        return {"error": OutOfMemory.__name__, "message": said or type(error).__name__, "field": "", "hint": ""}
    told = error if isinstance(error, EverloopError) else unknown(error)
    hint = told.hint if told is error else "; ".join(filter(None, [_raised_at(error), told.hint]))
    return {"error": type(told).__name__, "message": str(told), "field": told.field, "hint": hint}


def _raised_at(error: BaseException) -> str:
    """The line that raised it: the last one that is no library's, as people look for their own. Else the last."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith((sys.prefix, sys.base_prefix, "<", OURS))]
    if not frames:
        return ""
    frame = (theirs or list(frames))[-1]
    code = f": {frame.line}" if frame.line else ""
    return f"raised at {Path(frame.filename).name}, line {frame.lineno}, in {frame.name}{code}"


def _out_of_memory(error: BaseException) -> bool:
    """As Python says it, or torch, DuckDB and C++ in their own ways."""
    named = type(error).__name__ in ("OutOfMemoryError", "OutOfMemoryException")
    return isinstance(error, MemoryError) or named or "bad_alloc" in text(error)


def _leave(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, and on the disk before anybody is told."""
    staged = path.with_suffix(".new")
    with staged.open("w") as target:
        json.dump(content, target)
        target.flush()
        os.fsync(target.fileno())
    staged.replace(path)


if __name__ == "__main__":
    streams.last()
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else NO_EVENTS))  # noqa: PLR2004
