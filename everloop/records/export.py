"""The graph, and what it takes and gives."""

from typing import Literal

from everloop.reading import ReadColumn
from everloop.records.job import Result
from everloop.records.record import Blob, Record
from everloop.specs import Task


class Parity(Record):
    """The exported graph against the trained model, row by row. `mismatches` must be 0."""

    rows: int
    edge_rows: int
    mismatches: int
    max_difference: float
    tolerance: float


class Field(Record):
    """One input of a model, as predict requests name it."""

    name: str
    kind: Literal["number", "category", "boolean", "datetime"]
    nullable: bool = True
    """False: none of the values that the model learned from was missing. (Versions before this was said: True.)"""
    usual: float | None = None
    """What a missing number, boolean or datetime (seconds since 1970) is answered as where it is not nullable."""
    minimum: float | None = None
    maximum: float | None = None
    """Range in training; outside of it is answered but marked."""
    known: tuple[str, ...] = ()
    """For a category: the values (at most 100) that training knew; others are answered as unseen."""
    layouts: tuple[str, ...] = ()
    """For a datetime: how the table wrote it where not in ISO 8601, as strptime says it. Both are understood."""
    read: ReadColumn | None = None
    """How the table's texts became its values. None: by the first reader."""


class Signature(Record):
    """What a model takes and gives."""

    task: Task
    fields: tuple[Field, ...]
    target: str
    classes: tuple[str, ...] = ()
    positive: str = ""
    time: str | None = None
    time_layouts: tuple[str, ...] = ()
    """How the table wrote the time where not in ISO 8601: as strptime says it, or a number's unit (`seconds`, ...)."""
    key: str | None = None
    ignored: tuple[str, ...] = ()
    """Other columns of the training table: a predict request may carry them, the model does not look at them."""
    target_type: Literal["", "text", "integer", "number", "boolean"] = ""
    """What labels are answered as; text where nothing is said."""
    encoding: str = ""
    """Of the table's text files, where it was not UTF-8: so is a CSV file of rows to predict that is not UTF-8."""
    threshold: float | None = None
    """The probability from which the positive class is the label, which is also the graph's output `decision`."""
    time_read: ReadColumn | None = None
    key_read: ReadColumn | None = None


class Exported(Result):
    """One ONNX graph with its preprocessing inside, proven equal to the trained model."""

    model: Blob
    signature: Blob
    """JSON of `Signature`."""
    parity: Parity
    reference: Blob
    """Parquet: up to 50,000 seeded raw feature rows, what drift checks compare with."""
    latency_ms: float | None = None
    """What one row takes in ONNX Runtime on one thread, the median of many. None: an older Everloop exported."""
