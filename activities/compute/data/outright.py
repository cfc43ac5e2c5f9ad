"""Plain text files, held against their reading and converted in one pass over their rows.

Most files hold what their first rows promise. So the rows are written as that reading says, by an expression that fails
at the first value that is anything else, or that would have to be counted or looked at: then nothing is kept of the
attempt, and the file goes the long way (`checking`, then `conversion`), which has the last word.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb
import pyarrow.parquet

from activities.compute.data import rules
from activities.compute.data.checking import LONG, lossy
from activities.compute.data.engine import copy
from activities.compute.data.engine import name as column_name
from activities.compute.data.files import OURS, Opened
from activities.compute.data.looked import TEXTUAL, Looked
from everloop.errors import naming
from everloop.reading import ReadColumn
from everloop.texts import AMONG_NUMBERS, BLANKS, NOTHING_YET, Decided

Target = Callable[[int, Mapping[str, ReadColumn]], Path | None]
"""Where the rows of a file, read so, are to be written; None where they need not be: they are there already."""


MOST_COLUMNS = 100
"""To plan the query costs DuckDB more than it saves where it has many: the time grows with their square."""


@dataclass(frozen=True)
class Made:
    """Rows that were written by the way."""

    path: Path
    columns: Mapping[str, ReadColumn]
    """How they were read."""


def is_plain(decided: Decided, looked: Looked) -> bool:
    """Is there nothing to be counted or looked at in what was seen of the column?"""
    column = decided.column
    if looked.kind is not None:
        return False
    if column.type in TEXTUAL:
        if decided.watch not in (None, NOTHING_YET):
            return False
        return not any(_bare(text, column) in column.missing for text in looked.texts if text)
    if column.declared or column.missing != AMONG_NUMBERS or column.scale is not None:
        return False
    if column.thousands or column.unit or column.decimal == ",":
        return False
    return not any(text != text.strip(BLANKS) or text in column.missing for text in looked.texts if text)


def _bare(text: str, column: ReadColumn) -> str:
    return text.strip(BLANKS) if column.trim else text


def attempted(  # noqa: PLR0917
    files: Sequence[Opened],
    looked: Sequence[Mapping[str, Looked]],
    plan: Mapping[str, Sequence[Decided]],
    rows: list[int],
    otherwise: Callable[[int, str], str],
    target: Target,
    duck: duckdb.DuckDBPyConnection,
) -> dict[int, Made]:
    """The files whose rows are what the plan says, by their place; what was to be counted of them is noted.

    *otherwise*: how the SQL is made of a column that has been checked before.
    """
    made = {}
    for place, (file, columns) in enumerate(zip(files, looked, strict=True)):
        own = {name: decided[place] for name, decided in plan.items()}
        read = {name: decided.column for name, decided in own.items()}
        if file.dialect is None or not _may_be(file, own, columns) or (path := target(place, read)) is None:
            continue
        with naming(file=file.name):
            count = _written(file, own, columns, partial(otherwise, place), path, duck)
        if count:
            rows[place] = count
            made[place] = Made(path, read)
    return made


def _may_be(file: Opened, plan: Mapping[str, Decided], columns: Mapping[str, Looked]) -> bool:
    if len(plan) > MOST_COLUMNS or len({name.casefold() for name in plan}) < len(plan):
        return False  # the latter are one name to DuckDB
    checked = [columns[name] for name, decided in plan.items() if not is_plain(decided, columns[name])]
    if len(checked) == len(plan) or any(each.longest > LONG or each.surprises for each in checked):
        return False
    # Which texts stand in quotes is told by another way of reading the file.
    return not (file.quoted_blanks and any(each.blanks for each in checked))


def _written(  # noqa: PLR0917
    file: Opened,
    plan: Mapping[str, Decided],
    columns: Mapping[str, Looked],
    otherwise: Callable[[str], str],
    target: Path,
    duck: duckdb.DuckDBPyConnection,
) -> int:
    """How many rows were written; 0 where something else stands in the file."""
    steps, cells = [], []
    for name, decided in plan.items():
        step, cell = _strict(decided, columns[name], file.odd_blanks)
        if not cell:
            step, cell = "", otherwise(name)
        steps.append(step)
        cells.append(f"{cell} AS {column_name(name)}")
    rows = f"(SELECT *{''.join(f', {step}' for step in steps if step)} FROM {file.relation()})"
    try:
        copy(f"SELECT {', '.join(cells)} FROM {rows}", target, len(cells), duck)
    except OURS:
        raise
    except duckdb.Error:  # also of a file that cannot be read: the long way says what is wrong
        target.unlink(missing_ok=True)
        return 0
    return _noted(plan, columns, target)


def _noted(plan: Mapping[str, Decided], columns: Mapping[str, Looked], path: Path) -> int:
    written = pyarrow.parquet.read_metadata(path)
    groups = [written.row_group(group) for group in range(written.num_row_groups)]
    for place, (name, decided) in enumerate(plan.items()):
        if not is_plain(decided, columns[name]):
            continue
        statistics = [group.column(place).statistics for group in groups]
        if any(each is None or not each.has_null_count for each in statistics):
            return 0
        each = columns[name]
        each.checked, each.missing = decided, sum(one.null_count for one in statistics)
        each.surprises = each.blanks = each.longest = each.clipped = 0
    return int(written.num_rows)


SURPRISE = "error('everloop: a surprise')"


def _strict(decided: Decided, looked: Looked, odd: str) -> tuple[str, str]:
    """The value of a column, and what it needs as a column of its own: DuckDB computes that once.

    Nothing where the column is not plain.
    """
    if not is_plain(decided, looked):
        return "", ""
    column, place = decided.column, looked.place
    x, v = f"c{place}", f"v{place}"
    if decided.watch is not None:
        return "", f"CASE WHEN {x} <> '' THEN CAST({SURPRISE} AS VARCHAR) END"
    if column.type in TEXTUAL:
        step = f"{rules.trimmed(x, column, odd)} AS {v}"
        return step, f"CASE WHEN {rules.one_of(v, column.missing)} THEN {SURPRISE} WHEN {v} <> '' THEN {v} END"
    if column.type == "boolean":
        return f"{rules.value(x, column)} AS {v}", _or_surprise(x, v, f"{v} IS NOT NULL")
    if column.type == "datetime":
        within = f"{v} BETWEEN {rules.FIRST} AND {rules.LAST}"
        return f"{rules.moment(x, column)} AS {v}", _or_surprise(x, v, within)
    kind, kept = ("BIGINT", f"CAST({v} AS VARCHAR) = {x}") if column.type == "integer" else ("DOUBLE", _is_kept(x, v))
    return f"TRY_CAST({x} AS {kind}) AS {v}", _or_surprise(x, v, kept)


def _or_surprise(x: str, v: str, fits: str) -> str:
    return f"CASE WHEN {fits} THEN {v} WHEN {x} = '' THEN NULL ELSE {SURPRISE} END"


def _is_kept(x: str, v: str) -> str:
    """Is the text a number that float64 gives back? Where its shortest text is the same, all is said."""
    usual = f"{rules.is_bare(x)} AND NOT contains({x}, '_') AND NOT {rules.is_code(x)}"
    bare = f"ltrim({x}, '+-')"
    long = f"CASE WHEN CAST({v} AS VARCHAR) = {x} THEN true ELSE {usual} AND NOT {lossy(bare)} END"
    return f"isfinite({v}) AND CASE WHEN strlen({x}) <= {LONG} THEN {usual} ELSE {long} END"
