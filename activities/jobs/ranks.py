"""A gang from the compute worker: all ranks run, or none does.

The result of rank 0 is the gang's. When a rank ends in any other way the rest is ended at once: without it nothing
that they do is worth anything, and a rank that waits for it in an all-reduce would hold its device for ever.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import fsspec

from activities.jobs.order import Order, Outcome
from everloop import errors, logs

log = logging.getLogger(__name__)

TELLTALE_SECONDS = 0.75
"""After the first rank that has failed the others have so long to say why: the first to be heard of is rarely the
first that failed."""
LAST_SECONDS = 20.0
"""After rank 0's result the others have so long to end by themselves."""
KILLED = signal.Signals.SIGKILL.name
PEER_LOST = errors.ComputeLost.__name__

End = Callable[[Sequence[int]], Awaitable[None]]
"""End these ranks at once, and wait until nothing of them runs."""
Ended = dict[int, Outcome | BaseException]


async def together(tasks: Sequence[asyncio.Task[Outcome]], end: End, tell: Callable[[int], None]) -> Outcome:
    """What came of the gang, once nothing of it runs any more. Raises what the rank to blame has raised.

    *tasks*: one for each rank. When this is cancelled they are all cancelled, each ends with its grace. *tell*: is
    told the rank to blame.
    """
    try:
        broken = await _watched(tasks)
        left = [rank for rank, task in enumerate(tasks) if not task.done()]
        if left:
            await end(left)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    await asyncio.gather(*tasks, return_exceptions=True)
    ended = _ended(tasks)
    first = ended.get(0)
    if isinstance(first, dict) and "result" in first:
        return first
    rank, how = blamed(broken or ended)
    tell(rank)
    return _said(rank, how)


async def _watched(tasks: Sequence[asyncio.Task[Outcome]]) -> Ended:
    """Until rank 0 has a result and the others have had their time, or one has failed: how those that failed have."""
    while not all(task.done() for task in tasks):
        await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
        ended = _ended(tasks)
        if "result" in _of(ended.get(0)):
            if not _of(ended[0]).get("kept"):
                await asyncio.wait(tasks, timeout=LAST_SECONDS)
            return {}
        bad = _bad(ended)
        if bad:
            if all(_is_consequence(how) for how in bad.values()):
                await asyncio.wait(tasks, timeout=TELLTALE_SECONDS)
            return _bad(_ended(tasks))
    return {}


def _bad(ended: Ended) -> Ended:
    return {rank: how for rank, how in ended.items() if "result" not in _of(how)}


def _of(how: Outcome | BaseException | None) -> Outcome:
    return how if isinstance(how, dict) else {}


def _ended(tasks: Sequence[asyncio.Task[Outcome]]) -> Ended:
    return {
        rank: task.exception() or task.result()
        for rank, task in enumerate(tasks)
        if task.done() and not task.cancelled()
    }


def _is_consequence(how: Outcome | BaseException) -> bool:
    """May another rank be to blame for it?"""
    return not isinstance(how, BaseException) and how.get("crash") != KILLED


def blamed(ended: Ended) -> tuple[int, Outcome | BaseException]:
    """The rank to blame, and how it ended.

    A rank that was killed, or whose worker is gone, is; else the first that raised something of its own: that the
    connection to another one was lost is what all others raise then.
    """

    def order(one: tuple[int, Outcome | BaseException]) -> tuple[int, float, int]:
        rank, how = one
        if isinstance(how, BaseException):
            return (0, 0.0, rank)
        at = how.get("ended_at", 0.0)
        if how.get("crash") == KILLED:
            return (0, at, rank)
        if how.get("unwanted") or how.get("error", {}).get("error") == PEER_LOST:
            return (2, at, rank)
        return (1, at, rank)

    return min(ended.items(), key=order)


def _said(rank: int, how: Outcome | BaseException) -> Outcome:
    if isinstance(how, BaseException):
        raise how
    if "error" in how:
        return {**how, "error": {**how["error"], "message": f"rank {rank}: {how['error']['message']}"}}
    if "crash" in how:
        return {**how, "crash": f"{how['crash']} (rank {rank})"}
    return how


def tell_in_the_first_log(orders: Sequence[Order], rank: int) -> None:
    """The last lines of the rank to blame, where people look: at the end of rank 0's log. Never fails a job."""
    if rank == 0:
        return
    with contextlib.suppress(OSError):
        folder = Path(orders[0]["logs_dir"])
        lines = (folder / orders[rank]["log"]).read_text(errors="replace").splitlines()[-logs.LAST_WORDS :]
        with (folder / orders[0]["log"]).open("a") as target:
            target.write("".join(f"rank {rank}: {line}\n" for line in lines))


def leave(orders: Sequence[Order]) -> None:
    """Nobody meets there any more. Never fails a job."""
    if "gang" not in orders[0]:
        return
    with contextlib.suppress(Exception):  # whatever the store behind the URL raises
        files, folder = fsspec.core.url_to_fs(orders[0]["gang"]["folder"])
        files.rm(folder, recursive=True)
