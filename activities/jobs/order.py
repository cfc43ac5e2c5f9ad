"""What crosses from the compute worker to a device and back: plain values, to another process, maybe another host."""

from typing import Any, NotRequired, TypedDict


class Order(TypedDict):
    """What the compute worker asks for. Plain values only: they cross to another process, maybe another host."""

    topic: str
    function: str
    root: str
    """The package that holds the function: `activities.compute`."""
    request: dict[str, Any]
    digest: str
    """Of the function and the request without its slot: a kept result must be of the same question."""
    token: int
    rank: int
    device: str
    live: tuple[int, ...]
    """Tokens of the leases that are live on the device."""
    whole: bool
    """It has the whole device, a GPU, to itself."""
    folder: str
    """`scratch/jobs/<run id>/<activity id>`."""
    log: str
    logs_dir: str
    slots_dir: str
    environment: dict[str, str]
    artifacts: str
    predictions_dir: str
    lent: NotRequired[str]
    """URL of copies of what it reads below `predictions_dir`, see lent.py."""
    grace_seconds: float
    checkpoints: str
    """`scratch/checkpoints/<chain>/<stage>/<question>`: outlives tokens and runs."""
    depot: NotRequired[str]
    """Their URL on the artifact store, where that is no folder of this machine."""
    checkpoint_seconds: float
    lease: dict[str, Any]
    """`records.Lease`."""
    floor_bytes: int
    """What stays free on the disk: below this no job starts."""
    memory_bytes: int
    """What the job's processes may hold together; 0: this machine's share of a slot, one of `slots`."""
    slots: int
    data_dir: NotRequired[str]
    """Of the compute worker: the folders above are below it."""
    disk: NotRequired[str]
    """Which disk that is on, see home.py."""
    away: NotRequired[bool]
    """It runs where that disk is not, in folders of that host."""
    gang: NotRequired[dict[str, Any]]
    """Of a rank among several: fields of `gang.Gang`."""


class Outcome(TypedDict, total=False):
    """How it ended: exactly one of `result`, `error`, `crash`, `unwanted`."""

    result: dict[str, Any]
    error: dict[str, str]
    """`error` (class name), `message`, `field`, `hint`."""
    crash: str
    """What killed the job: `SIGSEGV`."""
    unwanted: bool
    crashes: int
    ended_at: float
    """By this machine's clock: in a gang the first one that ended badly is to blame."""
    seconds: float
    log: str
    kept: bool
    resumed: dict[str, Any] | None
    """`records.Resumed`."""
    artifacts: list[dict[str, Any]]
    used: dict[str, int]
    """`Memory.measured`."""
