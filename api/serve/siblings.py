"""Several processes that serve one port: each answers /status and /metrics for all of them.

A rollout counts a step when every process serves the release, so what one says of itself is not enough. Each listens
on a socket of its own, which the parent holds too: a process that is being started again is waited for.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from api.serve.fleet import ServedView, StatusView

HEAR_SECONDS = 1.0
"""A process that does not answer for so long counts as one that serves nothing yet."""
MOST_BYTES = 64 << 20

Told = dict[str, Any]
"""`status`: a `StatusView`; `samples`: see `api.serve.metrics`."""


@dataclass(frozen=True)
class Siblings:
    """The processes of one server, seen by the one at *place*."""

    place: int = 0
    ears: tuple[socket.socket, ...] = ()
    """Listening, one for each process; none where there is one process only."""

    async def listen(self, tell: Callable[[], Told]) -> asyncio.Server | None:
        """Answer the others, until the server is closed, with what *tell* says then."""
        if not self.ears:
            return None

        async def told(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                if _is_ours(writer.get_extra_info("socket")):
                    writer.write(json.dumps(tell()).encode())
                    await writer.drain()
            writer.close()

        return await asyncio.start_unix_server(told, sock=self.ears[self.place].dup())

    async def heard(self, own: Told) -> list[Told | None]:
        """What each process says, in the order of their places; None where one does not answer."""
        if not self.ears:
            return [own]
        return await asyncio.gather(*(self._hear(place, own) for place in range(len(self.ears))))

    async def _hear(self, place: int, own: Told) -> Told | None:
        if place == self.place:
            return own
        try:
            async with asyncio.timeout(HEAR_SECONDS):
                reader, writer = await asyncio.open_unix_connection(sock=_connected(self.ears[place]), limit=MOST_BYTES)
                try:
                    return dict(json.loads(await reader.read(MOST_BYTES)))
                finally:
                    writer.close()
        except (OSError, ValueError, TimeoutError):
            return None


def ear() -> socket.socket:
    """A listening socket without a file: nothing is left of it when the last process that holds it ends."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(f"\0everloop-serve-{os.getpid()}-{os.urandom(8).hex()}")
    made.listen(128)
    return made


def _connected(to: socket.socket) -> socket.socket:
    """A connection to a listening socket. Raises `OSError` where too many wait for it already."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        made.connect(to.getsockname())  # uvloop cannot: it takes the name for a path
    except OSError:
        made.close()
        raise
    return made


def _is_ours(peer: socket.socket) -> bool:
    """A socket without a file has no owner: who asks must be of our user."""
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.getuid())


def together(every: Sequence[StatusView | None]) -> StatusView:
    """What answers for each model whichever process is asked: the oldest release of all, and any refusal."""
    names = sorted({(each.project, each.model) for view in every if view for each in view.models})
    return StatusView(models=[_oldest(name, every) for name in names])


def _oldest(name: tuple[str, str], every: Sequence[StatusView | None]) -> ServedView:
    found = [each for view in every if view for each in view.models if (each.project, each.model) == name]
    oldest = min(found, key=lambda each: each.release_seq or 0)
    refused = next((each for each in found if each.error), oldest)
    whole = len(found) == len(every)  # else one has not said what it serves
    return oldest.model_copy(
        update={
            "release_seq": oldest.release_seq if whole else None,
            "error": refused.error,
            "refused_seq": max(each.refused_seq for each in found),
        }
    )
