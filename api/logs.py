"""Follow a lifecycle's logs: one piece after the other, across its stages and their attempts.

Each question names the place where the last answer ended. An answer comes as soon as there is something to say, and
is small: who was cut off asks again, and neither misses a line nor gets one twice.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool

from api import journal
from api.dependencies import Here, Parts
from everloop import logs as files
from everloop.errors import Invalid
from everloop.records import Wait
from everloop.store import LifecycleRow, StageRow

router = APIRouter(tags=["journal"])

PIECE_BYTES = 256 << 10
"""Of one answer, all logs together."""
LOOK_SECONDS = 0.25
PATIENCE_SECONDS = 3.0
"""How long a question stays open while nothing is written: less than the API takes to stop."""


class LogPiece(BaseModel):
    """Lines of one attempt's log."""

    stage: str
    attempt: int
    text: str


class LogPieces(BaseModel):
    """What was written since the question's cursor."""

    items: list[LogPiece]
    cursor: str
    """For the next question. Opaque."""
    status: str
    """The lifecycle's."""
    wait: str
    """One sentence when it waits for something."""
    over: bool
    """It waits for a person or has ended, and everything that was written has been told."""


@dataclass(frozen=True)
class Log:
    """The log of one attempt."""

    name: str
    """Below the folder of logs: `jobs/<run>/<stage>.<n>/<attempt>.log`."""
    path: Path
    stage: str
    attempt: int


@router.get("/lifecycles/{id:path}/logs/follow")
async def follow(
    id: str,  # noqa: A002
    here: Here,
    cursor: Annotated[str, Query(max_length=500)] = "",
    stage: Annotated[str, Query(max_length=100)] = "",
    tail: Annotated[int | None, Query(ge=1, le=10_000)] = None,
) -> LogPieces:
    """What the jobs have written since *cursor*; waits a moment when that is nothing yet.

    Without a cursor it begins with the first log, or with the last *tail* lines of the newest one. *stage*: only
    that stage's. Ask again with the answer's cursor until `over`.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = await run_in_threadpool(_since, here, id, cursor, stage, tail)
        if found.items or found.over or time.monotonic() >= deadline:
            return found
        cursor, tail = found.cursor, None if found.cursor else tail
        await asyncio.sleep(LOOK_SECONDS)


def _since(here: Parts, id: str, cursor: str, stage: str, tail: int | None) -> LogPieces:  # noqa: A002
    with here.store.read() as session:
        row = journal.lifecycle_row(session, id)
        status, wait = row.status, _wait(row)  # before the logs are listed: what it wrote before it waited is there
        found = logs_of(session, row, here.settings.logs_dir, stage)
    name, start = _begin(found, cursor, tail)
    items, name, start = _read(found, name, start, writing=status == "running")
    return LogPieces(
        items=items, cursor=f"{name}:{start}" if name else "", status=status, wait=wait,
        over=not items and status != "running",
    )  # fmt: skip


def logs_of(session: Session, row: LifecycleRow, logs_dir: Path, stage: str = "") -> list[Log]:
    """The logs of a lifecycle that are there, in the order in which they were begun."""
    found: list[Log] = []
    tries: dict[str, int] = {}
    for each in journal.stage_rows(session, row.id):
        tries[each.stage] = tries.get(each.stage, 0) + 1
        if not stage or each.stage == stage:
            found += _attempts(logs_dir, _folder(row, each, tries[each.stage]), each.stage)
    return found


def tail(session: Session, row: LifecycleRow, logs_dir: Path) -> LogPiece | None:
    """The last lines of the newest log, or None while there is none."""
    found = logs_of(session, row, logs_dir)
    if not found:
        return None
    newest = found[-1]
    lines = journal.tail_of(newest.path, files.LAST_WORDS, journal.WIDTH)
    return LogPiece(stage=newest.stage, attempt=newest.attempt, text="\n".join(lines))


def _folder(row: LifecycleRow, stage: StageRow, tried: int) -> str:
    """Where the attempts of one start of a stage write. After a Reset its record names a folder of the run before."""
    named = str(stage.ran.get("log") or "").rpartition("/")[0] or str(stage.error.get("log") or "")
    return named or f"jobs/{row.run_id}/{stage.stage}.{tried}"


def _attempts(logs_dir: Path, folder: str, stage: str) -> list[Log]:
    at = journal.below(logs_dir, folder)
    if at is None or not at.is_dir():
        return []
    numbers = sorted(int(path.stem) for path in at.glob("*.log") if path.stem.isdecimal())
    names = ((number, f"{folder}/{number}.log") for number in numbers)
    return [
        Log(name, path, stage, number) for number, name in names if (path := journal.below(logs_dir, name)) is not None
    ]


def _begin(found: list[Log], cursor: str, tail: int | None) -> tuple[str, int]:
    """The log and the byte to read from."""
    if cursor:
        name, _, start = cursor.rpartition(":")
        if not name or not start.isdecimal() or len(start) > 18:  # noqa: PLR2004  # digits of an offset
            raise Invalid("this is no cursor of an earlier answer", field="cursor", hint="leave it out to begin anew")
        # One that is gone (too old, or of the run before a Reset): on with what there is.
        return (name, int(start)) if any(log.name == name for log in found) or not found else (found[0].name, 0)
    if not found:
        return "", 0
    if tail is None:
        return found[0].name, 0
    return found[-1].name, _before_the_last(found[-1].path, tail)


def _before_the_last(path: Path, lines: int) -> int:
    """Where the last *lines* lines begin, as far as they fit into one answer."""
    try:
        size = path.stat().st_size
        data, end = files.piece(path, max(0, size - PIECE_BYTES), PIECE_BYTES)
    except OSError:
        return 0
    last = b"".join(data.splitlines(keepends=True)[-lines:])
    return end - len(last)


def _read(found: list[Log], name: str, start: int, *, writing: bool) -> tuple[list[LogPiece], str, int]:
    """What there is from *start* of the log *name* on, and where the next answer begins.

    *writing*: the last log may grow.
    """
    items: list[LogPiece] = []
    room = PIECE_BYTES
    place = next((index for index, log in enumerate(found) if log.name == name), 0)
    for index, log in enumerate(found[place:], place):
        if log.name != name:
            name, start = log.name, 0
        text, start, whole = _lines(log.path, start, room, grows=writing and index == len(found) - 1)
        room -= len(text)
        if text:
            items.append(LogPiece(stage=log.stage, attempt=log.attempt, text=_plain(text)))
        if not whole:
            break
    return items, name, start


def _lines(path: Path, start: int, room: int, *, grows: bool) -> tuple[bytes, int, bool]:
    """Whole lines from *start*, the byte after them, and whether that is all of this log.

    The beginning of a line is left for the next answer, unless nothing will come after it, or it fills this one.
    """
    try:
        data, end = files.piece(path, start, room)
        whole = end >= path.stat().st_size
    except OSError:  # the oldest logs go when there are too many
        return b"", start, True
    torn = data.rpartition(b"\n")[2]
    if torn and (grows if whole else len(torn) < len(data)):
        return data[: len(data) - len(torn)], end - len(torn), False
    return data, end, whole and room > len(data)


def _plain(data: bytes) -> str:
    lines = data.decode("utf-8", "replace").split("\n")
    return "\n".join(journal.plain(line) for line in lines)


def _wait(row: LifecycleRow) -> str:
    if not row.wait_what or row.wait_since is None:
        return ""
    return Wait(what=row.wait_what, since=row.wait_since, unblocks=row.wait_unblocks).sentence()
