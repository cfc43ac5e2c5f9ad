"""What a user asks for. A spec is YAML, JSON or Python; an unknown field is an error that names it."""

from everloop.specs.approval import Gate
from everloop.specs.data import Column, ColumnReading, ColumnType, Source
from everloop.specs.drift import Also, Monitor, Retrain
from everloop.specs.features import Features, Selection
from everloop.specs.lifecycle import LifecycleSpec, Name, checked
from everloop.specs.metrics import HIGHER_IS_BETTER, METRICS, Task
from everloop.specs.predictions import Log
from everloop.specs.stages import FIRST_READ, FORKABLE, JOB_STAGES, LAST_STAGES, SKIPPABLE, STAGES, Stage
from everloop.specs.training import Decision, Split, Training, Validation

__all__ = [
    "FIRST_READ",
    "FORKABLE",
    "HIGHER_IS_BETTER",
    "JOB_STAGES",
    "LAST_STAGES",
    "METRICS",
    "SKIPPABLE",
    "STAGES",
    "Also",
    "Column",
    "ColumnReading",
    "ColumnType",
    "Decision",
    "Features",
    "Gate",
    "LifecycleSpec",
    "Log",
    "Monitor",
    "Name",
    "Retrain",
    "Selection",
    "Source",
    "Split",
    "Stage",
    "Task",
    "Training",
    "Validation",
    "checked",
]
