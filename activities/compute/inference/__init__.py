"""Answers from a model's graph: NumPy and ONNX Runtime only, so that a server can be small.

Raw columns are the same thing here as in training: `Columns` maps a field's name to an array of float64
(number, boolean as 0 and 1, datetime as seconds since 1970 UTC; NaN is missing) or of text ("" is missing).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from activities.compute.inference.columns import Columns, Numbers, Texts
from activities.compute.inference.moments import UNITS, moment, seconds
from activities.compute.inference.readers import (
    ExpectedError,
    Reader,
    loose_reader,
    read_loosely,
    reader_of,
    takes_numbers,
    takes_texts,
)
from everloop.errors import IntegrityError, InvalidPrediction
from everloop.records import Field, Signature

__all__ = [
    "UNITS",
    "Columns",
    "Model",
    "Predictions",
    "labels_of",
    "loose_reader",
    "moment",
    "read_loosely",
    "takes_numbers",
    "takes_texts",
]

Label = str | int | float | bool

BATCH_ROWS = 8192
"""Rows that go through the graph at once: bounds memory for wide tables."""
SHOWN = 60


@dataclass(frozen=True)
class Predictions:
    """What the graph answered, row by row."""

    signature: Signature
    values: NDArray[np.float64]
    """Probabilities [rows, classes] in the order of `signature.classes`, or numbers [rows]."""
    labels: Sequence[Label]
    """The classes in the target's own type."""

    def __len__(self) -> int:
        return len(self.values)

    def rows(self) -> list[dict[str, object]]:
        """One dictionary per row, as the prediction API answers it. Raises `ValueError` where one is not finite."""
        values = self.values.tolist()
        if not all(map(math.isfinite, values if self.signature.task == "regression" else chain.from_iterable(values))):
            raise ValueError("the graph answered NaN or Infinity")
        if self.signature.task == "regression":
            return [{"value": value} for value in values]
        classes, labels = self.signature.classes, self.labels
        if self.signature.task == "binary":
            positive = classes.index(self.signature.positive)
            threshold = self.signature.threshold  # what the graph's output `decision` says
            return [
                {
                    "label": labels[row.index(max(row)) if threshold is None else int(row[1] >= threshold)],
                    "probability": row[positive],
                    "probabilities": dict(zip(classes, row, strict=True)),
                }
                for row in values
            ]
        return [
            {"label": labels[row.index(max(row))], "probabilities": dict(zip(classes, row, strict=True))}
            for row in values
        ]


def labels_of(signature: Signature) -> list[Label]:
    """The classes in the target's own type: 0 and 1 where it holds whole numbers, true and false of booleans."""
    if signature.target_type == "boolean":
        return [label == "true" for label in signature.classes]
    if signature.target_type in ("integer", "number"):
        return [int(label) if label.lstrip("-").isdecimal() else float(label) for label in signature.classes]
    return list(signature.classes)


class Model:
    """A model's graph, ready to answer. Safe to share between threads."""

    def __init__(self, onnx_bytes: bytes, signature: Signature) -> None:
        """Raises `IntegrityError` when the bytes are not a graph for this signature."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # the caller's slots are the parallelism
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  # ONNX Runtime's own errors share no other base
            raise IntegrityError(f"the model's bytes are not a graph: {str(error)[:200]}") from None
        self.signature = signature
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.output = self.session.get_outputs()[0].name
        if len(self.inputs) != len(signature.fields):
            fields = len(signature.fields)
            raise IntegrityError(f"the graph has {len(self.inputs)} inputs, its signature {fields} fields")
        self.known = frozenset(field.name for field in signature.fields)
        named = (signature.target, signature.time, signature.key, *signature.ignored)
        self.ignored = frozenset(name for name in named if name) - self.known
        self.readers = [(field, reader_of(field)) for field in signature.fields]
        self.labels = labels_of(signature)
        self._numbers = Numbers([(field, read) for field, read in self.readers if field.kind != "category"])
        self._texts = Texts([(field, read) for field, read in self.readers if field.kind == "category"])
        self._feed = [(name, field.name) for name, field in zip(self.inputs, signature.fields, strict=True)]
        self._is_fed_as_named = all(name == field for name, field in self._feed)

    def check(self, rows: Sequence[Mapping[str, object]], event_times: Sequence[datetime] | None = None) -> Columns:
        """JSON rows as columns. A field takes what its kind says, or null:

        number: a number, or its text where the table writes numbers in a way of its own (`12,5 %`); boolean: true,
        false, 0 or 1; category: text, and where training knew number-like values, all spelled as JSON spells numbers,
        also a number; datetime: ISO 8601 text or as the table wrote it, UTC unless it says otherwise. A row without
        the model's time column takes it from *event_times*.
        Raises `InvalidPrediction` whose `field` is like `rows[3].age`.
        """
        if not rows:
            raise InvalidPrediction("there are no rows", field="rows", hint="send at least one row")
        for place, row in enumerate(rows):
            if not isinstance(row, Mapping) or row.keys() != self.known:
                self._names(place, row, timed=event_times is not None)
        try:
            return self._numbers.columns(rows) | self._texts.columns(rows)
        except (ValueError, OverflowError, KeyError):  # column by column, then, to say what is wrong with which
            return {field.name: self._column(field, read, rows, event_times) for field, read in self.readers}

    def answer(
        self, rows: Sequence[Mapping[str, object]], event_times: Sequence[datetime] | None = None
    ) -> Predictions:
        """`check` and `predict`."""
        columns = self.check(rows, event_times)
        if self._is_fed_as_named and len(rows) <= BATCH_ROWS:
            return self._told(self._run(columns))
        return self.predict(columns)

    def predict(self, columns: Columns) -> Predictions:
        """Answer for columns that `check` made, or for raw arrays of the same kinds (also [rows, 1])."""
        feed = {name: columns[field] for name, field in self._feed}
        feed = {name: part if part.ndim > 1 else part.reshape(-1, 1) for name, part in feed.items()}
        rows = len(next(iter(feed.values())))
        if rows <= BATCH_ROWS:
            values = self._run(feed)
        else:
            starts = range(0, rows, BATCH_ROWS)
            values = np.concatenate(
                [self._run({name: part[start : start + BATCH_ROWS] for name, part in feed.items()}) for start in starts]
            )
        return self._told(values)

    def _told(self, values: NDArray[Any]) -> Predictions:
        wide = values.astype(np.float64)
        return Predictions(self.signature, wide[:, 0] if self.signature.task == "regression" else wide, self.labels)

    def _run(self, feed: dict[str, NDArray[Any]]) -> NDArray[Any]:
        answered: NDArray[Any] = self.session.run([self.output], feed)[0]
        return answered

    def _names(self, place: int, row: Mapping[str, object], *, timed: bool) -> None:
        if not isinstance(row, Mapping):
            raise InvalidPrediction(
                f"row {place} is not an object", field=f"rows[{place}]", hint='send {"column": value}'
            )
        lacking = self.known - row.keys() - ({self.signature.time} if timed else set())
        if lacking:
            missing = [field.name for field in self.signature.fields if field.name in lacking]
            shown = _listed(missing)
            hint = f"send {shown}; null where a value is not known"
            raise InvalidPrediction(f"row {place} lacks {shown}", field=f"rows[{place}].{missing[0]}", hint=hint)
        extra = row.keys() - self.known - self.ignored
        if extra:
            hint = f"the model's columns are {_listed(field.name for field in self.signature.fields)}"
            shown = _listed(sorted(map(str, extra)))
            message = f"row {place} has columns that the model does not know: {shown}"
            raise InvalidPrediction(message, field=f"rows[{place}].{min(map(str, extra))}", hint=hint)

    def _column(
        self,
        field: Field,
        read: Reader,
        rows: Sequence[Mapping[str, object]],
        event_times: Sequence[datetime] | None,
    ) -> NDArray[Any]:
        column = np.empty((len(rows), 1), object if field.kind == "category" else np.float64)
        for place, row in enumerate(rows):
            if event_times is not None and field.name not in row:
                column[place, 0] = seconds(event_times[place])
                continue
            try:
                column[place, 0] = read(row[field.name])
            except (ValueError, OverflowError) as error:
                raise InvalidPrediction(
                    f"row {place}: {field.name[:SHOWN]!r} is {_shown(row[field.name])}",
                    field=f"rows[{place}].{field.name}",
                    hint=f"expected {error.args[0] if isinstance(error, ExpectedError) else 'a smaller number'}",
                ) from None
        return column


def _listed(names: Iterable[str]) -> str:
    every = [name[:SHOWN] for name in names]
    more = f" and {len(every) - 10} more" if len(every) > 10 else ""  # noqa: PLR2004
    return ", ".join(map(repr, every[:10])) + more


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:SHOWN]}{'...' * (len(text) > SHOWN)}" if value is not None else "null"
