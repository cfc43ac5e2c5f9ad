"""What every process needs: one-line logs, a clean end, an end with its parent. Light: no Temporal, no Dask."""

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any

PR_SET_PDEATHSIG = 1


class OneLine(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._role,
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_lines(role: str, level: int = logging.INFO) -> None:
    """Log to stderr, one line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(role))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the process that started us dies; end now if it is dead already."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(1)


def told_to_stop() -> asyncio.Event:
    """Set by SIGTERM or SIGINT. Call from within the running loop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def first_of(*awaitables: Awaitable[Any]) -> None:
    """Until one of them ends; the others are cancelled. Raises what the first one raised."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
