"""A rank of a gang, in its job: where it meets the others, and how they all do the same at the same time.

Rank 0 opens a store on the lease's host and leaves its address in a folder that is new for every attempt, so that a
rank of an attempt before finds nobody. What rank 0 says about checkpoints and the end all ranks do: a notice reaches
them at different moments, and a rank that stopped alone would leave the others waiting in an all-reduce for ever.
"""

import contextlib
import fcntl
import json
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec

from activities.jobs.checkpoints import Checkpoints, Kept
from everloop.errors import ComputeLost

LOOPBACK = "127.0.0.1"
SIOCGIFADDR = 0x8915
"""Asks the kernel for an interface's address."""
ADDRESS = "address"
JOIN_SECONDS = 900.0
"""Until rank 0 has opened its store: its host may have to install what the trainer requires."""
REACHED = timedelta(minutes=2)
"""For a connection to rank 0, which listens already: without one, whoever waited would wait for ever."""
LOOK_SECONDS = 0.02
PATIENCE = timedelta(days=2)
"""Between two words of rank 0. When it has died, whoever waits for it is ended from outside."""
REMEMBERED = 10_000
"""Words of rank 0 that stay in its store."""


class RankEnded(BaseException):
    """A rank has done its part, and what rank 0 returns is the result. No trainer's `except Exception` sees it."""


@dataclass
class Gang:
    """The ranks of one attempt, as one of them sees it."""

    rank: int
    size: int
    host: str
    """Of rank 0, as the other members reach it."""
    folder: str
    """An fsspec URL that all members reach; new for every attempt."""
    own: str = ""
    """This rank's host, as the others reach it; rank 0's where that is not known."""
    _store: Any = None
    _words: int = 0
    _joined: bool = field(default=False)

    def store(self) -> Any:  # noqa: ANN401  # torch has no types for us
        """The `torch.distributed.TCPStore` of this attempt. The first call waits for rank 0."""
        if self._store is None:
            self._store = self._opened() if self.rank == 0 else self._found()
        return self._store

    def agreed(self, word: str) -> str:
        """What rank 0 says: its own *word*, which all ranks are told. Every rank must ask alike."""
        from torch.distributed import DistError

        self._words += 1
        key = f"everloop/{self._words}"
        try:
            if self.rank:
                return str(self.store().get(key).decode())
            self.store().set(key, word)
            if self._words > REMEMBERED:
                self.store().delete_key(f"everloop/{self._words - REMEMBERED}")
        except DistError as error:
            raise ComputeLost(f"rank 0 of the gang does not answer: {str(error).splitlines()[0][:300]}") from error
        return word

    def join(self, backend: str = "") -> None:
        """Make torch's process group of all ranks, once: nccl where there is a GPU, else gloo."""
        if self._joined:
            return
        import torch
        from torch import distributed

        if interface := "lo" if self.host == LOOPBACK else interface_of(self.own):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
        backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
        store = distributed.PrefixStore("group", self.store())
        distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        self._joined = True

    def _opened(self) -> Any:  # noqa: ANN401
        from torch.distributed import TCPStore

        with socket.socket() as listening:  # on this address alone: by itself the store would take every interface
            listening.bind((self.host, 0))
            listening.listen(4 * self.size)
            port = listening.getsockname()[1]
            store = TCPStore(
                self.host, port, self.size, is_master=True, timeout=PATIENCE, wait_for_workers=False,
                master_listen_fd=listening.detach(),
            )  # fmt: skip
        self._tell(f"{self.host}:{port}")
        return store

    def _found(self) -> Any:  # noqa: ANN401
        from torch.distributed import DistError, TCPStore

        host, _, port = self._told().rpartition(":")
        try:
            store = TCPStore(host, int(port), self.size, timeout=REACHED, wait_for_workers=False)
        except DistError as error:
            raise ComputeLost(f"rank {self.rank} does not reach rank 0 at {host}:{port}: {error}"[:500]) from error
        store.set_timeout(PATIENCE)
        return store

    def _tell(self, address: str) -> None:
        files, folder = fsspec.core.url_to_fs(self.folder)
        files.makedirs(folder, exist_ok=True)
        if "file" not in files.protocol:
            files.pipe_file(f"{folder}/{ADDRESS}", address.encode())
            return
        staged = Path(folder, f".{ADDRESS}")
        staged.write_text(address)
        staged.replace(Path(folder, ADDRESS))

    def _told(self) -> str:
        files, folder = fsspec.core.url_to_fs(self.folder)
        deadline = time.monotonic() + JOIN_SECONDS
        while time.monotonic() < deadline:
            files.invalidate_cache()
            try:
                return str(files.cat_file(f"{folder}/{ADDRESS}").decode())
            except FileNotFoundError:
                time.sleep(LOOK_SECONDS if "file" in files.protocol else 10 * LOOK_SECONDS)
        raise ComputeLost(f"rank {self.rank} has not heard of rank 0 for {JOIN_SECONDS:.0f} s")


def interface_of(address: str) -> str:
    """The network interface that has *address* (IPv4), nothing where none has it: by itself gloo takes the one that
    the host's name leads to, which others need not reach.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                told = fcntl.ioctl(asked, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(told[20:24]) == address:
                    return name
    return ""


def alone() -> Gang:
    """Of a job that is one process. It asks nobody."""
    return Alone(0, 1, LOOPBACK, "")


class Alone(Gang):
    """A gang of one: what may be a gang runs the same without one."""

    def store(self) -> Any:  # noqa: ANN401
        if self._store is None:
            from torch.distributed import HashStore

            self._store = HashStore()
        return self._store

    def agreed(self, word: str) -> str:
        return word


class Followed(Checkpoints):
    """The checkpoints of a rank other than 0: it reads the one that rank 0 goes on from, and writes none."""

    def __init__(self, folder: Path, token: int, gang: Gang, depot: str = "") -> None:
        super().__init__(folder, token, depot=depot)
        self._gang = gang

    def claim(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.check()

    def write(self, step: int, state: Any, at: str = "") -> None:  # noqa: ANN401
        """Rank 0 keeps it for all."""

    def newest(self) -> Kept | None:
        self.claim()
        token, step = json.loads(self._gang.agreed(""))
        return self.read(token, step) if token else None

    def reached(self, step: int) -> None:
        """Rank 0 tells how far they are."""

    def resumed(self, kept: Kept | None) -> None:
        """Rank 0 tells what was done again."""

    def forget(self) -> None:
        """Rank 0 may still need them."""


class Leading(Checkpoints):
    """The checkpoints of rank 0: what it goes on from it tells the others."""

    def __init__(self, folder: Path, token: int, floor_bytes: int, gang: Gang, depot: str = "") -> None:
        super().__init__(folder, token, floor_bytes, depot)
        self._gang = gang

    def newest(self) -> Kept | None:
        kept = super().newest()
        self._gang.agreed(json.dumps([kept.token, kept.step] if kept else [0, 0]))
        return kept


def checkpoints(folder: Path, token: int, floor_bytes: int, gang: Gang, depot: str = "") -> Checkpoints:
    """Of this rank."""
    if gang.size == 1:
        return Checkpoints(folder, token, floor_bytes, depot)
    return Leading(folder, token, floor_bytes, gang, depot) if gang.rank == 0 else Followed(folder, token, gang, depot)
