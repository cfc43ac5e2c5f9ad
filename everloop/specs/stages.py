"""The stages of a lifecycle, and what may be asked of each."""

from typing import Literal

Stage = Literal[
    "snapshot",
    "validate",
    "prepare",
    "train",
    "evaluate",
    "refit",
    "export",
    "register",
    "approve",
    "release",
    "monitor",
]

STAGES: tuple[Stage, ...] = Stage.__args__  # type: ignore[attr-defined]  # typing keeps them here

SKIPPABLE: frozenset[Stage] = frozenset({"validate", "monitor"})
"""Stages that a lifecycle can do without: the others produce what the next one needs."""

LAST_STAGES = STAGES[: STAGES.index("approve")]
"""Stages after which a lifecycle may be told to end: from the gate on, people and traffic are in it."""

FORKABLE = STAGES[1 : STAGES.index("export") + 1]
"""Stages from which a fork may begin: what is before them is kept."""

FIRST_READ: dict[str, Stage] = {
    "features": "validate",
    "split": "prepare",
    "trainer": "train",
    "params": "train",
    "inputs": "train",
    "training": "train",
    "search": "train",
    "validation": "train",
    "calibration": "train",
    "decision": "train",
    "class_weight": "train",
    "metric": "evaluate",
    **dict.fromkeys(("resources", "queue", "priority", "preemptible", "max_runtime"), "monitor"),
    "model_mib": "export",
    "latency_ms": "export",
    "gate": "approve",
    "monitor": "monitor",
    "retrain": "monitor",
    "until": "monitor",
}
"""The first stage that reads a field of the spec; of those that are not named here it is the first of all."""

JOB_STAGES: frozenset[Stage] = frozenset({"snapshot", "validate", "prepare", "train", "evaluate", "refit", "export"})
"""Stages that run as a job on a slot, and so leave a log."""
