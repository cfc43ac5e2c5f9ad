"""What `everloop up` runs: one parent that starts every process of the stack, minds them, and ends them.

Each child is the process that production uses, with a log file of its own (never a pipe: a full pipe hangs
the writer), in a process group of its own (Ctrl-C reaches only the parent, which ends them in order), and told
by the kernel to die with the parent, so that a kill -9 of the parent leaves nothing behind.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import IO

from sqlmodel import select
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

from everloop import isolation, logs, names, signing, stack
from everloop import settings as configuration
from everloop.errors import EverloopError, sentence
from everloop.settings import PRIVATE, SCHEDULER, TEMPORAL, TEMPORAL_UI, UNGUARDED_UI, Settings
from everloop.store import DeviceRow, Store
from workers import connect, devices, takeover, temporal
from workers.dev import checks
from workers.dev.children import Child, apart, end, how, load, log_of, pause
from workers.temporal import CannotStart, Server

READY_SECONDS = 90.0
"""A start that takes longer has gone wrong (usual: under 6 s)."""
STEADY_SECONDS = 10.0
"""A child that lives this long has started well: its next end counts as the first again."""
GIVE_UP_AFTER = 5
"""Ends in a row, each soon after its start, after which the stack does not come up. One that is up stays up."""
WORKERS = ("control", "compute")
"""Children that run activities."""
UNGUARDED = (
    "this kernel cannot say who connects to Temporal (it takes Linux 5.14 and seccomp): its UI is off, and every "
    "user of this machine can reach its port"
)


@dataclass
class Stack:
    """The processes of one life of the stack."""

    settings: Settings
    children: list[Child] = field(default_factory=list)
    server: Server | None = None
    is_up: bool = False
    """It has been ready: from now on nothing that ends takes the rest with it."""
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: T201

    def start(self) -> None:
        """Start everything and wait until it works. Raises `CannotStart` with what to do."""
        settings = self.settings
        self.server = self._temporal()
        load()  # where Temporal is our own, that was done while it started
        if not settings.dask_address:  # else somebody else's cluster, with workers of its own
            self._launch(Child("scheduler", "workers", ("scheduler",)))
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
        for name in [] if settings.dask_address else apart(lambda: devices.slot_names(settings)):
            self._launch(Child(name, "workers", ("slot", name)))
        self._wait_for(self.missing_slots)
        self.is_up = True

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
        """Start again what ends; returns never. Raises `CannotStart` when Temporal's server does not start again."""
        while True:
            self.tend()
            time.sleep(0.2)

    def tend(self) -> None:
        """One look at everything."""
        for log in self.settings.logs_dir.glob("*.log"):
            logs.bound(log)
        if self.server is not None and self.server.process.poll() is not None:
            self.say(f"the Temporal server ended ({how(self.server.process.returncode)}): starting it again")
            self.server.stop()
            self.server = self._temporal()
        for child in self.children:
            self._tend(child)

    def _tend(self, child: Child) -> None:
        if child.alive():
            return
        now = time.monotonic()
        if child.process is not None:
            quick = now - child.started_at < STEADY_SECONDS
            child.quick_ends = child.quick_ends + 1 if quick else 1
            ended = how(child.process.exitcode)
            child.process = None
            self._has_ended(child, ended, now)
        if now >= child.again_at:
            self._take_over_from(child)
            child.start(self.settings)

    def _has_ended(self, child: Child, ended: str, now: float) -> None:
        """Say so, and when it is started again. Raises `CannotStart` when the stack does not come up for it."""
        log = log_of(self.settings, child.name)
        wait = pause(child.quick_ends - 1)
        child.again_at = now + wait
        if child.quick_ends == GIVE_UP_AFTER:
            often = f"{child.name} ended {GIVE_UP_AFTER} times soon after its start ({ended})."
            words = f"Its last words:\n{logs.last_words(log)}"
            if not self.is_up:
                raise CannotStart(f"{often} {words}", hint=f"the whole log is {log}")
            self.say(f"{often} Everything else goes on, and it is tried again for as long as that. {words}")
        self.say(f"{child.name} ended ({ended}): starting it again in {wait:g} s; its log is {log}")

    def _take_over_from(self, child: Child) -> None:
        """What a dead worker was doing goes on with the next one; without this it would wait for its timeout."""
        if child.name not in WORKERS:
            return
        try:
            self._take_over(wait_seconds=2, jobs_too=child.name == "compute")
        except EverloopError as error:  # Temporal is away too: the timeout does it
            self.say(f"could not take over from {child.name}: {error}")

    def stop(self) -> None:
        """End everything in order: who gives work first, who keeps it last. Leaves nothing."""
        last = [child for child in self.children if child.args[:1] in (("slot",), ("scheduler",))]
        first = [child for child in self.children if child not in last]
        for group in (first, last):
            end([child.process for child in group if child.process])
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
            checks.temporal_file(settings),
            settings.port(TEMPORAL),
            settings.port(UNGUARDED_UI),
            log_of(settings, "temporal"),
            namespace=settings.temporal_namespace,
            wait=_loading_meanwhile,
        )

    def _take_over(self, *, wait_seconds: float = READY_SECONDS, jobs_too: bool = True) -> None:
        """What the dead were doing when they died goes on now, not after a heartbeat timeout."""
        settings = self.settings

        async def take_over() -> int:
            client = await connect.connect(settings, wait_seconds=wait_seconds)
            return await takeover.take_over(client, settings, jobs_too=jobs_too)

        taken = apart(lambda: asyncio.run(take_over()))
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
        return waiting or apart(lambda: asyncio.run(_missing_workers(settings)))

    def missing_slots(self) -> list[str]:
        """Slots that the pool does not know of: a job could not be given to them."""
        settings = self.settings
        return [] if settings.dask_address else apart(lambda: _missing_slots(settings))


def _loading_meanwhile(ready: Callable[[], None]) -> None:
    """Temporal takes a second to start: what the others share is loaded on the other core."""
    load()
    apart(ready)


def _database(settings: Settings) -> None:
    """Look at it, and migrate it before there are histories: see `check_histories`."""
    checks.check_database(settings)
    checks.check_histories(settings)
    store = Store(settings.database)
    store.migrate()
    store.close()


def _missing_slots(settings: Settings) -> list[str]:
    store = Store(settings.database)
    with store.read() as session:
        present = set(session.exec(select(DeviceRow.name).where(DeviceRow.present)))
    store.close()
    return [name for name in devices.slot_names(settings) if name not in present]


async def _missing_workers(settings: Settings) -> list[str]:
    client = await connect.connect(settings)
    waiting = []
    for name, queue, kind in (
        ("control", names.CONTROL, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW),
        ("compute", names.COMPUTE, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY),
    ):
        answer = await client.workflow_service.describe_task_queue(
            DescribeTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind)
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
    os.environ.update(settings.environment())  # for the Temporal server, which inherits it
    life = Stack(settings)
    try:
        if opened := stack.close_to_others(settings):
            life.say(f"{opened} in {settings.data_dir} could be read by other users: only you can now")
        stack.remember_session(settings)
        killed = clear_leftovers(settings)
        if killed:
            life.say(f"ended {killed} process{'es' * (killed > 1)} that an earlier run had left")
        checks.check_space(settings.data_dir, settings.disk_floor_bytes)
        checks.check_ports(settings)
        apart(lambda: _database(settings))
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
        if life.settings.devices.startswith("sim:"):
            life.say(isolation.BANNER)
        print(json.dumps(up) if as_json else line, flush=True)  # noqa: T201
        life.mind()
