"""Versions, and the one that answers."""

from datetime import datetime

from everloop.records.data import Snapshot
from everloop.records.evaluation import Evaluation
from everloop.records.export import Exported
from everloop.records.record import Blob, Record
from everloop.records.training import Refitted
from everloop.specs import Task


class Version(Record):
    """A registered model version. Numbers are dense per model, one per lifecycle run."""

    project: str
    model: str
    number: int
    task: Task
    lifecycle: str
    model_digest: str
    """SHA-256 of the ONNX bytes."""
    exported: Exported
    refitted: Refitted
    evaluation: Evaluation
    snapshot: Snapshot
    registered_at: datetime


class Champion(Record):
    """The version that answers now, as a challenger needs it."""

    version: int
    model_digest: str
    model: Blob
    signature: Blob
    seen: Blob
    """npz: `hashes` uint64 of the rows it learned from, `reading` JSON of how their columns were read."""
    trained_until: datetime | None = None
    release_seq: int
