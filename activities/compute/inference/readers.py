"""What a JSON value is to a field of a model."""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

from activities.compute.inference.moments import moment, seconds
from everloop.reading import ReadColumn
from everloop.records import Field
from everloop.texts import AMONG_NUMBERS, BLANKS, MISSING_TEXT, NotAsReadError, value_of

Reader = Callable[[object], float | str]
NUMBER_LIKE = re.compile(r"^[+-]?\d+(\.\d+)?$")


class ExpectedError(ValueError):
    """What a value should have been."""


def reader_of(field: Field) -> Reader:
    if field.kind == "number":
        return number if field.read is None or not _dressed(field.read) else _number_as_read(field.read)
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
            plain = number(value)
            return math.nan if plain in nothing else plain
        try:
            found = value_of(value, read)
        except NotAsReadError as error:
            unit = f" {read.unit}" if read.unit else ""
            raise ExpectedError(f"{error}{unit}, or null") from None
        return math.nan if found is None else float(str(found))

    return reader


def _numbers_of(read: ReadColumn) -> Iterator[float]:
    """The numbers that mean missing in a column, such as -1."""
    for text in read.missing:
        with contextlib.suppress(NotAsReadError):
            found = value_of(text, read.model_copy(update={"missing": ()}))
            if isinstance(found, int | float):
                yield found


def _boolean_as_read(read: ReadColumn) -> Reader:
    """True or false, or its text as the spec declares it: `yes`."""

    def reader(value: object) -> float:
        if not isinstance(value, str):
            return _boolean(value)
        try:
            return math.nan if (found := value_of(value, read)) is None else float(bool(found))
        except NotAsReadError as error:
            raise ExpectedError(f"{error}, or null") from None

    return reader


def _datetime_as_read(value: object, read: ReadColumn) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, str):
        raise ExpectedError("text such as 2013-01-31, or null")
    try:
        found = value_of(value, read, quoted=True)
    except NotAsReadError as error:
        raise ExpectedError(f"{error}, or null") from None
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
        raise ExpectedError("text or null")
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
    read, missing = reader_of(field), "" if field.kind == "category" else math.nan

    def loose(value: object) -> float | str:
        try:
            return read(value)
        except (ValueError, OverflowError):
            return missing

    return loose


def number(value: object) -> float:
    kind = type(value)
    if (kind is float or kind is int) and math.isfinite(value):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpectedError("a number or null")
    if not math.isfinite(value):
        raise ExpectedError("a finite number or null")
    return float(value)


def _boolean(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return float(value)
    raise ExpectedError("true, false or null")


def _text(value: object) -> str:
    text = _as_text(value)
    return "" if text in MISSING_TEXT else text


def _code(value: object) -> str:
    """A category with a known value that looks like a number: 7 is the text `7`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _as_text(value)
    if not math.isfinite(value):
        raise ExpectedError("text, a finite number or null")
    return str(int(value)) if float(value).is_integer() else repr(value)


def _datetime(value: object, layouts: Sequence[str]) -> float:
    if value is None or (isinstance(value, str) and value in MISSING_TEXT):
        return math.nan
    try:
        return seconds(moment(value, layouts))
    except ValueError:
        raise ExpectedError("ISO 8601 text such as 2013-01-31T12:00:00Z, or null") from None
