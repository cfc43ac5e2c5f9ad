"""Rows for a prediction out of a CSV file, read as training reads its tables: by the model's own schema.

Standard library only: the command line loads it.
"""

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from everloop import dialect as dialects
from everloop.dialect import HEAD, column_names, delimiter_of
from everloop.errors import Invalid
from everloop.reading import Dialect, ReadColumn
from everloop.records import Field, Signature
from everloop.texts import MISSING_TEXT, NUMBER_BLANKS, THOUSANDS, WHOLE, NotAsReadError, decide, trimmed, value_of

__all__ = [
    "DECIMAL_COMMA",
    "HEAD",
    "MISSING_TEXT",
    "NUMBER_BLANKS",
    "THOUSANDS",
    "WITH_COMMA",
    "column_names",
    "column_values",
    "delimiter_of",
    "from_csv",
    "pointed",
]

Json = dict[str, Any]
Cell = str | int | float | bool | None

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
DECIMAL_COMMA = r"(?i)^([+-]?(\d+(,\d*)?|[1-9]\d{0,2}(\.\d{3})+(,\d*)?|,\d+)(e[+-]?\d+)?|[+-]?inf(inity)?)$"
"""A number as much of the world writes it: 1234,5 or 1.234,5, not 0.512 (RE2 and Python read this alike)."""
WITH_COMMA = "decimal comma"
"""Among a column's layouts: its numbers were written so."""
LONGEST_WHOLE = 18
"""Digits of a whole number that 64 bits always hold."""


def from_csv(text: str, name: str, schema: Mapping[str, Any]) -> list[Json]:
    """The rows of a CSV file as a predict request takes them. *schema* is the model's `Signature` as JSON.

    What does not fit stays text: the prediction server says which field it is and what was expected.
    """
    signature = Signature.model_validate(schema)
    fields = {field.name: field for field in signature.fields}
    names, rows, delimiter = _table(text, name, signature)
    columns = [
        column_values(column, cells, signature, fields, delimiter)
        for column, cells in zip(names, zip(*rows, strict=True), strict=True)
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def texts_from_csv(text: str, name: str, schema: Mapping[str, Any], also: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file as the texts that stand in it, without blanks around them; an empty cell is left out.

    *also*: names that a column may have beside those of the schema.
    """
    names, rows, _ = _table(text, name, Signature.model_validate(schema), also)
    return [{column: cell.strip() for column, cell in zip(names, row, strict=True) if cell.strip()} for row in rows]


def _table(
    text: str, name: str, signature: Signature, also: Iterable[str] = ()
) -> tuple[list[str], list[list[str]], str]:
    """Names, rows of texts, and the delimiter. Raises `Invalid` where there is no row, or one is of another length."""
    text = text.removeprefix("\ufeff")
    named = {signature.time, signature.key, signature.target, *also} - {None}
    wanted = {*(field.name for field in signature.fields), *named}
    dialect = dialects.found(
        text[:HEAD],
        {str(name) for name in wanted},
        backslash=lambda quote: bool(re.search(dialects.escaped(quote), text)),
    )
    names, _ = dialects.header(text, dialect)
    source = io.StringIO(text, newline="")
    for _ in range(dialect.skip):
        source.readline()
    lines = dialects.rows(source, dialect, blanks=_blanks_meant(text, signature, dialect))
    if dialect.header:
        next(lines, None)
    rows = list(_lines(lines, names, name))
    if not rows:
        raise Invalid(f"{name} has no rows", field="rows", hint="it needs a header line and rows")
    return list(names), rows, dialect.delimiter


def _blanks_meant(text: str, signature: Signature, dialect: Dialect) -> bool:
    """Are the blanks before a value part of it in some column? Not where they stand before quotes."""
    kept = any(field.read is not None and not field.read.trim for field in signature.fields)
    return kept and not re.search(rf"{re.escape(dialect.delimiter)} +{re.escape(dialect.quote)}", text)


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


def column_values(
    name: str, cells: Sequence[str], signature: Signature, fields: Mapping[str, Field], delimiter: str
) -> list[Cell]:
    """The cells of one column, as the model's table was read."""
    field = fields.get(name)
    read = field.read if field else None
    if read is not None and field is not None:
        return _as_read(name, cells, read, field)
    if name == signature.key and signature.key_read:
        return [_key(cell) for cell in cells]
    kind = _kind(name, signature, fields)
    # Commas are decimal in all cells of a column or in none.
    if kind == "number" and delimiter != "," and _with_commas(cells, field):
        return [_comma_cell(cell) for cell in cells]
    return [_cell(cell, kind) for cell in cells]


def _as_read(name: str, cells: Sequence[str], read: ReadColumn, field: Field) -> list[Cell]:
    """Cells by the reading that the model was trained with. What does not fit stays as it is, to be refused."""
    if field.kind == "number" and not read.declared and not all(_fits(cell, read) for cell in cells):
        own = decide(name, cells).column  # a file may write its numbers in another way than the table did
        read = own if own.type in ("number", "integer") else read
    return [_read_cell(cell, read, field) for cell in cells]


def _fits(cell: str, read: ReadColumn) -> bool:
    try:
        value_of(cell, read)
    except NotAsReadError:
        return False
    return True


def _read_cell(cell: str, read: ReadColumn, field: Field) -> Cell:
    if field.kind == "category" and (text := trimmed(cell, read)) in field.known:
        return text  # one that is called NA
    try:
        value = value_of(cell, read)
    except NotAsReadError:
        return cell
    return cell.strip() if isinstance(value, datetime) else value


def _key(cell: str) -> Cell:
    """A key with all its digits: a number where it is written as one of 64 bits, else text."""
    text = cell.strip()
    if re.fullmatch("-?" + WHOLE.removeprefix("[+-]?"), text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    return text or None


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
