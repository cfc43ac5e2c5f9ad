"""Every string that Temporal, Dask and the disk keep: queues, ids, search attributes, activity names.

Whoever must start or call something it may not import names it from here.
"""

from datetime import datetime

from temporalio.common import SearchAttributeKey

# Task queues: control runs workflows and light activities, compute submits jobs to Dask.
CONTROL = "everloop-control"
COMPUTE = "everloop-compute"

# Workflow types.
LIFECYCLE = "everloop.Lifecycle"
APPROVAL = "everloop.Approval"
RELEASE = "everloop.Release"
ROLL_BACK = "everloop.RollBack"
DRIFT_CHECK = "everloop.DriftCheck"
GPU_POOL = "everloop.GpuPool"
POOL_ORDER = "everloop.PoolOrder"
SEARCH = "everloop.Search"
SCORE = "everloop.Score"

# The activity whose inputs are the journal: `project` finds it in a history by this name.
JOURNAL_APPEND = "everloop.journal.append"

# Signals, updates and queries that cross a process boundary.
LEASE_OFFERED = "lease_offered"  # pool -> holder
LEASE_NOTICED = "lease_noticed"  # pool -> holder: let go
GATE_OPENED = "gate_opened"  # Approval -> its lifecycle
POOL_WAKE = "wake"  # anyone -> pool
POOL_INVENTORY = "inventory"  # compute -> pool
DECIDE = "decide"  # API -> Approval, signed
ATTEND = "attend"  # API -> Lifecycle: retry, skip, abort a parked stage
PAUSE = "pause"  # API -> Lifecycle: hold still, or go on
SCORE_PROGRESS = "progress"  # API -> Score, as a query
SEARCH_ORDER = "search"  # API -> Lifecycle, as an update, and Lifecycle -> Search, as a signal: take the best so far

A_RESUME = "a resume"
"""How the wait of a paused lifecycle begins."""

A_FREE_SLOT = "a free slot"
BUDGET_OF = "the budget of"  # so begins the sentence of a budget that is spent
"""How the wait of a lifecycle begins that waits for a lease."""

MOST_CHARACTERS = 256  # of a name that comes in by a signal or an update

DEFAULT_POOL = "default"
LIGHT_SUFFIX = ":light"  # how compute marks, in the inventory, the slot that is reserved for checks

PROJECT = SearchAttributeKey.for_keyword("EverloopProject")
MODEL = SearchAttributeKey.for_keyword("EverloopModel")
STAGE = SearchAttributeKey.for_keyword("EverloopStage")
VERSION = SearchAttributeKey.for_keyword("EverloopVersion")
TRIGGER = SearchAttributeKey.for_keyword("EverloopTrigger")
QUEUE = SearchAttributeKey.for_keyword("EverloopQueue")
TAGS = SearchAttributeKey.for_keyword_list("EverloopTags")
NEEDS_APPROVAL = SearchAttributeKey.for_bool("EverloopNeedsApproval")
NEEDS_ATTENTION = SearchAttributeKey.for_bool("EverloopNeedsAttention")
DRIFT_SHARE = SearchAttributeKey.for_float("EverloopDriftShare")
DEADLINE = SearchAttributeKey.for_datetime("EverloopDeadline")
SEARCH_ATTRIBUTES = (
    PROJECT,
    MODEL,
    STAGE,
    VERSION,
    TRIGGER,
    QUEUE,
    TAGS,
    NEEDS_APPROVAL,
    NEEDS_ATTENTION,
    DRIFT_SHARE,
    DEADLINE,
)


MONITOR = "monitor"
"""Who asks for a retraining after drift."""


def score_id(project: str, model: str, key: str) -> str:
    """The id of the workflow that scores a file."""
    return f"score/{project}/{model}/{key}"


def approval_id(lifecycle: str) -> str:
    """Workflow id of the gate of *lifecycle*."""
    return f"{lifecycle}/approval"


OF_SEARCH = "/search"


def search_id(lifecycle: str) -> str:
    """Workflow id of the search of *lifecycle*."""
    return f"{lifecycle}{OF_SEARCH}"


def lifecycle_of(workflow_id: str) -> str:
    """The lifecycle that a holder of leases works for: itself, or the one whose search it is."""
    return workflow_id.removesuffix(OF_SEARCH)


def release_id(project: str, model: str) -> str:
    """Workflow id of the one rollout that a model may have at a time."""
    return f"release/{project}/{model}"


def monitor_id(project: str, model: str) -> str:
    """Schedule id of a model's monitor; its checks are `<this>-check-<time>`."""
    return f"monitor/{project}/{model}"


def retrain_id(project: str, model: str, window_start: datetime, window_end: datetime | None = None) -> str:
    """Lifecycle id of the one retraining that a window of a model may cause.

    Without *window_end*: as it was named before windows could change their length.
    """
    until = f"-{window_end:%Y%m%dT%H%M%SZ}" if window_end else ""
    return f"retrain/{project}/{model}/{window_start:%Y%m%dT%H%M%SZ}{until}"


def job_log(job: str, attempt: int, rank: int = 0) -> str:
    """Below the folder of logs: of an attempt of the job `<run id>/<activity id>`, and of a rank of its gang."""
    return f"jobs/{job}/{attempt}.log" if rank == 0 else f"jobs/{job}/{attempt}.{rank}.log"


def metrics_of(job: str, rank: int = 0) -> str:
    """The key of the steps that a rank of a job has reported."""
    return job if rank == 0 else f"{job}#{rank}"


def pool_id(pool: str) -> str:
    """Workflow id of the decision maker of a device pool."""
    return f"pool/{pool}"


def pool_order_id(pool: str, unique: str) -> str:
    """Workflow id of one order of an operator to a pool."""
    return f"order/{pool}/{unique}"
