"""Rows for a prediction out of a CSV file, read as training reads its tables: by the model's own schema.

Standard library only: the command line loads it.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from everloop.errors import Invalid
from everloop.records import Field, Signature

Json = dict[str, Any]
Cell = str | int | float | bool | None

MISSING_TEXT = frozenset({"", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NaT", "null", "NULL"})
"""Text that stands for a missing value, in data and in requests alike. `None` is not here: tables use it as a value."""
NUMBER_BLANKS = ("None", "none", "?", "-", ".")
"""Stand for a missing value, but only in a column that otherwise holds numbers, booleans or times."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
DECIMAL_COMMA = r"(?i)^([+-]?(\d+(,\d*)?|\d{1,3}(\.\d{3})+(,\d*)?|,\d+)(e[+-]?\d+)?|[+-]?inf(inity)?)$"
"""A number as much of the world writes it: 1234,5 or 1.234,5 (RE2 and Python read this alike)."""
WITH_COMMA = "decimal comma"
"""Among a column's layouts: its numbers were written so."""
LONGEST_WHOLE = 18
"""Digits of a whole number that 64 bits always hold."""
HEAD = 1 << 16
"""Characters that a header line is looked for in."""
QUOTED = re.compile(r'(^|[,;\t\r\n])"(?:[^"]|"")*("|$)')


def delimiter_of(head: str) -> str:
    """What separates the columns of a CSV file that begins with *head*; the comma wins a draw.

    Names in quotes may hold anything, also line breaks: what is in them does not count.
    """
    header = re.split(r"[\r\n]", QUOTED.sub(r"\1", head), maxsplit=1)[0]
    return max(",;\t", key=header.count)


def column_names(header: list[str]) -> list[str]:
    """Names of the columns; one without a name is called by its place."""
    return [cell or f"unnamed_{place}" for place, cell in enumerate(header, 1)]


def from_csv(text: str, name: str, schema: Mapping[str, Any]) -> list[Json]:
    """The rows of a CSV file as a predict request takes them. *schema* is the model's `Signature` as JSON.

    What does not fit stays text: the prediction server says which field it is and what was expected.
    """
    signature = Signature.model_validate(schema)
    text = text.removeprefix("\ufeff")
    delimiter = delimiter_of(text[:HEAD])
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = column_names(next(lines, []))
    rows = list(_lines(lines, names, name))
    if not rows:
        raise Invalid(f"{name} has no rows", field="rows", hint="it needs a header line and rows")
    fields = {field.name: field for field in signature.fields}
    columns = [
        _column(cells, fields.get(column), _kind(column, signature, fields), delimiter)
        for column, cells in zip(names, zip(*rows, strict=True), strict=True)
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _lines(lines: Iterable[list[str]], names: Sequence[str], name: str) -> Iterator[list[str]]:
    for place, line in enumerate(lines, 2):
        if not line:
            continue
        if len(line) != len(names):
            raise Invalid(
                f"{name}: row {place} (the header is row 1) has {len(line)} fields where the header has {len(names)}",
                field="rows",
                hint="mend the file",
            )
        yield line


def _kind(column: str, signature: Signature, fields: Mapping[str, Field]) -> str:
    if column in fields:
        return fields[column].kind
    return "plain" if column in (signature.time, signature.key) else "text"


def _column(cells: Sequence[str], field: Field | None, kind: str, delimiter: str) -> list[Cell]:
    """The cells of one column: commas are decimal for all of them or for none."""
    if kind == "number" and delimiter != "," and _with_commas(cells, field):
        return [None if _blank(cell) else _number(pointed(cell), kind) for cell in cells]
    return [_cell(cell, kind) for cell in cells]


def _with_commas(cells: Sequence[str], field: Field | None) -> bool:
    """As training decides it: all are such numbers, and one has a comma (or had one in training)."""
    filled = [cell.strip() for cell in cells if not _blank(cell)]
    expected = field is not None and WITH_COMMA in field.layouts
    return (expected or any("," in cell for cell in filled)) and all(re.match(DECIMAL_COMMA, cell) for cell in filled)


def pointed(text: str) -> str:
    """A number with a decimal comma, as Python writes it: `1.234,5` is `1234.5`."""
    return text.strip().replace(".", "").replace(",", ".")


def _blank(text: str) -> bool:
    return text in MISSING_TEXT or text in NUMBER_BLANKS


def _cell(text: str, kind: str) -> Cell:
    if text in MISSING_TEXT:
        return None
    if kind in ("text", "category"):
        return text
    if text in NUMBER_BLANKS:
        return None
    if kind == "boolean" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return text if kind == "datetime" or not NUMBER.fullmatch(text.strip()) else _number(text.strip(), kind)


def _number(text: str, kind: str) -> str | int | float | None:
    if kind == "plain" and text != text.lstrip("+0") and text not in ("0", "0.0"):
        return text  # 007 is a code, not seven
    if text.removeprefix("-").isdecimal() and len(text) <= LONGEST_WHOLE:
        return int(text)
    value = float(text)
    return value if math.isfinite(value) else None
