"""The environment, read once and here only.

Every setting has a default that works on one machine. Past one machine the same code runs with
other values of the four addresses: database, artifacts, Temporal, Dask.
"""

import getpass
import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from everloop.errors import Invalid

API, SERVE, SCHEDULER, TEMPORAL, TEMPORAL_UI, UNGUARDED_UI = range(6)  # offsets from the port base
DEFAULT_PORT_BASE = 7700
PRIVATE = 0o077
"""The umask of every process that writes into the data folder."""
DISK_FLOOR_MIB = 256
DEFAULT_SLOTS = 2
"""Of a small machine."""
CHECKPOINT_SECONDS = 30.0
AWAY_SECONDS = 20.0
NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")


@dataclass(frozen=True)
class Settings:
    """Where this process finds the others. Paths are absolute; addresses are on loopback by default."""

    data_dir: Path
    port_base: int = DEFAULT_PORT_BASE
    database_url: str = ""
    artifacts_url: str = ""
    temporal_address: str = ""
    temporal_namespace: str = "default"
    dask_address: str = ""
    serve_workers: int = 1
    """Processes that answer predictions, on one port."""
    dask_ca: str = ""
    dask_cert: str = ""
    dask_key: str = ""
    """PEM files for Dask's TLS: who is trusted, our certificate, its key. Empty: `keys_dir/dask.pem` for all three."""
    node: str = ""
    """This host's name in the pool, and the end of its devices' names. Empty: one machine, they need none."""
    slots: int = 0
    """Devices of this machine, each for one job of `slot_cores`. 0: by the machine, see workers/devices."""
    slot_cores: int = 1
    """Threads of a job that asks for none."""
    devices: str = "auto"
    """What the machine's devices are: `auto` (GPUs where NVML finds any, else cores), `cpu`, `nvml`, or GPUs that are
    not there, `sim:4x16000`."""
    disk_floor_mib: int = DISK_FLOOR_MIB
    """MiB that stay free on the disk: below this no job starts and no artifact is written, so that the
    databases beside them go on."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """How much of a training at most is done again after its process was killed."""
    away_seconds: float = AWAY_SECONDS
    """How long a device may be away before what runs on it goes on on another one: a process that is started again
    takes less."""
    job_memory_mib: int = 0
    """MiB that a job's processes may hold together. 0: the machine's, less 1 GiB, by the number of slots."""
    metrics_port: int = 0
    """Where control answers Prometheus on loopback; 0: nowhere."""
    session: str = ""
    """Names one life of the whole stack; worker identities carry it, so a takeover knows the dead."""
    person: str = ""
    """Who the laptop's own user is; written on decisions."""
    user_code: str = "owner"
    """Who may submit a trainer of their own, which runs with the rights of Everloop's user: `owner` (`person` alone),
    `all` (whoever holds a key), `off` (nobody)."""

    def port(self, offset: int) -> int:
        return self.port_base + offset

    @cached_property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port(API)}"

    @cached_property
    def serve_url(self) -> str:
        return f"http://127.0.0.1:{self.port(SERVE)}"

    @cached_property
    def temporal_ui_url(self) -> str:
        return f"http://127.0.0.1:{self.port(TEMPORAL_UI)}"

    @cached_property
    def database(self) -> str:
        """SQLAlchemy URL of the store."""
        return self.database_url or f"sqlite:///{self.data_dir / 'everloop.db'}"

    @cached_property
    def artifacts(self) -> str:
        """Fsspec URL (or absolute path) of the artifact store."""
        return self.artifacts_url or str(self.data_dir / "artifacts")

    @cached_property
    def temporal(self) -> str:
        return self.temporal_address or f"127.0.0.1:{self.port(TEMPORAL)}"

    @cached_property
    def dask(self) -> str:
        return self.dask_address or f"tls://127.0.0.1:{self.port(SCHEDULER)}"

    @cached_property
    def logs_dir(self) -> Path:
        """Processes' logs, and under `jobs/` one log per stage attempt."""
        return self.data_dir / "logs"

    @cached_property
    def predictions_dir(self) -> Path:
        """The prediction log: `<project>/<model>/day=YYYY-MM-DD/*.jsonl`, by event time."""
        return self.data_dir / "predictions"

    @cached_property
    def scratch_dir(self) -> Path:
        """Job folders and slot locks: may be lost between jobs."""
        return self.data_dir / "scratch"

    @cached_property
    def checkpoints_dir(self) -> Path:
        """What unfinished trainings have learned: `<lifecycle>/<stage>/<question>/<token>/<step>`."""
        return self.scratch_dir / "checkpoints"

    @cached_property
    def has_store(self) -> bool:
        """Are artifacts on a store that every host reaches by a URL? Then what jobs must find again is there too."""
        return "://" in self.artifacts

    @cached_property
    def checkpoints_url(self) -> str:
        """`checkpoints_dir` of all hosts, where there is a store."""
        return f"{self.artifacts}/checkpoints"

    @cached_property
    def keys_dir(self) -> Path:
        """Private keys and local credentials, 0700: `signing.key`, `signing.pub`, `client.key`, `dask.pem`."""
        return self.data_dir / "keys"

    @cached_property
    def disk_floor_bytes(self) -> int:
        return self.disk_floor_mib << 20

    @cached_property
    def written(self) -> list[Path]:
        """The local folders that jobs and answers are written to."""
        local = [Path(self.artifacts)] if self.artifacts.startswith("/") else []
        return [self.data_dir, self.scratch_dir, self.predictions_dir, *local]

    def environment(self) -> dict[str, str]:
        """What a child process needs in its environment to read these settings again."""
        values = {
            "EVERLOOP_DATA_DIR": str(self.data_dir),
            "EVERLOOP_PORT_BASE": str(self.port_base),
            "EVERLOOP_DATABASE_URL": self.database_url,
            "EVERLOOP_ARTIFACTS_URL": self.artifacts_url,
            "EVERLOOP_TEMPORAL_ADDRESS": self.temporal_address,
            "EVERLOOP_TEMPORAL_NAMESPACE": self.temporal_namespace,
            "EVERLOOP_DASK_ADDRESS": self.dask_address,
            "EVERLOOP_DASK_CA": self.dask_ca,
            "EVERLOOP_DASK_CERT": self.dask_cert,
            "EVERLOOP_DASK_KEY": self.dask_key,
            "EVERLOOP_NODE": self.node,
            "EVERLOOP_SERVE_WORKERS": str(self.serve_workers),
            "EVERLOOP_SLOTS": str(self.slots or ""),
            "EVERLOOP_SLOT_CORES": str(self.slot_cores),
            "EVERLOOP_DEVICES": "" if self.devices == "auto" else self.devices,
            "EVERLOOP_DISK_FLOOR_MIB": str(self.disk_floor_mib),
            "EVERLOOP_CHECKPOINT_SECONDS": f"{self.checkpoint_seconds:g}",
            "EVERLOOP_AWAY_SECONDS": f"{self.away_seconds:g}",
            "EVERLOOP_JOB_MEMORY_MIB": str(self.job_memory_mib or ""),
            "EVERLOOP_METRICS_PORT": str(self.metrics_port or ""),
            "EVERLOOP_SESSION": self.session,
            "EVERLOOP_PERSON": self.person,
            "EVERLOOP_USER_CODE": self.user_code,
        }
        return {name: value for name, value in values.items() if value}


def _integer(name: str, default: int, allowed: range) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) not in allowed:
        raise Invalid(f"{name} must be a whole number from {allowed[0]} to {allowed[-1]}, not {text!r}", field=name)
    return int(text)


def _seconds(name: str, default: float, least: float, most: float) -> float:
    text = os.environ.get(name, "").strip()
    try:
        value = float(text or default)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise Invalid(f"{name} must be a number of seconds from {least:g} to {most:g}, not {text!r}", field=name)
    return value


def _one_of(name: str, words: tuple[str, ...]) -> str:
    """The variable's word; the first one where nothing is said."""
    word = os.environ.get(name, "").strip() or words[0]
    if word not in words:
        raise Invalid(f"{name} must be one of {', '.join(words)}, not {word!r}", field=name)
    return word


def _devices() -> str:
    """Which; what is simulated is told apart in workers/devices/sim.py."""
    name = "EVERLOOP_DEVICES"
    said = os.environ.get(name, "").strip() or "auto"
    if said not in ("auto", "cpu", "nvml") and not said.startswith("sim:"):
        message = f"{name} must be auto, cpu, nvml, or sim:4x16000 (GPUs that are not there), not {said!r}"
        raise Invalid(message, field=name)
    return said


def _node() -> str:
    name = "EVERLOOP_NODE"
    said = os.environ.get(name, "").strip()
    if said and not NODE.fullmatch(said):
        raise Invalid(f"{name} must be of letters, digits, dot and dash, at most 63, not {said!r}", field=name)
    return said


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid without a name
        return "local"


def load(**overrides: object) -> Settings:
    """The settings of this process: defaults, then `EVERLOOP_*`, then *overrides* that are not None.

    Raises `Invalid` with the name of a variable that cannot be read.
    """
    env = os.environ
    values: dict[str, object] = {
        "data_dir": Path(env.get("EVERLOOP_DATA_DIR") or Path.home() / ".everloop"),
        "port_base": _integer("EVERLOOP_PORT_BASE", DEFAULT_PORT_BASE, range(1, 65531)),
        "database_url": env.get("EVERLOOP_DATABASE_URL", ""),
        "artifacts_url": env.get("EVERLOOP_ARTIFACTS_URL", ""),
        "temporal_address": env.get("EVERLOOP_TEMPORAL_ADDRESS", ""),
        "temporal_namespace": env.get("EVERLOOP_TEMPORAL_NAMESPACE") or "default",
        "dask_address": env.get("EVERLOOP_DASK_ADDRESS", ""),
        "dask_ca": env.get("EVERLOOP_DASK_CA", ""),
        "dask_cert": env.get("EVERLOOP_DASK_CERT", ""),
        "dask_key": env.get("EVERLOOP_DASK_KEY", ""),
        "node": _node(),
        "serve_workers": _integer("EVERLOOP_SERVE_WORKERS", 1, range(1, 65)),
        "slots": _integer("EVERLOOP_SLOTS", 0, range(1025)),
        "slot_cores": _integer("EVERLOOP_SLOT_CORES", 1, range(1, 1025)),
        "devices": _devices(),
        "disk_floor_mib": _integer("EVERLOOP_DISK_FLOOR_MIB", DISK_FLOOR_MIB, range(1 << 20)),
        "checkpoint_seconds": _seconds("EVERLOOP_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS, 0, 86_400),
        "away_seconds": _seconds("EVERLOOP_AWAY_SECONDS", AWAY_SECONDS, 1, 86_400),
        "job_memory_mib": _integer("EVERLOOP_JOB_MEMORY_MIB", 0, range(1 << 30)),
        "metrics_port": _integer("EVERLOOP_METRICS_PORT", 0, range(65536)),
        "session": env.get("EVERLOOP_SESSION") or "manual",
        "person": env.get("EVERLOOP_PERSON") or _user(),
        "user_code": _one_of("EVERLOOP_USER_CODE", ("owner", "all", "off")),
    }
    values |= {name: value for name, value in overrides.items() if value is not None}
    values["data_dir"] = Path(str(values["data_dir"])).expanduser().absolute()
    return Settings(**values)  # type: ignore[arg-type]
