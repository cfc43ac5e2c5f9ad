# what a job prints is its log
"""How the files of a source become typed columns: decided from some of their texts, and held against all rows.

A decision that some row contradicts is made again with that row's text, until none does: what is found is true of
every row. What the spec declares is not decided about; values that are not as declared are counted and missing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from activities.compute.data import rules, typed
from activities.compute.data.changes import changes, is_rejected
from activities.compute.data.checking import check, keep_exact, sample
from activities.compute.data.deciding import plan_of
from activities.compute.data.engine import name as column_name
from activities.compute.data.files import Opened
from activities.compute.data.infinite import with_infinite
from activities.compute.data.looked import TEXTUAL, Looked
from everloop.errors import InvalidData, SchemaMismatch, naming
from everloop.reading import Changed, ReadColumn, Reading
from everloop.specs import ColumnReading
from everloop.texts import Decided, decide

MOST_ROUNDS = 20


@dataclass
class Read:
    """The settled reading of a source."""

    reading: Reading
    files: list[Opened]
    columns: list[dict[str, ReadColumn]]
    """By file: a column may be written in more than one way."""
    looked: list[dict[str, Looked]]
    rows: list[int]
    changed: list[Changed]
    unread: dict[str, str]
    """Types that no model understands, by column."""


def settle(files: Sequence[Opened], asked: Mapping[str, ColumnReading], duck: duckdb.DuckDBPyConnection) -> Read:
    """How the columns of *files* are read. Raises `InvalidData`, `SchemaMismatch` with the file and the column."""
    same_columns(files)
    names = files[0].columns
    looked = [{name: Looked(file.columns.index(name), file.types.get(name)) for name in names} for file in files]
    for file, columns in zip(files, looked, strict=True):
        with naming(file=file.name):
            sample(file, columns, duck)
    rows = [0] * len(files)
    plan: dict[str, list[Decided]] = {}
    for _ in range(MOST_ROUNDS):
        plan = {}
        for name in names:
            with naming(column=name):
                plan[name] = plan_of(name, files, [columns[name] for columns in looked], asked.get(name))
        if not check(files, looked, plan, rows, duck):
            break
    plan = _as_text_where_unsettled(plan, looked)
    check(files, looked, plan, rows, duck)
    for file, count in zip(files, rows, strict=True):
        if not count:
            hint = "add rows, or remove the file"
            raise InvalidData(f"{file.name} has a header but no rows", field="source.path", hint=hint)
    keep_exact(files, looked, plan, duck)
    settled = [{name: plan[name][place].column for name in names} for place in range(len(files))]
    dialect = files[0].dialect
    reading = Reading(columns=tuple(settled[0].values()))
    unread = {name: str(each[name].kind)[:80] for each in looked for name in names if each[name].unread}
    return Read(
        reading=reading.model_copy(update={"dialect": dialect}) if dialect else reading,
        files=list(files),
        columns=settled,
        looked=looked,
        rows=rows,
        changed=with_infinite(changes(files, looked, settled, rows, duck), files, looked, settled, duck),
        unread=unread,
    )


def same_columns(files: Sequence[Opened]) -> None:
    usual = Counter(frozenset(file.columns) for file in files).most_common(1)[0][0]
    for file in files:
        own = frozenset(file.columns)
        if own == usual:
            continue
        missing, extra = sorted(usual - own), sorted(own - usual)
        what = f"lacks the column {missing[0]!r}" if missing else f"has the column {extra[0]!r}"
        hint = "all files of a folder need the same columns"
        field_ = (missing or extra)[0]
        raise SchemaMismatch(f"{file.name} {what}, unlike the other files", field=field_, hint=hint)


def _as_text_where_unsettled(
    plan: dict[str, list[Decided]], looked: Sequence[Mapping[str, Looked]]
) -> dict[str, list[Decided]]:
    """A column about which rows go on to disagree is text."""
    for name, decided in plan.items():
        unsettled = any(each[name].surprises for each in looked)
        if unsettled and decided[0].column.type not in TEXTUAL and not decided[0].column.declared:
            column = decide(name, (), None).column.model_copy(update={"trim": decided[0].column.trim})
            plan[name] = [Decided(column)] * len(decided)
    return plan


def select(read: Read, place: int, *, numbered: bool = False, where: str = "") -> str:
    """The rows of one file as the snapshot keeps them, as SQL.

    With *numbered*, columns are called 0, 1, ...; with *where*, only rows of which that is true, by their number `n`.
    """
    file = read.files[place]
    nulls = file.quoted_blanks and any(
        not column.quoted and read.looked[place][name].blanks for name, column in read.columns[place].items()
    )
    cells = []
    for number, (name, column) in enumerate(read.columns[place].items()):
        cell = _cell(column, read.looked[place][name], nulls=nulls, odd=file.odd_blanks)
        cells.append(f"{cell} AS {column_name(str(number) if numbered else name)}")
    rows = file.relation(nulls=nulls)
    if where:
        rows = f"(SELECT * FROM (SELECT *, row_number() OVER () AS n FROM {rows}) WHERE {where})"
    return f"SELECT {', '.join(cells)} FROM {rows}"


def _cell(column: ReadColumn, looked: Looked, *, nulls: bool, odd: str) -> str:
    x = f"c{looked.place}"
    if looked.kind is not None:
        if looked.unread or pa.types.is_null(looked.kind):
            return "CAST(NULL AS VARCHAR)"
        if looked.kept(column):
            return typed.value(x, looked.kind, column)
        x = typed.as_text(x, looked.kind)
    elif nulls:
        x = f"coalesce({x}, '')"
    t = rules.trimmed(x, column, odd)
    made = rules.value(t, column)
    if not column.missing or (nulls and not column.quoted):
        return made
    if column.type in ("number", "integer", "boolean", "datetime") and not column.declared and not _valued(column):
        return made  # none of those texts is a value anyway
    return f"CASE WHEN NOT {rules.one_of(t, column.missing)} THEN {made} END"


def _valued(column: ReadColumn) -> bool:
    """May a text that means missing also be a value of the column: -1, or 9999-12-31?"""
    return any(not is_rejected(text, column.model_copy(update={"missing": ()})) for text in column.missing)
