"""What a text means: the rules by which the texts of a column become numbers, times, booleans or stay text.

Standard library only. `activities/compute/data/rules.py` says the same in SQL for all rows of a table; the command
line and the prediction server use these. A test holds the two against each other.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from everloop.reading import ReadColumn
from everloop.specs import ColumnReading

MISSING_TEXT = frozenset({"", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NaT", "null", "NULL"})
"""Text that stands for a missing value, in data and in requests alike. `None` is not here: tables use it as a value."""
NUMBER_BLANKS = ("None", "none", "?", "-", ".")
"""Stand for a missing value, but only in a column that otherwise holds numbers, booleans or times."""
THOUSANDS = r"^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$"
"""Commas that may stand between thousands: 1,234 is either number. 0,5 and 1234,567 cannot be read so."""
BLANKS = " \t\r\n\v\f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"  # noqa: E501
"""What is trimmed around a value or a name."""
GAP = "[ \xa0\u2007\u2009\u202f]"
SEPARATORS = {" ": GAP, ",": ",", ".": r"\.", "'": "['\u2019]"}
USUAL = tuple(sorted(MISSING_TEXT - {""}))
"""Texts that mean missing where they are not in quotes."""
AMONG_NUMBERS = USUAL + NUMBER_BLANKS
"""And in a column that otherwise holds numbers, booleans or times, in quotes or not."""
CODE = r"[+-]?0[0-9]"
"""How a code begins: 007 is no seven."""
WHOLE = r"[+-]?(0|[1-9][0-9]*)"
LEAST, MOST = -(2**63), 2**63 - 1
UNIT = r"[%\u2030$€£¥₹₽₩₺₴₫฿₪]|[A-Z]{3}|Fr\.|kr\.?|zł|R\$|Kč|Ft|lei|лв\.?|грн\.?|руб\.?|р\.|[円元원]|ريال|درهم|د\.إ"  # noqa: RUF001  # meant
"""Signs of currency and shares beside numbers, as people write them."""
MOST_MARKS = 3
"""Different texts that stand where a number is missing, and that no list of such texts knows."""
YES = ("true", "t", "yes", "y", "1")
NO = ("false", "f", "no", "n", "0")
"""Booleans, where the spec declares one; otherwise only true and false are."""
CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"
YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
ISO = (
    rf"{YEAR}-[0-9]{{2}}-[0-9]{{2}}([T ]{CLOCK}(:[0-5][0-9](\.[0-9]+)?)?"
    r"( ?(Z|UTC|GMT|[+-][0-9]{2}:?[0-9]{2}|[+-][0-9]{2}))?)?"
)
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
MONTH_FIRST, DAY_FIRST = "%m/%d/%", "%d/%m/%"
FAMILIES = (
    ("%Y/%m/%d",),
    ("%Y年%m月%d日",),
    ("%Y.%m.%d",),
    ("%m/%d/%Y", "%m/%d/%y"),  # unless that is impossible
    ("%d/%m/%Y", "%d/%m/%y"),
    ("%d.%m.%Y", "%d.%m.%y"),
    ("%d-%b-%Y", "%d-%b-%y"),
    ("%d %b %Y",),
    ("%b %d, %Y",),
    ("%m-%d-%Y",),
    ("%d-%m-%Y",),
)
"""Layouts of a day that may stand in one column together."""
DIRECTIVES = {
    "Y": "[0-9]{4}",
    "y": "[0-9]{2}",
    "m": "[0-9]{1,2}",
    "d": "[0-9]{1,2}",
    "H": "[0-9]{1,2}",
    "I": "[0-9]{1,2}",
    "M": "[0-9]{1,2}",
    "S": "[0-9]{1,2}",
    "f": "[0-9]{1,6}",
    "p": "[AaPp][Mm]",
    "b": "[A-Za-z]{3}",
    "B": "[A-Za-z]{3,9}",
    "%": "%",
}
FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


class NotAsReadError(ValueError):
    """A text is no value of its column. The message says what would be."""


def shape_of(layout: str) -> str:
    """The texts that *layout* may read, as a pattern: strptime alone takes 23 for a year of four digits."""
    parts = re.split(r"%(.)", layout)
    return "".join(DIRECTIVES.get(part, "") if place % 2 else re.escape(part) for place, part in enumerate(parts))


def number_shape(column: ReadColumn) -> str:
    """Numbers as *column* writes them, without a unit."""
    whole = "[0-9]+"
    if column.thousands:
        whole = f"([0-9]+|[1-9][0-9]{{0,2}}({SEPARATORS[column.thousands]}[0-9]{{3}})+)"
    point = "," if column.decimal == "," else r"\."
    infinite = "" if column.thousands else "|[+-]?[iI][nN][fF]([iI][nN][iI][tT][yY])?"
    return rf"[+-]?({whole}({point}[0-9]*)?|{point}[0-9]+)([eE][+-]?[0-9]+)?{infinite}"


def trimmed(text: str, column: ReadColumn) -> str:
    return text.strip(BLANKS) if column.trim else text


def is_missing(text: str, column: ReadColumn, *, quoted: bool = False) -> bool:
    """Does a trimmed text stand for nothing?"""
    return not text or (text in column.missing and (column.quoted or not quoted))


def value_of(text: str, column: ReadColumn, *, quoted: bool = False) -> str | int | float | bool | datetime | None:
    """What *text* means in *column*; None where it is missing. Raises `NotAsReadError`.

    *quoted*: it stood in quotes, so that a text like NA is meant where the column is text.
    """
    text = trimmed(text, column)
    if is_missing(text, column, quoted=quoted):
        return None
    if column.type in ("number", "integer"):
        return _number(text, column)
    if column.type == "boolean":
        return _boolean(text, column)
    if column.type == "datetime":
        return moment_of(text, column.format)
    return text


def plain(text: str, column: ReadColumn) -> str | None:
    """A number as Python writes it: `1.234,5 €` is `1234.5`. None where it is no number of the column."""
    bare = text.replace(column.unit, "").strip(BLANKS) if column.unit else text
    if not re.fullmatch(number_shape(column), bare) or (not column.declared and re.match(CODE, bare)):
        return None
    if column.thousands:
        bare = re.sub(SEPARATORS[column.thousands], "", bare)
    return bare.replace(",", ".") if column.decimal == "," else bare


def _number(text: str, column: ReadColumn) -> int | float | None:
    bare = plain(text, column)
    if bare is None:
        raise NotAsReadError(f"a number like {'1,5' if column.decimal == ',' else '1.5'}")
    if re.fullmatch(r"[+-]?[0-9]+" + (r"(\.0*)?" if column.declared else ""), bare):
        whole = int(bare.partition(".")[0])
        if LEAST <= whole <= MOST:
            return whole
    if column.type == "integer":
        raise NotAsReadError("a whole number of 64 bits")
    value = float(bare)
    return value if math.isfinite(value) else None


def _boolean(text: str, column: ReadColumn) -> bool:
    lowered = text.lower()
    yes, no = (YES, NO) if column.declared else (YES[:1], NO[:1])
    if lowered not in yes + no:
        raise NotAsReadError("true or false")
    return lowered in yes


def moment_of(text: str, layouts: Sequence[str] = ()) -> datetime:
    """When *text* says, by one of *layouts* or else ISO 8601; UTC unless it says otherwise. Raises `NotAsReadError`."""
    for layout in layouts:
        if re.fullmatch(shape_of(layout), text):
            try:
                return datetime.strptime(text, layout).replace(tzinfo=UTC)
            except ValueError:
                continue
    if not re.fullmatch(ISO, text):
        raise NotAsReadError(f"a day like {layouts[0] if layouts else '2013-01-31'}")
    text = re.sub(r" ?(UTC|GMT|Z)$", "+00:00", text)
    text = re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text)
    try:
        found = datetime.fromisoformat(re.sub(r" ([+-][0-9:]+)$", r"\1", text))
    except ValueError:
        raise NotAsReadError("a day of the calendar") from None
    return _within(found)


def _within(moment: datetime) -> datetime:
    """In UTC; before year 1 and after 9999 there is no day, so the first and the last stand for them."""
    if moment.tzinfo is None:
        return min(moment.replace(tzinfo=UTC), LAST)
    try:
        return min(moment.astimezone(UTC), LAST)
    except OverflowError:
        return FIRST if moment.year == 1 else LAST


# --- what a column is, from some of its texts --------------------------------------------------------


@dataclass(frozen=True)
class Decided:
    """How a column seems to be written, and which of its texts would make one look again."""

    column: ReadColumn
    watch: str | None = None
    """Texts so far all look so, and leave it open what they are; a text of another look may settle it."""


NOTHING_YET = "everloop: no text is like this"


def decide(name: str, texts: Iterable[str], asked: ColumnReading | None = None, *, typed: bool = False) -> Decided:
    """What the column is of which these are some *texts*.

    *typed*: the texts come from a file that has numbers and missing values of its own, so that text is meant.
    """
    asked = asked or ColumnReading()
    trim = asked.trim
    values = sorted({text.strip(BLANKS) if trim else text for text in texts} - {""})
    if asked.kind:
        return Decided(_declared(name, values, asked, typed=typed))
    usual = () if typed else USUAL
    among = AMONG_NUMBERS if asked.missing is None else asked.missing
    text = ReadColumn(name=name, type="category", missing=usual, quoted=False, trim=trim)
    if asked.missing is not None:
        text = text.model_copy(update={"missing": asked.missing, "quoted": True})
    filled = [value for value in values if value not in among]
    if not filled:
        rest = [value for value in values if value not in text.missing]
        return Decided(text, None if rest and typed else NOTHING_YET)
    made = ReadColumn(name=name, type="number", missing=among, trim=trim)
    if not typed:
        if found := _numbers(filled, made) or _booleans(filled, made):
            return Decided(found)
        if watch := _either(filled):
            return Decided(text, watch)
    return Decided(_times(filled, made) or text)


def _numbers(filled: Sequence[str], made: ReadColumn) -> ReadColumn | None:
    code, whole = re.compile(CODE), re.compile(WHOLE)
    if any(code.match(value) for value in filled):
        return None
    if all(whole.fullmatch(value) and LEAST <= int(value) <= MOST for value in filled):
        return made.model_copy(update={"type": "integer"})
    commas = [value for value in filled if "," in value]
    for decimal, thousands in ((".", ""), (",", "."), (".", " "), (",", " "), (".", "'")):
        style = made.model_copy(update={"decimal": decimal, "thousands": thousands})
        shape = re.compile(number_shape(style))
        if not all(shape.fullmatch(value) for value in filled):
            continue
        if decimal == "," and all(re.match(THOUSANDS, value) for value in commas):
            continue
        return style
    return None


def _either(filled: Sequence[str]) -> str | None:
    """Numbers whose commas may be decimal or stand between thousands: 1,234."""
    shape = rf"{THOUSANDS[1:-1]}|{WHOLE}"
    return shape if all(re.fullmatch(shape, value) for value in filled) else None


def _booleans(filled: Sequence[str], made: ReadColumn) -> ReadColumn | None:
    fits = {value.lower() for value in filled} <= {"true", "false"}
    return made.model_copy(update={"type": "boolean"}) if fits else None


def _times(filled: Sequence[str], made: ReadColumn) -> ReadColumn | None:
    if all(is_moment(value, ()) for value in filled):
        return made.model_copy(update={"type": "datetime"})
    for family in FAMILIES:
        layouts = _layouts(filled, tuple(day + clock for day in family for clock in CLOCKS))
        if layouts:
            return made.model_copy(update={"type": "datetime", "format": layouts})
    return None


def _layouts(filled: Sequence[str], layouts: Sequence[str]) -> tuple[str, ...]:
    used = set()
    for value in filled:
        layout = next((layout for layout in layouts if _follows(value, layout)), None)
        if layout is None:
            return ()
        used.add(layout)
    return tuple(sorted(used))


@lru_cache(maxsize=1 << 16)
def _follows(text: str, layout: str) -> bool:
    if not re.fullmatch(shape_of(layout), text) or ("%y" in layout and not re.match(r"[0-9]{2}\D", text)):
        return False  # 1.2.10 is rather a version
    try:
        datetime.strptime(text, layout)  # noqa: DTZ007  # only whether it is one
    except ValueError:
        return False
    return True


def layouts_of(texts: Sequence[str]) -> tuple[str, ...] | None:
    """The layouts that most of the texts follow, none for ISO 8601; None where hardly any is a day."""
    found = _best_layouts(texts, ReadColumn(name="", type="datetime")).format
    return found if any(is_moment(text, found) for text in texts) else None


def is_moment(text: str, layouts: Sequence[str]) -> bool:
    try:
        moment_of(text, layouts)
    except NotAsReadError:
        return False
    return True


# --- what a column is, where the spec says it ---------------------------------------------------------


def _declared(name: str, values: Sequence[str], asked: ColumnReading, *, typed: bool = False) -> ReadColumn:
    kind = asked.kind
    assert kind is not None  # noqa: S101  # the caller has looked
    plainly = kind in ("category", "text", "identifier")
    usual = (() if typed else USUAL) if plainly else AMONG_NUMBERS
    missing = usual if asked.missing is None else asked.missing
    made = ReadColumn(
        name=name,
        type=kind,
        format=tuple(asked.format),
        missing=missing,
        quoted=asked.missing is not None or not plainly,
        unit=asked.unit,
        trim=asked.trim,
        declared=True,
    )
    filled = [value for value in values if value not in missing]
    if kind in ("number", "integer"):
        style = numbers_of(filled, made, asked)
        numbers = [bare for value in filled if (bare := plain(value, style)) is not None]
        if numbers and all(re.fullmatch(r"[+-]?[0-9]+", bare) and LEAST <= int(bare) <= MOST for bare in numbers):
            return style.model_copy(update={"type": "integer"})  # until one of them has a fraction
        return style
    if kind == "datetime" and not made.format:
        return _best_layouts(filled, made)
    return made


def numbers_of(filled: Sequence[str], made: ReadColumn, asked: ColumnReading) -> ReadColumn:
    """The way of writing numbers that most of the texts follow."""
    units = [asked.unit] if asked.unit else ["", *_units(filled)]
    decimals = [asked.decimal] if asked.decimal else [".", ","]
    styles = [
        made.model_copy(update={"decimal": decimal, "thousands": thousands, "unit": unit})
        for unit in units
        for decimal in decimals
        for thousands in ("", " ", "'", "," if decimal == "." else ".")
    ]
    return max(styles, key=lambda style: sum(plain(value, style) is not None for value in filled))


def _units(filled: Sequence[str]) -> list[str]:
    """Signs of currency and shares that stand before or after the texts, most frequent first."""
    found: dict[str, int] = {}
    for value in filled[:1000]:
        match = re.search(rf"^[+-]?({UNIT})|({UNIT})$", value)
        if match:
            unit = match[1] or match[2]
            found[unit] = found.get(unit, 0) + 1
    return sorted(found, key=lambda unit: (-found[unit], unit))[:3]


def _best_layouts(filled: Sequence[str], made: ReadColumn) -> ReadColumn:
    families = [(), *(tuple(day + clock for day in family for clock in CLOCKS) for family in FAMILIES)]
    best = max(families, key=lambda layouts: sum(is_moment(value, layouts) for value in filled))
    used = [layout for layout in best if any(_follows(value, layout) for value in filled)]
    return made.model_copy(update={"format": tuple(sorted(used))})


def offered(texts: Sequence[str]) -> ReadColumn | None:
    """How texts could be read as numbers if the spec said so: each of them a number, with one unit at most.

    Up to `MOST_MARKS` others, without a digit, may stand where there is no number: every language has its own `n/a`.
    """
    filled = [text.strip(BLANKS) for text in texts]
    filled = [text for text in filled if text and text not in AMONG_NUMBERS]
    if not filled or all(re.match(CODE, text) for text in filled):
        return None
    made = ReadColumn(name="", type="number", missing=AMONG_NUMBERS, declared=True)
    style = numbers_of(filled, made, ColumnReading())
    marks = sorted({text for text in filled if plain(text, style) is None})
    if any(re.match(CODE, text) for text in filled) or len(marks) > MOST_MARKS or len(marks) == len(set(filled)):
        return None
    if not marks:
        return style
    if any(letter.isdigit() for mark in marks for letter in mark):
        return None
    usual = sorted({text.strip(BLANKS) for text in texts} & set(AMONG_NUMBERS))
    return style.model_copy(update={"missing": (*marks, *usual)})
