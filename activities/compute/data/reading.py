# what a job prints is its log
"""How the files of a source become typed columns: decided from some of their texts, and held against all rows.

A decision that some row contradicts is made again with that row's text, until none does: what is found is true of
every row. What the spec declares is not decided about; values that are not as declared are counted and missing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from activities.compute.data import outright, rules, typed
from activities.compute.data.changes import changes, is_rejected
from activities.compute.data.checking import check, keep_exact, sample
from activities.compute.data.deciding import plan_of
from activities.compute.data.engine import name as column_name
from activities.compute.data.files import Opened
from activities.compute.data.infinite import with_infinite
from activities.compute.data.looked import TEXTUAL, Looked
from activities.compute.data.points import with_points
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
    made: dict[int, outright.Made] = field(default_factory=dict)
    """Files that were converted by the way, by their place."""


def settle(
    files: Sequence[Opened],
    asked: Mapping[str, ColumnReading],
    duck: duckdb.DuckDBPyConnection,
    target: outright.Target | None = None,
) -> Read:
    """How the columns of *files* are read. Raises `InvalidData`, `SchemaMismatch` with the file and the column.

    With *target*, files that hold what their first rows promise are converted in the pass that finds it out.
    """
    same_columns(files)
    names = files[0].columns
    looked = [{name: Looked(file.columns.index(name), file.types.get(name)) for name in names} for file in files]
    for file, columns in zip(files, looked, strict=True):
        with naming(file=file.name):
            sample(file, columns, duck)
    rows = [0] * len(files)
    plan: dict[str, list[Decided]] = {}
    made: dict[int, outright.Made] = {}
    known: dict[str, list[int]] = {}
    for _ in range(MOST_ROUNDS):
        for name in names:
            texts = [len(columns[name].texts) for columns in looked]
            if known.get(name) == texts:
                continue  # nothing new was seen
            with naming(column=name):
                plan[name] = plan_of(name, files, [columns[name] for columns in looked], asked.get(name))
            known[name] = texts
        first = plan if target is None else {name: plan[name] for name in names if not _plain(plan[name], name, looked)}
        if check(files, looked, first, rows, duck):
            continue
        if target is None:
            break
        made = _attempted(files, looked, plan, rows, target, duck)
        target = None
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
    finite = {
        place: [name for name in names if outright.is_plain(plan[name][place], looked[place][name])] for place in made
    }
    infinite = with_infinite(changes(files, looked, settled, rows, duck), files, looked, settled, finite, duck)
    unread = {name: str(each[name].kind)[:80] for each in looked for name in names if each[name].unread}
    return Read(
        reading=reading.model_copy(update={"dialect": dialect}) if dialect else reading,
        files=list(files),
        columns=settled,
        looked=looked,
        rows=rows,
        changed=with_points(infinite, looked, settled, asked),
        unread=unread,
        made=made,
    )


def _plain(plan: Sequence[Decided], name: str, looked: Sequence[Mapping[str, Looked]]) -> bool:
    return all(outright.is_plain(one, columns[name]) for one, columns in zip(plan, looked, strict=True))


def _attempted(  # noqa: PLR0917
    files: Sequence[Opened],
    looked: Sequence[Mapping[str, Looked]],
    plan: Mapping[str, Sequence[Decided]],
    rows: list[int],
    target: outright.Target,
    duck: duckdb.DuckDBPyConnection,
) -> dict[int, outright.Made]:
    def checked(place: int, name: str) -> str:
        return _cell(plan[name][place].column, looked[place][name], nulls=False, odd=files[place].odd_blanks)

    return outright.attempted(files, looked, plan, rows, checked, target, duck)


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
