"""Text that was probably meant to be numbers."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from activities.compute.data.first import _any_code
from activities.compute.data.table import null_where
from activities.compute.data.times import LOOKED_AT
from everloop.rows import DECIMAL_COMMA, NUMBER_BLANKS, THOUSANDS
from everloop.texts import is_moment, layouts_of

CODES = 20
"""Text with at most this many different values is taken for codes, whatever they look like."""

MOSTLY_NUMBERS, MOSTLY_WHOLE = 0.5, 0.9
"""Share of numbers from which a text column seems meant as numbers; whole ones may be codes, so more are asked for."""
DRESSED = r"^[+-]?[$€£¥]? ?[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)? ?[%$€£¥]?$"
"""A number with a currency, a percent sign or commas between thousands."""
PLAIN = r"(?i)^\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*$"


MOSTLY_DAYS = 0.9


def no_day(filled: pa.ChunkedArray) -> str:
    """Why texts of which nearly all are days make no datetime column: the first that is none; nothing for others."""
    texts = filled.unique()
    some = texts[:LOOKED_AT].to_pylist()
    best = layouts_of(some)
    if best is None or sum(is_moment(text, best) for text in some) < MOSTLY_DAYS * len(some):
        return ""
    odd = next((text for text in texts.to_pylist() if not is_moment(text, best)), None)
    if odd is None:
        return _two_ways(some)
    return f"{odd[:40]!r} is no day, so all of it is text: mend it, or name it in `missing` under `columns`"


def _two_ways(days: Sequence[str]) -> str:
    iso = next((text for text in days if is_moment(text, ())), None)
    other = next((text for text in days if not is_moment(text, ())), None)
    if iso is None or other is None:
        return ""
    return f"days like {iso!r} and {other!r} make it text: `type: datetime` under `columns` reads both"


def mistaken(column: pa.ChunkedArray) -> str:
    """Why a text column was probably meant to hold numbers; nothing where that is not likely.

    Codes are meant as they are: a column of few different values, with leading zeros (01234), or where digits
    stand in what is no number (E909, 12b, 12345-6789).
    """
    filled = pc.utf8_trim_whitespace(pc.drop_null(column))
    return (no_day(filled) or _no_number(filled)) if len(filled) else ""


def _no_number(filled: pa.ChunkedArray) -> str:
    if _any_code(filled):
        return ""
    few = pc.count_distinct(filled).as_py() <= CODES
    if why := _comma_mistaken(filled, few=few):
        return why
    plain = pc.match_substring_regex(filled, PLAIN)
    if few or pc.all(plain).as_py():
        return ""
    number = pc.or_(plain, pc.or_(_like(filled, DRESSED), _like(filled, DECIMAL_COMMA)))
    others = filled.filter(pc.invert(number))
    if not len(others):
        odd = filled.filter(pc.invert(plain))[0].as_py()[:40]
        return f"values like {odd!r} are read as text: if these are numbers, write them with digits and a point alone"
    fractions = pc.any(_like(filled.filter(number), r"[.,]\d")).as_py()
    count = len(filled) - len(others)
    if count < (MOSTLY_NUMBERS if fractions else MOSTLY_WHOLE) * len(filled) or pc.any(_like(others, r"\d")).as_py():
        return ""
    return (
        f"{count:,} of {len(filled):,} values are numbers; the others, like {others[0].as_py()[:40]!r}, make it text: "
        "if these are numbers, empty the others"
    )


def _comma_mistaken(filled: pa.ChunkedArray, *, few: bool) -> str:
    """Why numbers with commas are text, where the column holds nothing else (but marks of missing values)."""
    filled = pc.drop_null(null_where(filled, NUMBER_BLANKS))
    commas = filled.filter(pc.match_substring(filled, ","))
    fits = pc.or_(_like(filled, PLAIN), pc.or_(_like(filled, DECIMAL_COMMA), _like(filled, THOUSANDS)))
    if not len(commas) or not pc.all(fits).as_py():
        return ""
    odd = commas[0].as_py()[:40]
    if pc.all(_like(commas, THOUSANDS)).as_py():
        return (
            f"values like {odd!r} are read as text: a comma could be decimal or stand between thousands; "
            "if these are numbers, save them without thousands separators"
        )
    points = filled.filter(pc.invert(_like(filled, DECIMAL_COMMA)))
    if len(points):
        other = points[0].as_py()[:40]
        return f"values like {odd!r} and {other!r} make it text: if these are numbers, write all of them in one way"
    return "" if few else f"values like {odd!r} are read as text: if these are numbers, write them with a decimal point"


def _like(column: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    return pc.match_substring_regex(column, pattern)
