"""What `everloop up` runs: one parent that starts every process of the stack, minds them, and ends them.

Each child is the process that production uses, with a log file of its own (never a pipe: a full pipe hangs
the writer), in a process group of its own (Ctrl-C reaches only the parent, which ends them in order), and told
by the kernel to die with the parent, so that a kill -9 of the parent leaves nothing behind.
"""

import asyncio
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import IO

from sqlalchemy.exc import DBAPIError
from sqlmodel import select
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.service import RPCError

from everloop import engine, logs, names, signing, stack
from everloop import settings as configuration
from everloop.errors import EverloopError, sentence
from everloop.settings import API, PRIVATE, SCHEDULER, SERVE, TEMPORAL, TEMPORAL_UI, UNGUARDED_UI, Settings
from everloop.store import DeviceRow, LifecycleRow, Store
from workers import connect, devices, takeover, temporal
from workers.temporal import CannotStart, Server

READY_SECONDS = 90.0
"""A start that takes longer has gone wrong (usual: under 10 s)."""
STEADY_SECONDS = 10.0
"""A child that lives this long has started well: its next end counts as the first again."""
GIVE_UP_AFTER = 5
"""Ends in a row, each soon after its start, after which a child is not started again."""
FIRST_PAUSE_SECONDS = 0.25
WORKERS = ("control", "compute")
"""Children that run activities."""
UNGUARDED = (
    "this kernel cannot say who connects to Temporal (it takes Linux 5.14 and seccomp): its UI is off, and every "
    "user of this machine can reach its port"
)
SPACE_BYTES = 256 << 20
"""To run at all, beside the floor below which nothing is written."""
GRACE_SECONDS = 4.0
"""How long a group of children may take to end in order."""

_LIBC = ctypes.CDLL(None)  # loaded before any fork: loading it between fork and exec may dead-lock
_PR_SET_PDEATHSIG = 1


@dataclass(eq=False)
class Child:
    """A process that is started again when it ends, until it has ended at once too often."""

    name: str
    module: str
    args: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    quick_ends: int = 0
    again_at: float = 0.0

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, settings: Settings) -> None:
        """Start it. Call from the main thread: it is told to die with the thread that made it."""
        with log_of(settings, self.name).open("ab") as output:
            self.process = subprocess.Popen(
                engine.command(self.module, *self.args),
                env=engine.environment(settings.environment()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_dies_with(os.getpid()),  # noqa: PLW1509  # system calls only, no lock is taken
            )
        self.started_at = time.monotonic()


def _dies_with(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        os.setpgid(0, 0)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked to be told
            os._exit(1)

    return before_exec


def log_of(settings: Settings, name: str) -> Path:
    return settings.logs_dir / f"{name}.log"


@dataclass
class Stack:
    """The processes of one life of the stack."""

    settings: Settings
    children: list[Child] = field(default_factory=list)
    server: Server | None = None
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: T201

    def start(self) -> None:
        """Start everything and wait until it works. Raises `CannotStart` with what to do."""
        settings = self.settings
        if not settings.dask_address:  # else somebody else's cluster, with workers of its own
            self._launch(Child("scheduler", "workers", ("scheduler",)))
        store = Store(settings.database)  # before there are histories: see `check_histories`
        store.migrate()
        store.close()
        self.server = self._temporal()
        self._take_over()
        (settings.keys_dir / "login.url").unlink(missing_ok=True)  # the new API writes a fresh one
        self._launch(Child("control", "workers", ("control",)))
        self._launch(Child("api", "api"))
        self._launch(Child("compute", "workers", ("compute",)))
        self._launch(Child("serve", "api", ("serve",)))
        if self.server is not None and self.server.guarded:
            self._launch(Child("temporal-ui", "api", ("temporal-ui",)))
        elif self.server is not None:
            self.say(UNGUARDED)
        self._wait_for(self.missing)
        # Last, when the cores are free for it: a slot whose worker does not come up in seconds starts all over.
        for name in [] if settings.dask_address else devices.slot_names(settings):
            self._launch(Child(name, "workers", ("slot", name)))
        self._wait_for(self.missing_slots)

    def up(self) -> stack.Up:
        """What it says of itself."""
        settings = self.settings
        hidden = self.server is not None and not self.server.guarded
        return stack.Up(
            pid=os.getpid(),
            started=stack.start_time(os.getpid()),
            session=settings.session,
            port_base=settings.port_base,
            api_url=settings.api_url,
            serve_url=settings.serve_url,
            temporal=settings.temporal,
            temporal_ui_url="" if hidden else settings.temporal_ui_url,
            data_dir=str(settings.data_dir),
        )

    def mind(self) -> None:
        """Start again what ends; returns never. Raises `CannotStart` when something ends at once too often."""
        while True:
            self.tend()
            time.sleep(0.2)

    def tend(self) -> None:
        """One look at everything."""
        for log in self.settings.logs_dir.glob("*.log"):
            logs.bound(log)
        if self.server is not None and self.server.process.poll() is not None:
            self.say(f"the Temporal server ended ({_how(self.server.process.returncode)}): starting it again")
            self.server.stop()
            self.server = self._temporal()
        for child in self.children:
            self._tend(child)

    def _tend(self, child: Child) -> None:
        if child.alive():
            return
        now = time.monotonic()
        log = log_of(self.settings, child.name)
        if child.process is not None:
            quick = now - child.started_at < STEADY_SECONDS
            child.quick_ends = child.quick_ends + 1 if quick else 1
            how = _how(child.process.returncode)
            child.process = None
            if child.quick_ends >= GIVE_UP_AFTER:
                raise CannotStart(
                    f"{child.name} ended {GIVE_UP_AFTER} times soon after its start ({how}). Its last words:\n"
                    f"{logs.last_words(log)}",
                    hint=f"the whole log is {log}",
                )
            wait = FIRST_PAUSE_SECONDS * 2 ** (child.quick_ends - 1)
            child.again_at = now + wait
            self.say(f"{child.name} ended ({how}): starting it again in {wait:g} s; its log is {log}")
        if now >= child.again_at:
            self._take_over_from(child)
            child.start(self.settings)

    def _take_over_from(self, child: Child) -> None:
        """What a dead worker was doing goes on with the next one; without this it would wait for its timeout."""
        if child.name not in WORKERS:
            return
        try:
            self._take_over(wait_seconds=2, jobs_too=child.name == "compute")
        except (EverloopError, RPCError) as error:  # Temporal is away too: the timeout does it
            self.say(f"could not take over from {child.name}: {error}")

    def stop(self) -> None:
        """End everything in order: who gives work first, who keeps it last. Leaves nothing."""
        last = [child for child in self.children if child.args[:1] in (("slot",), ("scheduler",))]
        first = [child for child in self.children if child not in last]
        for group in (first, last):
            _end([child.process for child in group if child.process])
        if self.server is not None:
            self.server.stop()
        left = stack.members(self.settings)
        stack.end(left, signal.SIGKILL)
        stack.wait_gone(left, 2)

    def _launch(self, child: Child) -> None:
        self.children.append(child)
        child.start(self.settings)

    def _temporal(self) -> Server | None:
        settings = self.settings
        if settings.temporal_address:
            return None  # somebody else's server
        return temporal.start(
            _temporal_file(settings),
            settings.port(TEMPORAL),
            settings.port(UNGUARDED_UI),
            log_of(settings, "temporal"),
            namespace=settings.temporal_namespace,
        )

    def _take_over(self, *, wait_seconds: float = READY_SECONDS, jobs_too: bool = True) -> None:
        """What the dead were doing when they died goes on now, not after a heartbeat timeout."""
        settings = self.settings

        async def take_over() -> int:
            client = await connect.connect(settings, wait_seconds=wait_seconds)
            return await takeover.take_over(client, settings, jobs_too=jobs_too)

        taken = asyncio.run(take_over())
        if taken:
            self.say(f"took over {taken} attempt{'s' * (taken > 1)} of a dead worker")

    def _wait_for(self, still_missing: Callable[[], list[str]]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while missing := still_missing():
            self.tend()
            if time.monotonic() > deadline:
                words = "\n".join(f"{n}:\n{logs.last_words(log_of(self.settings, n), 5)}" for n in missing)
                raise CannotStart(
                    f"not ready after {READY_SECONDS:.0f} s: {', '.join(missing)}\n{words}",
                    hint=f"the logs are in {self.settings.logs_dir}",
                )
            time.sleep(0.1)

    def missing(self) -> list[str]:
        """Names of the processes that do not answer yet, the slots not counted."""
        settings = self.settings
        waiting = [] if settings.dask_address or _listens(settings.port(SCHEDULER)) else ["scheduler"]
        if not _answers(f"{settings.api_url}/readyz") or not (settings.keys_dir / "login.url").exists():
            waiting.append("api")
        if not _answers(f"{settings.serve_url}/healthz"):
            waiting.append("serve")
        if self.server is not None and self.server.guarded and not _listens(settings.port(TEMPORAL_UI)):
            waiting.append("temporal-ui")
        return waiting or asyncio.run(self._missing_workers())

    def missing_slots(self) -> list[str]:
        """Slots that the pool does not know of: a job could not be given to them."""
        if self.settings.dask_address:
            return []
        store = Store(self.settings.database)
        with store.read() as session:
            present = set(session.exec(select(DeviceRow.name).where(DeviceRow.present)))
        store.close()
        return [name for name in devices.slot_names(self.settings) if name not in present]

    async def _missing_workers(self) -> list[str]:
        settings = self.settings
        client = await connect.connect(settings)
        waiting = []
        for name, queue, kind in (
            ("control", names.CONTROL, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW),
            ("compute", names.COMPUTE, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY),
        ):
            answer = await client.workflow_service.describe_task_queue(
                DescribeTaskQueueRequest(
                    namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind
                )
            )
            if not any(settings.session in poller.identity for poller in answer.pollers):
                waiting.append(name)
        return waiting


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  # loopback, our own
            return bool(answer.status == 200)  # noqa: PLR2004
    except (urllib.error.URLError, OSError):
        return False


def _how(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


def _end(processes: list["subprocess.Popen[bytes]"]) -> None:
    """TERM, wait, KILL the whole process group of each."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.01, deadline - time.monotonic()))
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the group outlives its leader: no stray grandchild
        process.wait()


# --- before the start ------------------------------------------------------------------------------


def check_space(folder: Path, floor_bytes: int) -> None:
    """Raise `CannotStart` when there is too little room to run."""
    free, needed = shutil.disk_usage(folder).free, floor_bytes + SPACE_BYTES
    if free < needed:
        raise CannotStart(
            f"{free >> 20} MiB are free at {folder}; {needed >> 20} MiB are needed",
            hint="free some space, or choose another --data-dir",
        )


def check_ports(settings: Settings) -> None:
    """Raise `CannotStart` when one of our ports is taken."""
    offsets = [API, SERVE]
    offsets += [] if settings.dask_address else [SCHEDULER]
    offsets += [] if settings.temporal_address else [TEMPORAL, TEMPORAL_UI, UNGUARDED_UI]
    for offset in offsets:
        temporal.check_port(settings.port(offset))


def check_database(settings: Settings) -> None:
    """Raise `CannotStart` when the store is a file of something else, or of a newer release."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from sqlalchemy import inspect, text

    if file := _store_file(settings):
        if not file.exists():
            return
        with file.open("rb+"):  # a file that may not be written is said as that, and not as a broken one
            pass
    config = Config()
    config.set_main_option("script_location", str(Path(stack.__file__).parent / "migrations"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    store = Store(settings.database)
    try:
        with store.engine.connect() as connection:
            tables = inspect(connection).get_table_names()
            found = (
                [row[0] for row in connection.execute(text("SELECT version_num FROM alembic_version"))]
                if "alembic_version" in tables
                else []
            )
    except DBAPIError as error:
        raise CannotStart(
            f"the database cannot be opened: {error.orig}",
            hint=f"restore {settings.database} from a backup, choose another --data-dir, or `everloop reset`",
        ) from None
    finally:
        store.close()
    if tables and not found:
        raise CannotStart(
            f"{settings.database} is not a database of Everloop (it has tables, but no revision)",
            hint="choose another --data-dir (or EVERLOOP_DATABASE_URL)",
        )
    if unknown := [revision for revision in found if revision not in known]:
        raise CannotStart(
            f"{settings.database} was made by a newer release of Everloop (revision {unknown[0]})",
            hint="install that release, or choose another --data-dir",
        )


def check_histories(settings: Settings) -> None:
    """Raise `CannotStart` when either the journal or our own server's histories are lost."""
    ours, theirs = _store_file(settings), _temporal_file(settings)
    if settings.temporal_address or ours is None:
        return
    hint = "restore both from one backup, or `everloop reset` to begin anew, or choose another --data-dir"
    if theirs.exists() and not ours.exists():
        raise CannotStart(f"{theirs} is there, and {ours} with versions, routes and leases is gone", hint=hint)
    if ours.exists() and not theirs.exists() and _knows_lifecycles(settings):
        raise CannotStart(
            f"{ours} is there, and Temporal's histories ({theirs}) are gone: no lifecycle could go on", hint=hint
        )


def _store_file(settings: Settings) -> Path | None:
    """The file of the store, or None where the store is a server."""
    url = settings.database
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else None


def _temporal_file(settings: Settings) -> Path:
    """The file of our own Temporal server."""
    return settings.data_dir / "temporal.db"


def _knows_lifecycles(settings: Settings) -> bool:
    store = Store(settings.database)
    try:
        with store.read() as session:
            return session.exec(select(LifecycleRow).limit(1)).first() is not None
    except DBAPIError:  # its tables are not made yet
        return False
    finally:
        store.close()


def clear_leftovers(settings: Settings) -> int:
    """End what a killed launcher left behind; most die by themselves. Returns how many had to be killed."""
    left = stack.wait_gone(stack.members(settings), 3)
    stack.end(left, signal.SIGKILL)
    if stuck := stack.wait_gone(left, 3):
        raise CannotStart(
            f"process {stuck[0].pid} of an earlier run does not end ({stuck[0].command})", hint="end it by hand"
        )
    stack.withdraw(settings)
    return len(left)


# --- the whole -------------------------------------------------------------------------------------


@contextmanager
def running(settings: Settings) -> Iterator[Stack]:
    """A ready stack for the length of the block. Raises `CannotStart`, `AlreadyRunning`, `ForeignFolder`.

    Call from the main thread.
    """
    if sys.platform != "linux":
        raise CannotStart("Everloop runs on Linux only (prctl, flock, /proc)", hint="use a Linux machine or WSL 2")
    os.umask(PRIVATE)  # for every child too: what they write is this user's alone
    stack.claim(settings)
    lock: IO[str] = stack.lock(settings)
    settings = replace(settings, session=f"up-{secrets.token_hex(6)}")
    os.environ.update(settings.environment())  # for the Temporal server, which inherits it
    life = Stack(settings)
    try:
        if opened := stack.close_to_others(settings):
            life.say(f"{opened} in {settings.data_dir} could be read by other users: only you can now")
        stack.remember_session(settings)
        killed = clear_leftovers(settings)
        if killed:
            life.say(f"ended {killed} process{'es' * (killed > 1)} that an earlier run had left")
        check_space(settings.data_dir, settings.disk_floor_bytes)
        check_database(settings)
        check_histories(settings)
        check_ports(settings)
        settings.logs_dir.mkdir(parents=True, exist_ok=True)
        signing.create_keys(settings.keys_dir)
        try:
            life.start()
            stack.announce(life.up())
            yield life
        finally:
            with _undisturbed():
                stack.withdraw(settings)
                life.stop()
    finally:
        lock.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave half a stack behind."""
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(kind, signal.SIG_IGN) for kind in kinds]
    yield
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(*, as_json: bool = False) -> int:
    """Run the stack until Ctrl-C or SIGTERM; the exit code. 1, after one clear message, when it cannot run."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # also where a script's `&` has SIGINT ignored
        signal.signal(kind, _interrupt)
    try:
        _run(as_json=as_json)
    except KeyboardInterrupt:
        return 0
    except EverloopError as error:
        print(sentence(error, as_json=as_json), file=sys.stderr, flush=True)  # noqa: T201
        return 1
    except PermissionError as error:
        refused = CannotStart(
            f"{error.filename or 'a file of the data folder'} may not be read or written: {error.strerror}",
            hint=f"the data folder must belong to the user that runs Everloop, uid {os.getuid()}",
        )
        print(sentence(refused, as_json=as_json), file=sys.stderr, flush=True)  # noqa: T201
        return 1
    return 0


def _run(*, as_json: bool) -> None:
    started = time.monotonic()
    with running(configuration.load()) as life:
        login = (life.settings.keys_dir / "login.url").read_text().strip()
        seconds = round(time.monotonic() - started, 1)
        up = {"login_url": login, "seconds": seconds, **asdict(life.up())}
        ui = f"  Temporal UI: {up['temporal_ui_url']}" if up["temporal_ui_url"] else ""
        line = f"Everloop is ready ({seconds} s): {login}{ui}"
        print(json.dumps(up) if as_json else line, flush=True)  # noqa: T201
        life.mind()


if __name__ == "__main__":
    sys.exit(main(as_json="--json" in sys.argv))
