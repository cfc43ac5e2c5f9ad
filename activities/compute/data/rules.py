"""The rules of `everloop.texts` in SQL, for all rows of a table: each a few lines, and each with its own test.

A rule takes `t`, an expression of a trimmed text that is never null, and says whether it is a value of the column
(`fits`) and which (`value`). What is neither a value nor missing is for `reading` to decide about.
"""

from collections.abc import Sequence

from activities.compute.data.engine import text as quoted
from everloop.reading import ReadColumn
from everloop.texts import BLANKS, ISO, NO, SEPARATORS, WHOLE, YES, number_shape, shape_of

FIRST, LAST = "TIMESTAMPTZ '0001-01-01 00:00:00+00'", "TIMESTAMPTZ '9999-12-31 23:59:59+00'"
WIDEST = 38
"""Digits of a DECIMAL."""


ODD_BLANKS = "\t\r\n\v\f\x85\u2028\u2029\ufeff"
"""Those that DuckDB's plain `trim` leaves. To name what is trimmed costs more than all the rest of reading."""


def trimmed(x: str, column: ReadColumn, odd: str = ODD_BLANKS) -> str:
    """A raw text without the blanks around it; never null. *odd*: those of `ODD_BLANKS` that may be among them."""
    if not column.trim:
        return x
    if not odd:
        return f"trim({x})"
    there = " OR ".join(f"contains({x}, {quoted(blank)})" for blank in odd)
    return f"CASE WHEN {there} THEN trim({x}, {quoted(BLANKS)}) ELSE trim({x}) END"


def outside(moment: str) -> str:
    """Is it before year 1 or after 9999? Not by its `year`, which knows no year 0."""
    return f"{moment} NOT BETWEEN {FIRST} AND {LAST}"


def clipped(moment: str) -> str:
    """The moment within the years 1 to 9999. A missing one stays so: `least` and `greatest` pass over nulls."""
    return f"CASE WHEN ({moment}) IS NOT NULL THEN greatest(least({moment}, {LAST}), {FIRST}) END"


def one_of(t: str, texts: Sequence[str]) -> str:
    """Is it one of them? Most texts are longer, which is told without a look into them."""
    if not texts:
        return "false"
    longest = max(len(text.encode()) for text in texts)
    return f"CASE WHEN strlen({t}) > {longest} THEN false ELSE {t} IN ({', '.join(map(quoted, texts))}) END"


def like(t: str, shape: str) -> str:
    return f"regexp_full_match({t}, {quoted(shape)})"


def fits(t: str, column: ReadColumn) -> str:
    """Is the text a value of the column?"""
    if column.type == "integer":
        return _is_integer(t, column)
    if column.type == "number":
        return _is_number(t, column)
    if column.type == "boolean":
        yes, no = (YES, NO) if column.declared else (YES[:1], NO[:1])
        return one_of(f"lower({t})", yes + no)
    if column.type == "datetime":
        return f"{moment(t, column)} IS NOT NULL"
    return "true"


def value(t: str, column: ReadColumn) -> str:
    """The text as what the snapshot keeps; null where it is missing or no value."""
    if column.type in ("number", "integer"):
        made = _number(t, column)
        return f"CASE WHEN {fits(t, column)} THEN {made} END" if column.declared else made
    if column.type == "boolean":
        yes, no = (YES, NO) if column.declared else (YES[:1], NO[:1])
        return f"CASE WHEN {one_of(f'lower({t})', yes)} THEN true WHEN {one_of(f'lower({t})', no)} THEN false END"
    if column.type == "datetime":
        return clipped(moment(t, column))
    return f"CASE WHEN {t} <> '' THEN {t} END"


def _is_integer(t: str, column: ReadColumn) -> str:
    bare = _bare(t, column)
    if column.declared or column.thousands:
        digits = _plain(bare, column)
        whole = like(digits, "[+-]?[0-9]+([.]0*)?")
        return f"({_shaped(bare, column)} AND {whole} AND TRY_CAST({digits} AS BIGINT) IS NOT NULL)"
    # Written back it is the same: cheaper than a pattern, and true of nearly all.
    whole = f"TRY_CAST({t} AS BIGINT)"
    return f"(CAST({whole} AS VARCHAR) = {t} OR ({like(t, WHOLE)} AND {whole} IS NOT NULL)) IS TRUE"


def _is_number(t: str, column: ReadColumn) -> str:
    if column.declared or column.thousands or column.unit or column.decimal == ",":
        return _shaped(_bare(t, column), column)
    # DuckDB's cast also takes 1_000, nan and 007.
    cast = f"TRY_CAST({t} AS DOUBLE)"
    return f"({cast} IS NOT NULL AND NOT isnan({cast}) AND NOT contains({t}, '_') AND NOT {is_code(t)})"


def is_code(t: str) -> str:
    """`texts.CODE`, by the order of texts: a colon comes after 9. A pattern costs several times as much."""
    between = (f"({t} >= '{sign}00' AND {t} < '{sign}0:')" for sign in ("", "-", "+"))
    return f"({' OR '.join(between)})"


def is_bare(t: str) -> str:
    """Has the untrimmed text of a number no blank before it? All blanks come before `+`, or after all digits."""
    return f"({t} BETWEEN '+' AND ':')"


def is_usual_number(t: str, column: ReadColumn) -> str:
    """Is the untrimmed text a number, written as most are? Where not, `fits` has the last word."""
    if column.type == "integer":
        return f"(CAST(TRY_CAST({t} AS BIGINT) AS VARCHAR) = {t}) IS TRUE"
    usual = _is_number(t, column.model_copy(update={"declared": False}))
    return f"({is_bare(t)} AND {usual})"  # after a blank, 007 would not be seen to be a code


def _shaped(bare: str, column: ReadColumn) -> str:
    shape = like(bare, number_shape(column))
    return f"({shape})" if column.declared else f"({shape} AND NOT {is_code(bare)})"


def _bare(t: str, column: ReadColumn) -> str:
    return f"trim(replace({t}, {quoted(column.unit)}, ''), {quoted(BLANKS)})" if column.unit else t


def _plain(bare: str, column: ReadColumn) -> str:
    """A number as SQL casts it."""
    if column.thousands:
        bare = f"regexp_replace({bare}, {quoted(SEPARATORS[column.thousands])}, '', 'g')"
    return f"replace({bare}, ',', '.')" if column.decimal == "," else bare


def plain(t: str, column: ReadColumn) -> str:
    """The text of a number as SQL casts it."""
    return _plain(_bare(t, column), column)


def _number(t: str, column: ReadColumn) -> str:
    cast = plain(t, column)
    if column.type == "integer":
        return f"TRY_CAST({cast} AS BIGINT)"
    if column.scale is not None:
        return f"TRY_CAST({cast} AS DECIMAL({WIDEST}, {column.scale}))"
    return finite(f"TRY_CAST({cast} AS DOUBLE)")


def finite(number: str) -> str:
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def moment(t: str, column: ReadColumn) -> str:
    """When the text says, in UTC and maybe outside of years 1 to 9999; null where it says nothing."""
    cases = [
        f"WHEN {like(t, shape_of(layout))} AND try_strptime({t}, {quoted(layout)}) IS NOT NULL "
        f"THEN try_strptime({t}, {quoted(layout)}) AT TIME ZONE 'UTC'"
        for layout in column.format
    ]
    spelled = f"regexp_replace(regexp_replace({t}, ' ?(UTC|GMT|Z)$', '+00'), ' ([+-][0-9:]+)$', '\\1')"
    iso = f"coalesce(TRY_CAST({t} AS TIMESTAMPTZ), TRY_CAST({spelled} AS TIMESTAMPTZ))"
    return f"CASE {' '.join(cases)} WHEN {like(t, ISO)} THEN {iso} END"
