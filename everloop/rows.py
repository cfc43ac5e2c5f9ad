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
DECIMAL_COMMA = r"(?i)^([+-]?(\d+(,\d*)?|[1-9]\d{0,2}(\.\d{3})+(,\d*)?|,\d+)(e[+-]?\d+)?|[+-]?inf(inity)?)$"
"""A number as much of the world writes it: 1234,5 or 1.234,5, not 0.512 (RE2 and Python read this alike)."""
THOUSANDS = r"^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$"
"""Commas that may stand between thousands: 1,234 is either number. 0,5 and 1234,567 cannot be read so."""
WITH_COMMA = "decimal comma"
"""Among a column's layouts: its numbers were written so."""
LONGEST_WHOLE = 18
"""Digits of a whole number that 64 bits always hold."""
HEAD = 1 << 16
"""Characters that a header line is looked for in."""
LINES = 6
"""The header and the rows after it that say what separates the columns."""
QUOTED = re.compile(r'(^|[,;|\t\r\n]) *"(?:[^"\\]|""|\\.)*("|$)')


def delimiter_of(head: str) -> str:
    """What separates the columns of a CSV file that begins with *head*.

    It splits the header and the next rows into the same number of fields, more than one. Where several do, a comma is
    the least likely: unquoted names (`Area, m2`) and decimal commas stand in every row, too. Where none does, the
    header alone says it, and the comma wins a draw. What is in quotes does not count, also not line breaks.
    """
    lines = [line for line in re.split(r"[\r\n]+", QUOTED.sub(r"\1", head)) if line]
    if len(lines) > 1 and len(head) >= HEAD:
        lines.pop()  # it may go on
    counts = {one: [line.count(one) for line in lines[:LINES]] for one in ",;\t|"}
    steady = [one for one in "\t;|," if len(counts[one]) > 1 and counts[one][0] and len(set(counts[one])) == 1]
    return steady[0] if steady else max(counts, key=lambda one: counts[one][:1])


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
    """The cells of one column: commas are decimal in all of them or in none."""
    if kind == "number" and delimiter != "," and _with_commas(cells, field):
        return [_comma_cell(cell) for cell in cells]
    return [_cell(cell, kind) for cell in cells]


def _with_commas(cells: Sequence[str], field: Field | None) -> bool:
    """Whether the numbers of a column have decimal commas: as in training, or as most cells say.

    A cell that does not fit does not change how the others are read: the server refuses it, with its row.
    """
    filled = [cell.strip() for cell in cells if not _blank(cell)]
    fit = [cell for cell in filled if re.match(DECIMAL_COMMA, cell)]
    commas = [cell for cell in fit if "," in cell]
    if field is not None and WITH_COMMA in field.layouts:
        # 0.512 is no thousand: a file without commas may hold ordinary numbers all the same.
        return bool(commas) or not any(NUMBER.fullmatch(cell) for cell in filled if not re.match(DECIMAL_COMMA, cell))
    return 2 * len(fit) > len(filled) and not all(re.match(THOUSANDS, cell) for cell in commas)


def _comma_cell(cell: str) -> Cell:
    if _blank(cell):
        return None
    return _number(pointed(cell), "number") if re.match(DECIMAL_COMMA, cell.strip()) else cell


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
