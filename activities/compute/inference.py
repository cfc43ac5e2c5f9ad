"""Answers from a model's graph: NumPy and ONNX Runtime only, so that a server can be small.

Raw columns are the same thing here as in training: `Columns` maps a field's name to an array of float64
(number, boolean as 0 and 1, datetime as seconds since 1970 UTC; NaN is missing) or of text ("" is missing).
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from everloop.errors import IntegrityError, InvalidPrediction
from everloop.reading import ReadColumn
from everloop.records import Field, Signature
from everloop.texts import AMONG_NUMBERS, BLANKS, MISSING_TEXT, NotAsReadError, value_of

Columns = dict[str, NDArray[Any]]
Reader = Callable[[object], float | str]

NUMBER_LIKE = re.compile(r"^[+-]?\d+(\.\d+)?$")
BATCH_ROWS = 8192
"""Rows that go through the graph at once: bounds memory for wide tables."""
SHOWN = 60


@dataclass(frozen=True)
class Predictions:
    """What the graph answered, row by row."""

    signature: Signature
    values: NDArray[np.float64]
    """Probabilities [rows, classes] in the order of `signature.classes`, or numbers [rows]."""

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def labels(self) -> list[str | int | float | bool]:
        """The classes in the target's own type: 0 and 1 where it holds whole numbers, true and false of booleans."""
        kind = self.signature.target_type
        if kind == "boolean":
            return [label == "true" for label in self.signature.classes]
        if kind in ("integer", "number"):
            return [int(label) if label.lstrip("-").isdecimal() else float(label) for label in self.signature.classes]
        return list(self.signature.classes)

    def rows(self) -> list[dict[str, object]]:
        """One dictionary per row, as the prediction API answers it."""
        if self.signature.task == "regression":
            return [{"value": value} for value in self.values.tolist()]
        return [self._classified(row) for row in self.values.tolist()]

    def _classified(self, row: list[float]) -> dict[str, object]:
        classes = self.signature.classes
        best = max(range(len(row)), key=row.__getitem__)
        if self.signature.threshold is not None:  # what the graph's output `decision` says
            best = int(row[1] >= self.signature.threshold)
        answer: dict[str, object] = {"label": self.labels[best]}
        if self.signature.task == "binary":
            answer["probability"] = row[classes.index(self.signature.positive)]
        return answer | {"probabilities": dict(zip(classes, row, strict=True))}


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
        self.readers = [(field, _reader(field)) for field in signature.fields]

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
            self._names(place, row, timed=event_times is not None)
        return {field.name: self._column(field, read, rows, event_times) for field, read in self.readers}

    def predict(self, columns: Columns) -> Predictions:
        """Answer for columns that `check` made, or for raw arrays of the same kinds (also [rows, 1])."""
        named = zip(self.inputs, self.signature.fields, strict=True)
        feed = [(name, columns[field.name].reshape(-1, 1)) for name, field in named]
        rows = len(feed[0][1])
        parts = [
            self.session.run([self.output], {name: values[start : start + BATCH_ROWS] for name, values in feed})[0]
            for start in range(0, rows, BATCH_ROWS)
        ]
        values = np.concatenate(parts).astype(np.float64)
        return Predictions(self.signature, values[:, 0] if self.signature.task == "regression" else values)

    def _names(self, place: int, row: Mapping[str, object], *, timed: bool) -> None:
        if not isinstance(row, Mapping):
            raise InvalidPrediction(
                f"row {place} is not an object", field=f"rows[{place}]", hint='send {"column": value}'
            )
        missing = [name for name in self.known - row.keys() if not (timed and name == self.signature.time)]
        if missing:
            shown = _listed(field.name for field in self.signature.fields if field.name in missing)
            hint = f"send {shown}; null where a value is not known"
            raise InvalidPrediction(f"row {place} lacks {shown}", field=f"rows[{place}].{min(missing)}", hint=hint)
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
                column[place, 0] = _seconds(event_times[place])
                continue
            try:
                column[place, 0] = read(row[field.name])
            except (ValueError, OverflowError) as error:
                raise InvalidPrediction(
                    f"row {place}: {field.name[:SHOWN]!r} is {_shown(row[field.name])}",
                    field=f"rows[{place}].{field.name}",
                    hint=f"expected {error.args[0] if isinstance(error, _ExpectedError) else 'a smaller number'}",
                ) from None
        return column


class _ExpectedError(ValueError):
    """What a value should have been."""


def _reader(field: Field) -> Reader:
    if field.kind == "number":
        return _number if field.read is None or not _dressed(field.read) else _number_as_read(field.read)
    if field.kind == "boolean":
        return _boolean if field.read is None or not _dressed(field.read) else _boolean_as_read(field.read)
    if field.kind == "datetime":
        read = field.read
        return lambda value: _datetime_as_read(value, read) if read else _datetime(value, field.layouts)
    if field.read is not None:
        return _text_as_read(field, field.read)
    if not _spelled_as_numbers(field.known):
        return _text
    return lambda value: _text(_code(value))


def _dressed(read: ReadColumn) -> bool:
    """Did the table, or the spec, write the numbers of a column in another way than JSON does?"""
    odd = set(read.missing) - set(AMONG_NUMBERS)  # -1 may mean missing
    return read.declared or read.decimal == "," or bool(read.thousands or odd)


def _number_as_read(read: ReadColumn) -> Reader:
    """A number, or its text as the table writes it: `12,5 %`."""
    read = read.model_copy(update={"type": "number"})  # also where the table had whole numbers alone

    nothing = frozenset(_numbers_of(read))

    def reader(value: object) -> float:
        if not isinstance(value, str):
            number = _number(value)
            return math.nan if number in nothing else number
        try:
            found = value_of(value, read)
        except NotAsReadError as error:
            unit = f" {read.unit}" if read.unit else ""
            raise _ExpectedError(f"{error}{unit}, or null") from None
        return math.nan if found is None else float(str(found))

    return reader


def _numbers_of(read: ReadColumn) -> Iterator[float]:
    """The numbers that mean missing in a column, such as -1."""
    for text in read.missing:
        with contextlib.suppress(NotAsReadError):
            number = value_of(text, read.model_copy(update={"missing": ()}))
            if isinstance(number, int | float):
                yield number


def _boolean_as_read(read: ReadColumn) -> Reader:
    """True or false, or its text as the spec declares it: `yes`."""

    def reader(value: object) -> float:
        if not isinstance(value, str):
            return _boolean(value)
        try:
            return math.nan if (found := value_of(value, read)) is None else float(bool(found))
        except NotAsReadError as error:
            raise _ExpectedError(f"{error}, or null") from None

    return reader


def _datetime_as_read(value: object, read: ReadColumn) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, str):
        raise _ExpectedError("text such as 2013-01-31, or null")
    try:
        found = value_of(value, read, quoted=True)
    except NotAsReadError as error:
        raise _ExpectedError(f"{error}, or null") from None
    return found.timestamp() if isinstance(found, datetime) else math.nan


def _text_as_read(field: Field, read: ReadColumn) -> Reader:
    """A text means what it means in the table; one that the model knows is a value even where it is called NA."""
    known = frozenset(field.known)
    plain = _code if _spelled_as_numbers(field.known) else _as_text

    def reader(value: object) -> float | str:
        text = plain(value)
        if isinstance(text, str) and text not in known:
            text = text.strip(BLANKS) if read.trim else text
            return "" if text in read.missing and text not in known else text
        return text

    return reader


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _ExpectedError("text or null")
    # JSON may hold half of a surrogate pair, which is no text.
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _spelled_as_numbers(known: Iterable[str]) -> bool:
    """May a number stand for one of the *known* texts? Not where one is `007` or `1.0`: 7 would silently miss it."""
    alike = [text for text in known if NUMBER_LIKE.match(text)]
    return bool(alike) and all(map(_is_json_number, alike))


def _is_json_number(text: str) -> bool:
    try:
        return _code(float(text) if "." in text else int(text)) == text
    except (ValueError, OverflowError):
        return False  # too long for any number


def read_loosely(field: Field, value: object) -> float | str:
    """A logged value as the raw column holds it; missing where it does not fit the field."""
    try:
        return _reader(field)(value)
    except (ValueError, OverflowError):
        return "" if field.kind == "category" else math.nan


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _ExpectedError("a number or null")
    if not math.isfinite(value):
        raise _ExpectedError("a finite number or null")
    return float(value)


def _boolean(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return float(value)
    raise _ExpectedError("true, false or null")


def _text(value: object) -> str:
    text = _as_text(value)
    return "" if text in MISSING_TEXT else text


def _code(value: object) -> str:
    """A category with a known value that looks like a number: 7 is the text `7`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _as_text(value)
    if not math.isfinite(value):
        raise _ExpectedError("text, a finite number or null")
    return str(int(value)) if float(value).is_integer() else repr(value)


def _datetime(value: object, layouts: Sequence[str]) -> float:
    if value is None or (isinstance(value, str) and value in MISSING_TEXT):
        return math.nan
    try:
        return _seconds(moment(value, layouts))
    except ValueError:
        raise _ExpectedError("ISO 8601 text such as 2013-01-31T12:00:00Z, or null") from None


UNITS: dict[str, Callable[[float], datetime]] = {
    "year": lambda value: datetime(int(value), 1, 1, tzinfo=UTC),
    "day": lambda value: datetime(int(value) // 10000, int(value) // 100 % 100, int(value) % 100, tzinfo=UTC),
    "seconds": lambda value: datetime.fromtimestamp(value, UTC),
    "milliseconds": lambda value: datetime.fromtimestamp(value / 1e3, UTC),
}
"""What a number in a time column may be (`day` is YYYYMMDD)."""


def moment(value: object, layouts: Sequence[str] = ()) -> datetime:
    """When *value* says: ISO 8601 text, or one of *layouts* (of strptime, or of `UNITS`). Raises `ValueError`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        for unit in (name for name in layouts if name in UNITS):
            try:
                return UNITS[unit](value)
            except OverflowError:
                break
    elif isinstance(value, str):
        text = value.strip()
        for layout in layouts:
            try:
                return datetime.strptime(text, layout).replace(tzinfo=UTC)
            except ValueError:
                continue
        return datetime.fromisoformat(text)
    raise ValueError("not a moment")


def _seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _listed(names: Iterable[str]) -> str:
    every = [name[:SHOWN] for name in names]
    more = f" and {len(every) - 10} more" if len(every) > 10 else ""  # noqa: PLR2004
    return ", ".join(map(repr, every[:10])) + more


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:SHOWN]}{'...' * (len(text) > SHOWN)}" if value is not None else "null"
