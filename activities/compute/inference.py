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
from itertools import chain
from operator import itemgetter
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
Label = str | int | float | bool

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
        self.readers = [(field, _reader(field)) for field in signature.fields]
        self.labels = labels_of(signature)
        self._numbers = _Numbers([(field, read) for field, read in self.readers if field.kind != "category"])
        self._texts = _Texts([(field, read) for field, read in self.readers if field.kind == "category"])
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


class _Numbers:
    """The columns of one model that are numbers, read together. Nothing is left out of a row."""

    def __init__(self, columns: Sequence[tuple[Field, Reader]]) -> None:
        self.names = tuple(field.name for field, _ in columns)
        self._readers = [(field.name, read) for field, read in columns]
        self._pick = itemgetter(*self.names) if len(columns) > 1 else None
        self._are_plain = all(read is _number for _, read in columns)

    def columns(self, rows: Sequence[Mapping[str, object]]) -> Columns:
        """Each [rows, 1]; all of them views of one array. Raises what a reader raises, or `KeyError`."""
        if not self.names:
            return {}
        values = self._plain(rows[0]) if len(rows) == 1 else None
        if values is None:
            values = [[read(row[name]) for row in rows] for name, read in self._readers]
        held: NDArray[Any] = np.array(values, np.float64).reshape(len(self.names), len(rows), 1)
        return dict(zip(self.names, held, strict=True))

    def _plain(self, row: Mapping[str, object]) -> Any:  # noqa: ANN401  # numbers, as they are
        """The values of a row that has nothing but finite numbers, without a call for each; None where one is not."""
        if self._pick is None or not self._are_plain:
            return None
        values = self._pick(row)
        # Of a NaN or Infinity among them the sum is neither finite.
        return values if set(map(type, values)) <= _NUMBERS and math.isfinite(sum(values)) else None


_NUMBERS = frozenset({int, float})


class _Texts:
    """The columns of one model that are texts, read together. Nothing is left out of a row."""

    def __init__(self, columns: Sequence[tuple[Field, Reader]]) -> None:
        self.names = tuple(field.name for field, _ in columns)
        # Texts that are read as what they are: most of those that come.
        self._readers = [
            (field.name, read, frozenset(text for text in field.known if read(text) == text)) for field, read in columns
        ]

    def columns(self, rows: Sequence[Mapping[str, object]]) -> Columns:
        """Each [rows, 1]; all of them views of one array. Raises what a reader raises, or `KeyError`."""
        if not self.names:
            return {}
        held = np.empty((len(self.names), len(rows), 1), object)
        for place, (name, read, known) in enumerate(self._readers):
            for at, row in enumerate(rows):
                value = row[name]
                held[place, at, 0] = value if type(value) is str and value in known else read(value)
        return dict(zip(self.names, held, strict=True))


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


def takes_texts(field: Field) -> bool:
    """May a number or boolean of this field also be sent as the text that the table writes it as?"""
    return field.kind in ("number", "boolean") and field.read is not None and _dressed(field.read)


def takes_numbers(field: Field) -> bool:
    """May a number stand for one of a category's texts?"""
    return field.kind == "category" and _spelled_as_numbers(field.known)


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
    return loose_reader(field)(value)


def loose_reader(field: Field) -> Reader:
    """The same for many values of one field."""
    read, missing = _reader(field), "" if field.kind == "category" else math.nan

    def loose(value: object) -> float | str:
        try:
            return read(value)
        except (ValueError, OverflowError):
            return missing

    return loose


def _number(value: object) -> float:
    kind = type(value)
    if (kind is float or kind is int) and math.isfinite(value):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
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
