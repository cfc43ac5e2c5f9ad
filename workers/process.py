"""What every worker process needs: a name, a clean end, an end with its parent. Light: no Temporal, no Dask."""

import asyncio
import ctypes
import hashlib
import os
import signal
import socket
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from everloop import stack
from everloop.children import die_with


@dataclass(frozen=True)
class Identity:
    """Whose attempt it is: `<role>@<session>/<host>/<boot>/<pid>-<start>`; before, it was `<role>@<session>/<pid>`."""

    role: str
    session: str
    host: str = ""
    """Names a machine; a pid says nothing on another. Empty in the old form: it could be anywhere."""
    boot: str = ""
    """One life of the machine, and whose pids are meant: a container has pids of its own."""
    pid: int = 0
    started: int = 0
    """In clock ticks since boot: a reused pid has another."""

    def __str__(self) -> str:
        return f"{self.role}@{self.session}/{self.host}/{self.boot}/{self.pid}-{self.started}"

    def proven_dead(self) -> bool:
        """Is it certain that no such process runs? False where this machine cannot know."""
        if not self.host or self.host != host():
            return False
        (machine, _, _), (own, _, _) = self.boot.partition("."), boot().partition(".")
        if machine != own:
            return True  # the machine was started again
        return self.boot == boot() and stack.start_time(self.pid) != self.started


def identity(role: str, session: str) -> Identity:
    """Of the process that asks."""
    return Identity(role, session, host(), boot(), os.getpid(), stack.start_time(os.getpid()))


def parse(text: str) -> Identity | None:
    """The identity that *text* is, or None when it is not one of ours."""
    role, _, rest = text.partition("@")
    match rest.split("/"):
        case [session, host_, boot_, process] if role and session:
            pid, _, started = process.partition("-")
            if pid.isdecimal() and started.isdecimal() and host_ and boot_:
                return Identity(role, session, host_, boot_, int(pid), int(started))
        case [session, pid] if role and session and pid.isdecimal():
            return Identity(role, session, pid=int(pid))
    return None


@cache
def host() -> str:
    """A name of this machine that another has not: its machine id, where it has one, and its host name."""
    machine = ""
    with suppress(OSError):
        machine = Path("/etc/machine-id").read_text().strip()
    return hashlib.sha256(f"{machine} {socket.gethostname()}".encode()).hexdigest()[:16]


@cache
def boot() -> str:
    """`<boot id>.<pid namespace>` of this process."""
    started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{started}.{Path('/proc/self/ns/pid').stat().st_ino}"


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the process that started us dies; end now if it is dead already."""
    die_with(os.getppid(), signal.SIGTERM)


def rename(command: Sequence[str]) -> None:
    """Show *command* as this fork's in `ps`, as far as there is room: in the place of its parent's."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
    room = end - start
    if not start or room <= 0:  # a kernel that does not say it
        return
    text = b"\0".join(os.fsencode(part) for part in command)[: room - 1]
    ctypes.memmove(start, text.ljust(room, b"\0"), room)


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
