# ruff: noqa: T201  # what a job prints is its log
"""The first reader, as it was: rows that a champion of its time learned from are known by how it read them."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from activities.compute.data.table import (
    ARROW,
    field_of,
    null_where,
)
from everloop.errors import InvalidData
from everloop.rows import (
    DECIMAL_COMMA,
    HEAD,
    MISSING_TEXT,
    NUMBER_BLANKS,
    THOUSANDS,
    WITH_COMMA,
    column_names,
    delimiter_of,
)

BLOCK_BYTES = 16 << 20
"""A CSV row must fit into one block."""


@dataclass(frozen=True)
class Spelled:
    """What the other files of a folder say about how this one's columns are to be read."""

    text: frozenset[str] = frozenset()
    """These stay text, as they are written: `007` is a code here because `B12` is one there."""
    commas: frozenset[str] = frozenset()
    """Numbers in these have a decimal comma, so that a dot stands between thousands."""


AS_GUESSED = Spelled()


def read(path: Path, suffix: str, name: str, spelled: Spelled = AS_GUESSED) -> pa.Table:
    """One file as canonical columns; a column without any value has the null type.

    *name* is what errors call it. Raises `InvalidData` with the line, where there is one.
    """
    if suffix == ".csv":
        raw, delimiter = _read_csv(path, name)
    else:
        raw, delimiter = _read_parquet(path, name), ""
    if len(set(raw.column_names)) < raw.num_columns:
        twice = next(column for column, count in Counter(raw.column_names).items() if count > 1)
        raise InvalidData(f"{name} has two columns named {twice!r}", field=twice, hint="give each column its own name")
    if raw.num_rows == 0:
        raise InvalidData(f"{name} has a header but no rows", field="source.path", hint="add rows, or remove the file")
    guessed = {
        column: _from_text(values, column, delimiter, spelled) if delimiter else _from_typed(values)
        for column, values in zip(raw.column_names, raw.columns, strict=True)
    }
    fields = [
        field_of(column, guess.values.type, [guess.layout] if guess.layout else [], guess.unread)
        for column, guess in guessed.items()
    ]
    return pa.table([guess.values for guess in guessed.values()], pa.schema(fields))


def _read_csv(path: Path, name: str) -> tuple[pa.Table, str]:
    """The columns as text, and what separates them."""
    if path.stat().st_size == 0:
        raise InvalidData(f"{name} is empty", field="source.path", hint="it needs a header line and rows")
    header, delimiter = _header(path, name)
    places = [str(place) for place in range(len(header))]
    bad: list[Any] = []

    def ragged(row: Any) -> str:  # noqa: ANN401
        bad.append(row)
        return "error"

    blanks = sorted(MISSING_TEXT)
    try:
        table = pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=places, skip_rows_after_names=1
            ),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=ragged),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(places, pa.string()), strings_can_be_null=True, null_values=blanks
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        hint = "save it as UTF-8" if "UTF8" in str(error) else "mend or remove the file"
        raise InvalidData(_csv_fault(name, bad, str(error)), field="source.path", hint=hint) from None
    return table.rename_columns(header), delimiter


def _csv_fault(name: str, bad: Sequence[Any], message: str) -> str:
    if bad:
        row = bad[0]
        where = f"row {row.number} (the header is row 1)" if row.number else "a row"
        return f"{name}: {where} has {row.actual_columns} fields where the header has {row.expected_columns}"
    if "UTF8" in message:
        return f"{name} is not UTF-8 text"
    return f"{name} is not a readable CSV file: {message.splitlines()[0][:200]}"


def _header(path: Path, name: str) -> tuple[list[str], str]:
    """Names of a CSV file's columns, and what separates them."""
    csv.field_size_limit(BLOCK_BYTES)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as text:
        delimiter = delimiter_of(text.read(HEAD))
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            header = next(csv.reader(text, delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise InvalidData(
            f"{name} is not UTF-8 text ({error.reason})", field="source.path", hint="save it as UTF-8"
        ) from None
    except csv.Error as error:
        hint = "the first line must name the columns"
        raise InvalidData(f"{name} has no readable header line ({error})", field="source.path", hint=hint) from None
    if not any(cell.strip() for cell in header) or any("\0" in cell for cell in header):
        hint = "the first line must name the columns"
        raise InvalidData(f"{name} has no header line", field="source.path", hint=hint)
    return column_names(header), delimiter


def _read_parquet(path: Path, name: str) -> pa.Table:
    if path.stat().st_size == 0:
        raise InvalidData(f"{name} is empty", field="source.path", hint="write it again")
    try:
        table = pa.parquet.ParquetFile(path).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        hint = "write it again, with pandas' or pyarrow's Parquet writer"
        raise InvalidData(f"{name} is not a readable Parquet file: {reason}", field="source.path", hint=hint) from None
    return table.select([column for column in table.column_names if not column.startswith("__index_level_")])


@dataclass(frozen=True)
class Guess:
    """A column as canonical values, and what is to be kept about how it was written."""

    values: pa.ChunkedArray
    layout: str = ""
    """Of times that are not ISO 8601, or `WITH_COMMA`."""
    unread: str = ""
    """The type that no model understands; then there are no values."""


def _from_text(column: pa.ChunkedArray, name: str, delimiter: str, spelled: Spelled) -> Guess:
    """A CSV column as what its text says: number, boolean, datetime, else text as it is."""
    if column.null_count == len(column):
        return Guess(_nothing(column))
    if name in spelled.text:
        return Guess(column)
    for values in (column, null_where(column, NUMBER_BLANKS)):
        if values.null_count == len(values):
            continue
        if delimiter != "," and (made := _comma_numbers(values, expected=name in spelled.commas)) is not None:
            return Guess(made, WITH_COMMA)
        for attempt in (_numbers, _booleans):
            made = attempt(values)
            if made is not None:
                return Guess(made)
        times = _times(values)
        if times is not None:
            return times
    return Guess(column)


def _nothing(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(len(column))])


def _from_typed(column: pa.ChunkedArray) -> Guess:
    """A Parquet column as one of the canonical types; without values where no model understands the type."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return _from_values(column)
    text = null_where(column.cast(pa.string()), sorted(MISSING_TEXT))
    if text.null_count == len(text):
        return Guess(_nothing(text))
    return _times(text) or Guess(text)


def _from_values(column: pa.ChunkedArray) -> Guess:
    kind = column.type
    if column.null_count == len(column):
        return Guess(_nothing(column))
    if pa.types.is_boolean(kind):
        return Guess(column)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Guess(_finite(column.cast(pa.float64(), safe=False)))
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return Guess(_utc(column))
    if pa.types.is_duration(kind):
        return Guess(column.cast(pa.duration("us"), safe=False).cast(pa.int64()).cast(pa.float64()))
    print(f"values of type {kind} are not understood: that column is left out")
    return Guess(_nothing(column), unread=str(kind)[:80])


def _utc(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    zone = column.type.tz
    return column.cast(pa.timestamp("us", zone or "UTC"), safe=False).cast(ARROW["datetime"])


def _finite(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, pa.float64()))


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    try:
        values = pc.utf8_trim_whitespace(column).cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    return None if _any_code(column) else _finite(values)


def _comma_numbers(column: pa.ChunkedArray, *, expected: bool) -> pa.ChunkedArray | None:
    """Numbers with a decimal comma. 1.234 and 1,234 may be either: one other cell settles it, or what is *expected*."""
    text = pc.utf8_trim_whitespace(column)
    if not pc.all(pc.match_substring_regex(text, DECIMAL_COMMA)).as_py() or _any_code(text):
        return None
    commas = pc.drop_null(text.filter(pc.match_substring(text, ",")))
    if not expected and pc.all(pc.match_substring_regex(commas, THOUSANDS), min_count=0).as_py():
        return None
    pointed = pc.replace_substring(pc.replace_substring(text, ".", ""), ",", ".")
    return _finite(pointed.cast(pa.float64()))


def _any_code(column: pa.ChunkedArray) -> bool:
    """007 is a code, not seven."""
    return bool(pc.any(pc.match_substring_regex(column, r"^\s*[+-]?0[0-9]")).as_py())


def _booleans(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    lowered = pc.utf8_lower(column)
    if not set(pc.unique(lowered).to_pylist()) <= {"true", "false", None}:
        return None
    return pc.equal(lowered, "true")


ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?( ?(Z|UTC|GMT|[+-]\d{2}:?\d{2}|[+-]\d{2}))?)?$"
MONTH_FIRST, DAY_FIRST = "%m/%d/%Y", "%d/%m/%Y"


OTHER_TIMES = tuple(
    (re.compile(shape + clock + "$"), day + time)
    for shape, day in (
        (r"^\d{4}/\d{1,2}/\d{1,2}", "%Y/%m/%d"),
        (r"^\d{1,2}/\d{1,2}/\d{4}", MONTH_FIRST),  # unless that is impossible
        (r"^\d{1,2}/\d{1,2}/\d{4}", DAY_FIRST),
        (r"^\d{1,2}\.\d{1,2}\.\d{4}", "%d.%m.%Y"),
        (r"^\d{1,2}-[A-Za-z]{3}-\d{4}", "%d-%b-%Y"),
    )
    for clock, time in (("", ""), (r" \d{1,2}:\d{2}", " %H:%M"), (r" \d{1,2}:\d{2}:\d{2}", " %H:%M:%S"))
)


def _times(column: pa.ChunkedArray) -> Guess | None:
    first = pc.drop_null(column.slice(0, 1000))
    sample = (first if len(first) else pc.drop_null(column))[0].as_py()
    if re.match(ISO, sample):
        times = _iso_times(column)
        return None if times is None else Guess(times)
    for shape, layout in OTHER_TIMES:
        if not shape.match(sample):
            continue
        try:
            return Guess(pc.strptime(column, format=layout, unit="us").cast(ARROW["datetime"]), layout)
        except pa.ArrowInvalid:
            continue
    return None


def _iso_times(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    if not pc.all(pc.match_substring_regex(column, ISO)).as_py():
        return None
    text = pc.replace_substring_regex(column, r"(\.\d{6})\d+", r"\1")
    text = pc.replace_substring_regex(text, r" ?(UTC|GMT)$", "Z")
    text = pc.replace_substring_regex(text, r" ([Z+-])", r"\1")
    text = pc.replace_substring_regex(text, r"^(\d{4}-\d{2}-\d{2})$", r"\1T00:00:00")
    zoned = pc.match_substring_regex(text, r"\d:\d.*(Z|[+-]\d{2}(:?\d{2})?)$")
    text = pc.if_else(zoned, text, pc.binary_join_element_wise(text, "Z", ""))
    try:
        return text.cast(ARROW["datetime"])
    except pa.ArrowInvalid:
        return None  # a day like 2013-02-30: not a time after all
