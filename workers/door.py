"""Who may connect to the Temporal server of a laptop: this user's processes, and to its UI our guard alone.

The development server has neither TLS nor a check of who calls, and whoever reaches its port can start and
signal everything. So its `accept` is ours: a seccomp filter hands the call to this process (user notification,
no root needed), which takes the connection, looks up in `/proc/net/tcp` whose it is, and gives it to the server
or closes it before a byte was read.
"""

import ctypes
import errno
import fcntl
import logging
import os
import platform
import select
import socket
import struct
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

GUARD_ADDRESS = "127.0.0.2"
"""Our guard connects from here; a browser cannot choose where it connects from, and comes from 127.0.0.1."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_NO_NEW_PRIVILEGES = 38
_MODE_FILTER, _NEW_LISTENER = 1, 8
_RECEIVE, _SEND, _ADD_FD = 0xC0502100, 0xC0182101, 0x40182103
_ADD_FD_AND_ANSWER = 2
_PIDFD_GETFD = 438
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_ESTABLISHED = "01"
_KERNEL = (5, 14)
"""The first that can give a connection and answer in one step."""


@dataclass(frozen=True)
class _Machine:
    audit: int
    seccomp: int
    accept: int
    accept4: int


_MACHINES = {"x86_64": _Machine(0xC000003E, 317, 43, 288), "aarch64": _Machine(0xC00000B7, 277, 202, 242)}


@dataclass
class Door:
    """Minds the `accept` of one process that is about to be started."""

    guarded: frozenset[int] = frozenset()
    """Ports that only `GUARD_ADDRESS` may connect to."""
    closed: frozenset[int] = frozenset()
    """Ports that nobody may connect to."""
    _ours: socket.socket = field(init=False)
    _theirs: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()

    def before_exec(self) -> None:
        """In the child, between fork and exec: hand its `accept` over. Ends the child where that cannot be done."""
        descriptor = _filtered()
        if descriptor < 0:
            os._exit(1)
        socket.send_fds(self._theirs, [b"."], [descriptor])

    def mind(self, process: "subprocess.Popen[bytes]") -> None:
        """Answer for *process*, which was started with `before_exec`, from a thread, for as long as it lives."""
        self._theirs.close()
        _, descriptors, _, _ = socket.recv_fds(self._ours, 1, 1)
        self._ours.close()
        if not descriptors:
            return  # it ended before it could hand anything over
        watch = _Watch(self, process.pid, os.pidfd_open(process.pid), descriptors[0])
        threading.Thread(target=watch.run, name="door", daemon=True).start()

    def admits(self, peer: tuple[str, int], own: tuple[str, int]) -> bool:
        """May who connects from *peer* reach the listener at *own*?"""
        if own[1] in self.closed or (own[1] in self.guarded and peer[0] != GUARD_ADDRESS):
            return False
        return _owner(peer, own) == os.geteuid()


def possible() -> bool:
    """Can this kernel do it for us? Tried on a process of its own."""
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if platform.machine() not in _MACHINES or release < _KERNEL:
        return False
    door = Door()
    try:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, preexec_fn=door.before_exec) as tried:  # noqa: PLW1509
            pidfd = os.pidfd_open(tried.pid)
            taken = _LIBC.syscall(_PIDFD_GETFD, pidfd, 0, 0)
            for descriptor in (pidfd, *([taken] if taken >= 0 else [])):
                os.close(descriptor)
    except (OSError, subprocess.SubprocessError):
        return False
    finally:
        door._ours.close()  # noqa: SLF001
        door._theirs.close()  # noqa: SLF001
    return taken >= 0 and tried.returncode == 0


def _filtered() -> int:
    """Put the filter on this process; the descriptor on which its calls are announced, negative when refused."""
    machine = _MACHINES[platform.machine()]
    steps = (
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 0, 4, machine.audit),
        (0x20, 0, 0, 0),  # load the call's number
        (0x15, 1, 0, machine.accept4),
        (0x15, 0, 1, machine.accept),
        (0x06, 0, 0, _NOTIFY),
        (0x06, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    _LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return int(_LIBC.syscall(machine.seccomp, _MODE_FILTER, _NEW_LISTENER, program))


def _owner(peer: tuple[str, int], own: tuple[str, int]) -> int | None:
    """The uid that holds the other end of an established loopback connection, or None.

    One that was closed already belongs to nobody, and shows as root's: only a connection that stands counts.
    """
    ends = [_hexadecimal(peer), _hexadecimal(own)]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == ends:
            return int(fields[7]) if fields[3] == _ESTABLISHED else None
    return None


def _hexadecimal(end: tuple[str, int]) -> str:
    (packed,) = struct.unpack("=I", socket.inet_aton(end[0]))
    return f"{packed:08X}:{end[1]:04X}"


@dataclass
class _Watch:
    """Takes each connection for the server, and hands over those that may come in."""

    door: Door
    pid: int
    pidfd: int
    announced: int

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.announced, select.POLLIN)
        try:
            while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll()):
                self._next()
        finally:
            os.close(self.announced)
            os.close(self.pidfd)

    def _next(self) -> None:
        call = bytearray(80)
        try:
            fcntl.ioctl(self.announced, _RECEIVE, call)
        except OSError:  # its thread was interrupted, and calls again
            return
        number, _, _, _, _, _, listener, address, length, *_ = struct.unpack("=QIIiIQ6Q", call)
        with suppress(OSError):  # it has ended meanwhile
            try:
                self._serve(number, listener, (address, length))
            except OSError as error:
                self._answer(number, error.errno or errno.ECONNABORTED)
            except Exception:
                log.exception("could not look at a connection")
                self._answer(number, errno.ECONNABORTED)

    def _serve(self, number: int, listener: int, result: tuple[int, int]) -> None:
        """Raises `OSError` with what `accept` is to answer: EAGAIN when nobody waits."""
        taken = _LIBC.syscall(_PIDFD_GETFD, self.pidfd, ctypes.c_int(listener), 0)
        if taken < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        with socket.socket(fileno=taken) as listening:
            while True:
                descriptor, peer = listening._accept()  # type: ignore[attr-defined]  # noqa: SLF001  # not `accept`: it waits
                with socket.socket(fileno=descriptor) as connection:
                    if listening.family == socket.AF_INET and self.door.admits(peer, listening.getsockname()):
                        self._give(number, connection, peer, result)
                        return
                    log.warning("refused a connection from %s to %s", peer, listening.getsockname())

    def _give(self, number: int, connection: socket.socket, peer: tuple[str, int], result: tuple[int, int]) -> None:
        connection.setblocking(False)
        whence = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", peer[1], socket.inet_aton(peer[0]))
        if all(result):
            with open(f"/proc/{self.pid}/mem", "wb", buffering=0) as memory:  # noqa: PTH123
                os.pwrite(memory.fileno(), whence, result[0])
                os.pwrite(memory.fileno(), struct.pack("=I", len(whence)), result[1])
        given = struct.pack("=QIIII", number, _ADD_FD_AND_ANSWER, connection.fileno(), 0, os.O_CLOEXEC)
        fcntl.ioctl(self.announced, _ADD_FD, given)

    def _answer(self, number: int, reason: int) -> None:
        fcntl.ioctl(self.announced, _SEND, struct.pack("=QqiI", number, 0, -reason, 0))
