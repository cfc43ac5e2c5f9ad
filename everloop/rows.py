"""Rows for a prediction out of a CSV file, read as training reads its tables: by the model's own schema.

Standard library only: the command line loads it.
"""

import csv
import io
import math
import re
from collections.abc import Mapping
from typing import Any

from everloop.errors import Invalid
from everloop.records import Signature

Json = dict[str, Any]

MISSING_TEXT = frozenset({"", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NaT", "null", "NULL"})
"""Text that stands for a missing value, in data and in requests alike. `None` is not here: tables use it as a value."""
NUMBER_BLANKS = ("None", "none", "?", "-", ".")
"""Stand for a missing value, but only in a column that otherwise holds numbers, booleans or times."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
LONGEST_WHOLE = 18
"""Digits of a whole number that 64 bits always hold."""


def delimiter_of(line: str) -> str:
    """What separates the columns of a CSV file with this first line; the comma wins a draw."""
    return max(",;\t", key=line.count)


def column_names(header: list[str]) -> list[str]:
    """Names of the columns; one without a name is called by its place."""
    return [cell or f"unnamed_{place}" for place, cell in enumerate(header, 1)]


def from_csv(text: str, name: str, schema: Mapping[str, Any]) -> list[Json]:
    """The rows of a CSV file as a predict request takes them. *schema* is the model's `Signature` as JSON.

    What does not fit stays text: the prediction server says which field it is and what was expected.
    """
    signature = Signature.model_validate(schema)
    kinds: dict[str, str] = {field.name: field.kind for field in signature.fields}
    for other in (signature.time, signature.key):
        if other and other not in kinds:
            kinds[other] = "plain"
    text = text.removeprefix("\ufeff")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text.partition("\n")[0]))
    names = column_names(next(lines, []))
    rows = []
    for place, line in enumerate(lines, 2):
        if not line:
            continue
        if len(line) != len(names):
            raise Invalid(
                f"{name}: row {place} (the header is row 1) has {len(line)} fields where the header has {len(names)}",
                field="rows",
                hint="mend the file",
            )
        rows.append({column: _cell(cell, kinds.get(column, "text")) for column, cell in zip(names, line, strict=True)})
    if not rows:
        raise Invalid(f"{name} has no rows", field="rows", hint="it needs a header line and rows")
    return rows


def _cell(text: str, kind: str) -> str | int | float | bool | None:
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
