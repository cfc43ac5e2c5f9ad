"""The Dask processes: one scheduler, and one worker per device, which runs as many jobs as its device has room for.

TLS with one certificate per deployment: whoever holds it runs code. Both die with their parent, and end
within two seconds of SIGTERM. When the scheduler is lost a slot ends with 1, so that its launcher starts it again.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import dask
import distributed
from distributed import Scheduler, Worker

from activities.jobs import slot
from activities.jobs.security import security
from activities.jobs.slot import GRACE_SECONDS
from everloop import logs
from everloop.children import die_with
from everloop.errors import Invalid
from everloop.settings import Settings
from workers import devices, process

log = logging.getLogger(__name__)

CERTIFICATE_DAYS = 3650
CLOSE_SECONDS = 1.5
START_SECONDS = 15.0
"""How long a Dask worker may take to start (usual: 2 s) before its slot starts all over."""
KEPT_SECONDS = 48 * 3600.0
"""A finished job's folder outlives every attempt of its activity; without it the job would only run again."""
CHECKPOINTS_SECONDS = 14 * 86_400.0
"""A stage's checkpoints go with its result, those of a lifecycle that ended before with its run's scratch: this is
for those that no archive names."""
TIDY_SECONDS = 3600.0
AWAKE_SECONDS, ASLEEP_SECONDS = 1.0, 20.0
"""How often the scheduler looks at the clock, and the gap between two looks that only a sleep can make."""
LOGS_SECONDS = 60.0
AGAIN_SECONDS = 0.1
"""Between a Dask worker's death and the start of the next."""
CONFIG = {
    "distributed.scheduler.allowed-failures": 0,  # Temporal retries, Dask never
    "distributed.scheduler.work-stealing": False,  # a job stays on the device of its lease
    "distributed.worker.profile.enabled": False,  # idle processes should be idle
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.log-length": 100,  # what is kept for a dashboard that nobody looks at
    "distributed.admin.low-level-log-length": 100,
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.comm.timeouts.connect": "5s",
    "distributed.scheduler.http.routes": [],  # an open port tells every user of the machine what runs
    "distributed.worker.http.routes": [],
}


KEEPING = ("spans", "stealing")
"""Parts of Dask: one keeps a record of each job for ever, 5 KB in the scheduler; the other is off, see above."""


def create_certificates(folder: Path) -> Path:
    """`dask.pem` in *folder*: a key and its own certificate, readable by us alone. An existing one is left as it is."""
    path = folder / "dask.pem"
    if path.exists():
        return path
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    staged = folder / f"dask.pem.{os.getpid()}"
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target:
        target.write(_certificate())
    with contextlib.suppress(FileExistsError):
        os.link(staged, path)  # the first one wins, whole
    staged.unlink()
    return path


def _certificate() -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "everloop-dask")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("everloop-dask")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def scheduler_main(settings: Settings) -> None:
    """Run the Dask scheduler until told to stop."""
    _begin("scheduler", settings)
    asyncio.run(_scheduler(settings))


def slot_main(settings: Settings, name: str) -> None:
    """Run the Dask worker of the device *name* until told to stop; ends with 1 when the scheduler is lost."""
    _begin(name, settings)
    found = {device.name: device for device in devices.slots(settings)}
    if name not in found:
        raise Invalid(f"there is no device {name!r} here", field="name", hint=f"one of {', '.join(found)}")
    code = _kept_running(lambda: asyncio.run(_slot(settings, found[name])))
    _locks_free(settings.scratch_dir / "slots" / name)
    sys.exit(code)


def _kept_running(work: Callable[[], int]) -> int:
    """Run *work*, which returns an exit code, in a fork; again when that is killed. 0 when we are told to stop.

    What distributed's nanny does, without a second Python of 45 MB and its resource tracker: this process has loaded
    what the fork needs, does nothing but wait, and no thread runs in it.
    """
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    while True:
        pid = _forked(work, watched)
        while signal.sigwait(watched) == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
        else:
            _end(pid)
            return 0
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return code
        log.warning("the Dask worker was ended by signal %s: it is started again", -code)
        time.sleep(AGAIN_SECONDS)


def _forked(work: Callable[[], int], watched: Sequence[signal.Signals]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with(parent, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        code = work()
    except BaseException:  # nothing may unwind into the parent's code
        log.exception("the Dask worker failed")
    finally:
        os._exit(code)  # a half-closed worker may hold threads that never end


def _end(pid: int) -> None:
    """TERM, then KILL: a Dask worker without a scheduler may ignore the first."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 2 * CLOSE_SECONDS
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _begin(role: str, settings: Settings) -> None:
    process.die_with_parent()
    logs.log_lines(role, logging.WARNING)
    if not settings.dask_cert:
        create_certificates(settings.keys_dir)
    dask.config.set({**CONFIG, "distributed.scheduler.no-workers-timeout": f"{settings.away_seconds}s"})


def _without_what_keeps(extensions: dict[str, type]) -> dict[str, type]:
    return {name: kind for name, kind in extensions.items() if name not in KEEPING}


class LightSleeper(Scheduler):  # type: ignore[misc]  # Dask has no types for us
    """A scheduler that takes no worker for dead because it has slept itself: then nobody could be heard.

    Dask's own restarts every worker, and with it its job, whose last heartbeat is older than five minutes.
    """

    _looked = 0.0

    async def mind_the_clock(self) -> None:
        """For ever."""
        while True:
            self.notice_sleep()
            await asyncio.sleep(AWAKE_SECONDS)

    def notice_sleep(self) -> None:
        """By the wall clock, which also runs while the machine sleeps."""
        now = time.time()
        if self._looked and now - self._looked > ASLEEP_SECONDS:
            log.warning("slept for %.0f s: every worker gets the time to be heard again", now - self._looked)
            for worker in self.workers.values():
                worker.last_seen = now
        self._looked = now

    async def check_worker_ttl(self) -> None:
        self.notice_sleep()  # whichever of the two is called first after a sleep
        await super().check_worker_ttl()


async def _scheduler(settings: Settings) -> None:
    stop = process.told_to_stop()
    address = urlsplit(settings.dask)
    scheduler = LightSleeper(
        host=address.hostname,
        port=address.port,
        protocol=address.scheme,
        security=security(settings),
        dashboard=False,
        dashboard_address=f"{address.hostname}:0",  # it cannot be left out; it has no routes
        extensions=_without_what_keeps(distributed.scheduler.DEFAULT_EXTENSIONS),
    )
    await scheduler
    await process.first_of(scheduler.mind_the_clock(), stop.wait())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(scheduler.close(), CLOSE_SECONDS)
    os._exit(0)


async def _slot(settings: Settings, device: devices.Device) -> int:
    stop = process.told_to_stop()
    scratch = settings.scratch_dir / "dask"
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ.update(device.environment)
    worker = Worker(
        settings.dask,
        name=device.name,
        nthreads=device.threads,
        resources={"slot": device.threads, **device.amounts} | ({"light": 1} if device.light else {}),
        extensions=_without_what_keeps(distributed.worker.DEFAULT_EXTENSIONS),
        memory_limit=0,  # jobs are other processes, with limits of their own: nothing large is ever in this one
        dashboard=False,
        **_on_loopback(settings),
        security=security(settings),
        local_directory=str(scratch),
        plugins=devices.find(settings).plugins(device),
        death_timeout=f"{START_SECONDS}s",
        startup_information={devices.NODE: lambda _: settings.node},
    )
    try:
        await process.first_of(_started(worker), stop.wait())
        await process.first_of(_lost(worker), stop.wait(), _tidied(settings))
    finally:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(worker.close(timeout=CLOSE_SECONDS / 2), CLOSE_SECONDS)
    return 0 if stop.is_set() else 1


def _on_loopback(settings: Settings) -> dict[str, str]:
    """Where a slot listens: on loopback, when its scheduler does."""
    host = urlsplit(settings.dask).hostname or ""
    is_loopback = host == "localhost" or (host.replace(".", "").isdigit() and ip_address(host).is_loopback)
    return {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"} if is_loopback else {}


async def _tidied(settings: Settings) -> None:
    """For ever: remove the folders of old jobs, `<run id>/<activity id>`, and the oldest logs beyond their limit."""
    while True:
        await asyncio.to_thread(tidy, settings.scratch_dir / "jobs", time.time() - KEPT_SECONDS)
        await asyncio.to_thread(tidy, settings.checkpoints_dir, time.time() - CHECKPOINTS_SECONDS)
        await asyncio.to_thread(slot.remove_old, settings.scratch_dir / "slots", time.time() - KEPT_SECONDS)
        for _ in range(int(TIDY_SECONDS / LOGS_SECONDS)):
            await asyncio.to_thread(logs.bound_all, settings.logs_dir / "jobs")
            await asyncio.sleep(LOGS_SECONDS)


def tidy(jobs: Path, before: float) -> None:
    """Remove each run's folder below *jobs* in which nothing has changed since *before* (seconds since 1970)."""
    for run in jobs.glob("*"):
        with contextlib.suppress(OSError):  # another slot may tidy too
            if max(path.stat().st_mtime for path in (run, *run.rglob("*"))) < before:
                shutil.rmtree(run)


async def _started(worker: Worker) -> None:
    await worker


async def _lost(worker: Worker) -> None:
    """Until the worker has closed itself: it does when the scheduler is gone."""
    await worker.finished()


def _locks_free(folder: Path) -> None:
    """Until the last jobs of the device are gone: who sees us end may count on it."""
    deadline = time.monotonic() + GRACE_SECONDS + 1
    while held := [path.name for path in folder.glob(f"*{slot.SUFFIX}") if slot.is_held(path)]:
        if time.monotonic() > deadline:
            log.warning("jobs still hold %s", ", ".join(held))
            return
        time.sleep(0.05)
