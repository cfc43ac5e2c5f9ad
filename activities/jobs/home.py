"""Whose disk is it? A device may be of another host, whose disk the compute worker does not see.

An order names folders of the compute worker. Where its disk is not, a job has its host's own in their place, and its
log is sent back piece by piece. What others must read (artifacts, checkpoints, where a gang meets) is named by URL.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from activities.jobs.mark import MARK
from activities.jobs.order import Order
from everloop import logs

DISK = "scratch/disk"
"""In a data folder: a name that no other has. Two hosts may have folders of the same path."""
FOLDERS = ("folder", "logs_dir", "slots_dir", "checkpoints", "predictions_dir")
"""Of an order; what is no path below the data folder, a URL, stays as it is."""
PIECE_BYTES = 1 << 16
SEND_SECONDS = 0.5


def disk(data_dir: Path) -> str:
    """The name of the disk below *data_dir*, which is given one where it has none."""
    path = data_dir / DISK
    if not (name := _name(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f"disk.{uuid.uuid4().hex}")
        staged.write_text(uuid.uuid4().hex)
        with contextlib.suppress(FileExistsError):
            os.link(staged, path)  # the first one wins, whole
        staged.unlink()
        name = _name(path)
    return name


def _name(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def at_home(order: Order, own: Path) -> Order:
    """*order* as this host can carry it out, whose data folder is *own*: the same where that is the order's disk."""
    if "disk" not in order:  # of an older compute worker, which has all devices on its own machine
        return order
    if order["data_dir"] == str(own) and _name(own / DISK) == order["disk"]:
        return order

    def here(path: str) -> str:
        below = path.removeprefix(f"{order['data_dir']}/")
        return path if below == path else str(own / below)

    placed = {name: here(str(value)) for name, value in order.items() if name in FOLDERS}
    said = order["environment"]
    environment = said | {"EVERLOOP_DATA_DIR": str(own), MARK: here(said[MARK])}
    return cast("Order", order | placed | {"environment": environment, "away": True})


class SentLog:
    """A job's log on its way to whoever asked for the job."""

    def __init__(self, order: Order) -> None:
        self._path = Path(order["logs_dir"]) / order["log"]
        self._at = self._path.stat().st_size if self._path.exists() else 0  # before it: of an attempt before
        self._sent = 0.0

    def due(self) -> bool:
        return time.monotonic() - self._sent >= SEND_SECONDS

    def pieces(self, *, whole: bool = False) -> Iterator[bytes]:
        """What is new since the last time: a piece of it, or all. None where it cannot be read."""
        self._sent = time.monotonic()
        while True:
            try:
                data, self._at = logs.piece(self._path, self._at, PIECE_BYTES)
            except OSError:
                return
            if not data:
                return
            yield data
            if not whole:
                return


def keep_log(path: Path, piece: bytes) -> None:
    """Add a *piece* of the log of a job on another host. Never fails a job."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            log.write(piece)
        logs.bound(path)
