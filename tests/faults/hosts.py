"""A cluster that is not ours, of two hosts: each a data folder and, where we may, a network and mounts of its own.

The control plane is `everloop up` with Postgres, S3 and the address of a Dask scheduler that somebody else has started
(`dask scheduler`, as it is in a stock installation). A host sees neither the control plane's disk nor the other's.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from everloop.settings import Settings
from tests.conftest import free_port_base
from workers import cluster

LOOPBACK = "127.0.0.1"


@dataclass
class Network:
    """A bridge between network namespaces, or nothing but loopback where this user may not make one."""

    number: int = field(default_factory=lambda: os.getpid() % 250)
    apart: bool = False

    @property
    def address(self) -> str:
        return f"10.213.{self.number}.1" if self.apart else LOOPBACK

    @property
    def bridge(self) -> str:
        return f"elb{self.number}"

    def make(self) -> None:
        if os.getuid() or not shutil.which("ip") or not shutil.which("unshare"):
            return
        try:
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("addr", "add", f"10.213.{self.number}.1/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
        except subprocess.CalledProcessError:
            self.remove()
            return
        self.apart = True

    def add(self, host: int) -> str:
        """A namespace for the *host*th host; its name."""
        name, ours, theirs = f"elh{self.number}-{host}", f"elv{self.number}-{host}", f"elw{self.number}-{host}"
        _ip("netns", "add", name)
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs)
        _ip("link", "set", ours, "master", self.bridge, "up")
        _ip("link", "set", theirs, "netns", name)
        _ip("-n", name, "link", "set", theirs, "name", "eth0")
        _ip("-n", name, "addr", "add", f"10.213.{self.number}.{host + 2}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        return name

    def remove(self) -> None:
        for host in range(2):
            with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
                _ip("netns", "del", f"elh{self.number}-{host}")
        with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
            _ip("link", "del", self.bridge)


def _ip(*words: str) -> None:
    subprocess.run([shutil.which("ip") or "ip", *words], check=True, capture_output=True)


@dataclass
class Host:
    """One of them: `everloop worker node` in a folder of its own."""

    name: str
    settings: Settings
    namespace: str
    unseen: tuple[Path, ...]
    """Folders of others, which are empty here."""
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.settings.logs_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "everloop.cli", "worker", "node"]
        if self.namespace:
            covered = " && ".join(f"mount -t tmpfs none '{path}'" for path in self.unseen)
            inner = f'{covered} && exec "$@"'
            command = ["ip", "netns", "exec", self.namespace, "unshare", "-m", "sh", "-c", inner, "sh", *command]
        with (self.settings.logs_dir / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )

    def running(self) -> list[int]:
        """Pids of all that carries its data folder."""
        wanted, found = f"EVERLOOP_DATA_DIR={self.settings.data_dir}".encode(), []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                found += [int(entry.parent.name)] if wanted in entry.read_bytes().split(b"\0") else []
        return found

    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("EVERLOOP_")}
        return ours | dict(self.environment) | self.settings.environment()

    def kill(self) -> int:
        """kill -9 of all that runs there, as if its power were cut. How many processes that were."""
        found = self.running()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process:
            self.process.kill()
            self.process.wait()
        return len(found)


@dataclass
class Cluster:
    """The scheduler, the hosts, and what the control plane has to be told."""

    environment: dict[str, str]
    hosts: dict[str, Host]
    apart: bool


@contextlib.contextmanager
def cluster_of_two(folder: Path, control: Path, store: Mapping[str, str], network: Network) -> Iterator[Cluster]:
    """*control*: the control plane's data folder. *store*: how to reach the artifacts."""
    tls = cluster.create_certificates(folder / "tls")
    port = free_port_base()
    told = dict(store) | {
        "EVERLOOP_ARTIFACTS_URL": "s3://everloop/artifacts",
        "EVERLOOP_DASK_ADDRESS": f"tls://{network.address}:{port}",
        "EVERLOOP_DASK_CA": str(tls),
        "EVERLOOP_DASK_CERT": str(tls),
    }
    scheduler = _scheduler(folder, network.address, port, tls)
    roots = {name: folder / name for name in ("alpha", "bravo")}
    hosts = {}
    for number, (name, root) in enumerate(roots.items()):
        for each in (root, control):
            each.mkdir(parents=True, exist_ok=True)
        settings = Settings(
            data_dir=root, artifacts_url=told["EVERLOOP_ARTIFACTS_URL"], dask_address=told["EVERLOOP_DASK_ADDRESS"],
            dask_ca=str(tls), dask_cert=str(tls), node=name, slots=2, session=name,
        )  # fmt: skip
        others = tuple(each for each in (*roots.values(), control) if each != root)
        namespace = network.add(number) if network.apart else ""
        hosts[name] = Host(name, settings, namespace, others, store)
    made = Cluster(told, hosts, network.apart)
    try:
        yield made
    finally:
        for host in hosts.values():
            host.kill()
        scheduler.terminate()
        scheduler.wait(20)


def _scheduler(folder: Path, address: str, port: int, tls: Path) -> subprocess.Popen[bytes]:
    """Somebody else's: Dask's own command, with Dask's own settings."""
    command = [
        sys.executable, "-m", "distributed.cli.dask_scheduler", "--protocol", "tls", "--host", address,
        "--port", str(port), "--tls-ca-file", str(tls), "--tls-cert", str(tls), "--tls-key", str(tls), "--no-dashboard",
    ]  # fmt: skip
    with (folder / "scheduler.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)


def until(look: object, seconds: float, what: str) -> object:
    """What *look* returns, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found
