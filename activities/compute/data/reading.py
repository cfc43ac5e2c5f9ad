# ruff: noqa: T201  # what a job prints is its log
"""How the files of a source become typed columns: decided from some of their texts, and held against all rows.

A decision that some row contradicts is made again with that row's text, until none does: what is found is true of
every row. What the spec declares is not decided about; values that are not as declared are counted and missing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from activities.compute.data import rules, typed
from activities.compute.data.engine import name as column_name
from activities.compute.data.files import Opened
from everloop.errors import InvalidData, SchemaMismatch
from everloop.reading import Changed, ReadColumn, Reading
from everloop.specs import ColumnReading
from everloop.texts import DAY_FIRST, MONTH_FIRST, Decided, NotAsReadError, decide, value_of

SAMPLED = 1000
"""Rows of each file that the first decision is made from."""
MOST_ROUNDS = 20
AT_ONCE = 40
"""Columns that one pass looks at: each takes DuckDB some memory."""
LONG = 15
"""Digits that float64 always holds."""
MOST_REJECTED = 0.05
"""Share of a declared column's values that may be no values of it."""
TEXTUAL = ("category", "text", "identifier")
EXAMPLES = 3
MOST_TEXTS = 8
"""Texts that mean missing, listed by column."""


@dataclass
class Looked:
    """What is known of one column of one file."""

    place: int
    kind: pa.DataType | None
    """Its type, where the file has types."""
    texts: set[str] = field(default_factory=set)
    checked: Decided | None = None
    """The last decision that was held against all rows."""
    surprises: int = 0
    missing: int = 0
    blanks: int = 0
    """Texts other than the empty one that were read as missing."""
    longest: int = 0
    clipped: int = 0

    @property
    def textual(self) -> bool:
        return self.kind is None or typed.is_text(self.kind)

    @property
    def unread(self) -> bool:
        """Has it a type that no model understands?"""
        kind = self.kind
        return (
            kind is not None
            and not self.textual
            and not pa.types.is_null(kind)
            and (typed.read_column("", kind) is None)
        )


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
        _sample(file, columns, duck)
    rows = [0] * len(files)
    plan: dict[str, list[Decided]] = {}
    for _ in range(MOST_ROUNDS):
        plan = {name: _plan(name, files, [columns[name] for columns in looked], asked.get(name)) for name in names}
        if not _check(files, looked, plan, rows, duck):
            break
    plan = _as_text_where_unsettled(plan, looked)
    _check(files, looked, plan, rows, duck)
    for file, count in zip(files, rows, strict=True):
        if not count:
            hint = "add rows, or remove the file"
            raise InvalidData(f"{file.name} has a header but no rows", field="source.path", hint=hint)
    _exact(files, looked, plan, duck)
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
        changed=_changed(files, looked, settled, rows, duck),
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


# --- the decision ---------------------------------------------------------------------------------------


def _sample(file: Opened, columns: Mapping[str, Looked], duck: duckdb.DuckDBPyConnection) -> None:
    textual = [each for each in columns.values() if each.textual]
    if not textual:
        return
    cells = ", ".join(f"coalesce(c{each.place}, '')" for each in textual)
    for row in _rows(file, f"SELECT {cells} FROM {{rows}} LIMIT {SAMPLED}", duck):
        for each, cell in zip(textual, row, strict=True):
            each.texts.add(str(cell))


def _rows(file: Opened, query: str, duck: duckdb.DuckDBPyConnection) -> list[tuple[object, ...]]:
    """The answer to *query* about the file's `{rows}`. Raises `InvalidData` in plain words."""
    while True:
        try:
            return list(duck.execute(query.replace("{rows}", file.relation())).fetchall())
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            if not file.adapt(str(error)):
                raise file.fault(str(error)) from None


def _plan(name: str, files: Sequence[Opened], columns: Sequence[Looked], asked: ColumnReading | None) -> list[Decided]:
    """How each file's column is read: in one way, or where that cannot be, each in its own."""
    if asked and asked.kind:
        texts = set().union(*(each.texts for each in columns))
        return [decide(name, texts, asked)] * len(columns)
    if not all(each.textual for each in columns):
        return _plan_typed(name, files, columns)
    typed_text = files[0].typed
    union = decide(name, set().union(*(each.texts for each in columns)), asked, typed=typed_text)
    if union.column.type != "category" or union.watch or len(columns) == 1:
        return [union] * len(columns)
    own = [decide(name, each.texts, asked, typed=typed_text) for each in columns]
    kinds = {one.column.type for one, each in zip(own, columns, strict=True) if not _empty(one, each)}
    if kinds <= {"number", "integer"} and kinds:
        for file, one in zip(files, own, strict=True):
            if one.column.decimal == "." and any(other.column.decimal == "," for other in own):
                print(f"{file.name}: {name!r} has decimal points here and decimal commas in others: read as written")
        return [one if one.column.type != "category" else own[0] for one in own]
    if kinds <= {"category", "integer", "boolean"}:
        if len(kinds) > 1:
            print(f"{name!r} is text in some files: it is read as text in all")
        return [union] * len(columns)
    if len(kinds) > 1 or kinds == {"datetime"}:
        raise _mismatch(name, files, own, columns)
    return [union] * len(columns)


def _empty(one: Decided, column: Looked) -> bool:
    return one.column.type == "category" and all(not text or text in one.column.missing for text in column.texts)


def _mismatch(name: str, files: Sequence[Opened], own: Sequence[Decided], columns: Sequence[Looked]) -> SchemaMismatch:
    kinds = [str(one.column.type).replace("category", "text").replace("integer", "number") for one in own]
    if set(kinds) == {"datetime"}:
        first = {place: one.column.format for place, one in enumerate(own)}
        days = [place for place, layouts in first.items() if any(each.startswith(DAY_FIRST) for each in layouts)]
        months = [place for place, layouts in first.items() if any(each.startswith(MONTH_FIRST) for each in layouts)]
        if days and months:
            message = f"{files[months[0]].name}: the column {name!r} writes the month first, in the other files the day"
            return SchemaMismatch(message, field=name, hint="write its days as 2013-01-31 in all files")
    filled = [place for place, one in enumerate(own) if not _empty(one, columns[place])]
    usual = Counter(kinds[place] for place in filled).most_common(1)[0][0]
    odd = next((place for place in filled if kinds[place] != usual), filled[-1])
    missing = own[odd].column.missing
    sample = min((text for text in columns[odd].texts if text and text not in missing), default="")
    message = (
        f"{files[odd].name}: the column {name!r} holds {kinds[odd]} values (for instance {sample!r}), "
        f"in the other files {usual} values"
    )
    return SchemaMismatch(message, field=name, hint="a column must hold the same kind of values in all files")


def _plan_typed(name: str, files: Sequence[Opened], columns: Sequence[Looked]) -> list[Decided]:
    found = [typed.read_column(name, each.kind) for each in columns if each.kind is not None and not each.textual]
    there = [one for one in found if one is not None]
    texts = [place for place, each in enumerate(columns) if each.textual]
    nothing = ReadColumn(name=name, type="category")
    if not there:
        return [Decided(nothing)] * len(columns) if not texts else [decide(name, (), typed=True)] * len(columns)
    kinds = {"number" if one.type == "integer" else str(one.type) for one in there}
    if texts:
        kinds.add("text")
    if len(kinds) > 1:
        own = [
            Decided(typed.read_column(name, each.kind) or nothing) if each.kind is not None else Decided(nothing)
            for each in columns
        ]
        raise _mismatch_typed(name, files, own, columns)
    made = there[0]
    if made.type in ("number", "integer") and len({(one.type, one.scale) for one in there}) > 1:
        scales = [0 if one.type == "integer" else one.scale for one in there]
        exact = max(scale for scale in scales if scale is not None) if None not in scales else None
        made = ReadColumn(name=name, type="number", scale=exact)
    return [Decided(made)] * len(columns)


def _mismatch_typed(
    name: str, files: Sequence[Opened], own: Sequence[Decided], columns: Sequence[Looked]
) -> SchemaMismatch:
    kinds = [str(one.column.type).replace("category", "text").replace("integer", "number") for one in own]
    usual = Counter(kinds).most_common(1)[0][0]
    odd = next(place for place, kind in enumerate(kinds) if kind != usual)
    message = (
        f"{files[odd].name}: the column {name!r} holds {kinds[odd]} values (type {columns[odd].kind}), "
        f"in the other files {usual} values"
    )
    return SchemaMismatch(message, field=name, hint="a column must hold the same kind of values in all files")


# --- held against all rows ------------------------------------------------------------------------------


def _check(
    files: Sequence[Opened],
    looked: Sequence[Mapping[str, Looked]],
    plan: Mapping[str, Sequence[Decided]],
    rows: list[int],
    duck: duckdb.DuckDBPyConnection,
) -> bool:
    """Count, in one pass over each file, what the plan does to its columns. False where nothing was left to check."""
    busy = False
    for place, (file, columns) in enumerate(zip(files, looked, strict=True)):
        pending = [name for name, each in columns.items() if each.checked != plan[name][place]]
        for start in range(0, len(pending), AT_ONCE):
            some = {name: plan[name][place] for name in pending[start : start + AT_ONCE]}
            rows[place] = _count(file, columns, some, duck)
            busy = True
    return busy


def _count(
    file: Opened, columns: Mapping[str, Looked], plan: Mapping[str, Decided], duck: duckdb.DuckDBPyConnection
) -> int:
    """One pass over the file. What follows from the other is a level of its own: DuckDB computes each once."""
    steps = {name: _steps(decided, columns[name]) for name, decided in plan.items()}
    query = f"SELECT {', '.join(step.cell for step in steps.values() if step.cell) or '1'} FROM {{rows}}"
    query = f"SELECT *{''.join(', ' + step.fits for step in steps.values() if step.fits)} FROM ({query})"
    query = f"SELECT *{''.join(', ' + step.blank for step in steps.values() if step.blank)} FROM ({query})"
    counts = ", ".join(["count(*)", *(count for step in steps.values() for count in step.counts)])
    (answer,) = _rows(file, f"SELECT {counts} FROM ({query})", duck)
    at = 1
    for name, step in steps.items():
        _note(columns[name], plan[name], answer[at : at + len(step.counts)])
        at += len(step.counts)
    return int(str(answer[0]))


@dataclass
class Steps:
    """What to compute of a column in each row, one level after the other, and what to count of that."""

    cell: str = ""
    fits: str = ""
    blank: str = ""
    counts: tuple[str, ...] = ()


def _steps(decided: Decided, looked: Looked) -> Steps:
    column, place = decided.column, looked.place
    t, f, b, m = f"t{place}", f"f{place}", f"b{place}", f"m{place}"
    if looked.kind is not None and not looked.textual and not column.declared:
        if column.type != "datetime" or looked.unread:
            return Steps()
        when = typed.moment(f"c{place}", looked.kind)
        return Steps(f"{when} AS {m}", counts=(f"count(*) FILTER (WHERE {rules.outside(m)})",))
    text = typed.as_text(f"c{place}", looked.kind) if looked.kind is not None else f"c{place}"
    found = Steps(f"{rules.trimmed(text, column)} AS {t}")
    when = f"{rules.moment(t, column)} AS {m}, " if column.type == "datetime" else ""
    fits = rules.fits(t, column) if not when else f"({rules.moment(t, column)}) IS NOT NULL"
    if column.type in TEXTUAL:
        fits = "true" if decided.watch is None else rules.like(t, decided.watch)
    found.fits = f"{when}{fits} AS {f}"
    blank = rules.one_of(t, column.missing)
    # Most values fit, and none of those means missing unless the spec says so.
    found.blank = f"{blank} AS {b}" if column.declared or column.type in TEXTUAL else f"(NOT {f} AND {blank}) AS {b}"
    odd = f"(WHERE NOT {f} AND NOT {b} AND {t} <> '')"
    counts = [f"count(*) FILTER {odd}", f"min({t}) FILTER {odd}", f"max({t}) FILTER {odd}"]
    counts += [f"any_value({t}) FILTER {odd}", f"count(*) FILTER (WHERE {b} OR {t} = '')"]
    counts += [f"count(*) FILTER (WHERE {b})"]
    if column.type == "number":
        counts.append(f"max(strlen({t}))")
    if column.type == "datetime":
        counts.append(f"count(*) FILTER (WHERE {rules.outside(m)})")
    found.counts = tuple(counts)
    return found


def _note(looked: Looked, decided: Decided, answer: Sequence[object]) -> None:
    looked.checked = decided
    looked.surprises, looked.clipped = 0, 0
    if not answer:
        return
    if len(answer) == 1:
        looked.clipped = int(str(answer[0]))
        return
    looked.surprises, looked.missing, looked.blanks = (int(str(answer[place])) for place in (0, 4, 5))
    looked.texts.update(str(text) for text in answer[1:4] if text is not None)
    if decided.column.type == "number":
        looked.longest = int(str(answer[6] or 0))
    if decided.column.type == "datetime":
        looked.clipped = int(str(answer[6]))


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


def _exact(
    files: Sequence[Opened],
    looked: Sequence[Mapping[str, Looked]],
    plan: dict[str, list[Decided]],
    duck: duckdb.DuckDBPyConnection,
) -> None:
    """Keep numbers as exact decimals where float64 would not give back what was written."""
    names = [
        name
        for name, decided in plan.items()
        if all(each[name].textual for each in looked) and max(each[name].longest for each in looked) > LONG
        if all(one.column.type == "number" for one in decided)
    ]
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        digits = [
            _digits(file, each, {name: plan[name][place].column for name in some}, duck)
            for place, (file, each) in enumerate(zip(files, looked, strict=True))
        ]
        for name in some:
            own = [each[name] for each in digits]
            whole, scale, lossy = (max(one[place] for one in own) for place in range(3))
            if lossy and whole + scale <= rules.WIDEST:
                plan[name] = [Decided(one.column.model_copy(update={"scale": scale}), one.watch) for one in plan[name]]


POWERS = "regexp_full_match(p{0}, '[0-9]*[.]?[0-9]*')"


def _digits(
    file: Opened, looked: Mapping[str, Looked], columns: Mapping[str, ReadColumn], duck: duckdb.DuckDBPyConnection
) -> dict[str, tuple[int, int, int]]:
    """By column: most digits before and after the point, and how many values float64 would change (0 with powers)."""
    cells, counts = [], []
    for name, column in columns.items():
        place = looked[name].place
        plain = rules.plain(rules.trimmed(f"c{place}", column), column)
        cells.append(f"CASE WHEN TRY_CAST({plain} AS DOUBLE) IS NOT NULL THEN ltrim({plain}, '+-') END AS p{place}")
        cut = f"CASE WHEN {POWERS.format(place)} THEN p{place} END"
        parts = [f"max(strlen(split_part({cut}, '.', {part})))" for part in (1, 2)]
        # Shortest text of the nearest float64: where it is another number, digits are lost.
        back = f"CAST(TRY_CAST(p{place} AS DOUBLE) AS VARCHAR)"
        wide = f"DECIMAL({rules.WIDEST}, {rules.WIDEST // 2})"
        same = f"TRY_CAST(p{place} AS {wide}) = TRY_CAST({back} AS {wide})"
        many = f"strlen(trim(replace({cut}, '.', ''), '0'))"
        counts += [*parts, f"count(*) FILTER (WHERE NOT {POWERS.format(place)})"]
        counts += [f"count(*) FILTER (WHERE {many} > {LONG + 2} OR ({many} > {LONG} AND NOT coalesce({same}, true)))"]
    query = f"SELECT {', '.join(counts)} FROM (SELECT {', '.join(cells)} FROM {{rows}})"
    (answer,) = _rows(file, query, duck)
    numbers = [int(str(value or 0)) for value in answer]
    found = {}
    for place, name in enumerate(columns):
        whole, scale, powers, lossy = numbers[4 * place : 4 * place + 4]
        found[name] = (whole, scale, 0 if powers else lossy)
    return found


# --- what the rules changed ------------------------------------------------------------------------------


def _changed(
    files: Sequence[Opened],
    looked: Sequence[Mapping[str, Looked]],
    columns: Sequence[Mapping[str, ReadColumn]],
    rows: Sequence[int],
    duck: duckdb.DuckDBPyConnection,
) -> list[Changed]:
    found = []
    for name in columns[0]:
        own = [each[name] for each in looked]
        column = columns[0][name]
        texts: Counter[str] = Counter()
        for file, each, by_name in zip(files, own, columns, strict=True):
            if each.blanks:
                texts.update(_blank_texts(file, each, by_name[name], duck))
        rejected = sum(each.surprises for each in own) if column.declared else 0
        clipped = sum(each.clipped for each in own)
        if rejected:
            _check_rejected(column, own, rejected, rows)
        if texts or rejected or clipped:
            examples = sorted({text for each in own for text in each.texts if _is_rejected(text, column)})
            change = Changed(
                column=name,
                missing=sum(each.missing for each in own),
                texts=dict(texts.most_common(MOST_TEXTS)),
                rejected=rejected,
                examples=tuple(text[:40] for text in examples[:EXAMPLES]) if rejected else (),
                clipped=clipped,
            )
            found.append(change)
    return found


def _is_rejected(text: str, column: ReadColumn) -> bool:
    try:
        value_of(text, column)
    except NotAsReadError:
        return True
    return False


def _check_rejected(column: ReadColumn, own: Sequence[Looked], rejected: int, rows: Sequence[int]) -> None:
    # `surprises` counts what is neither missing nor a value; more than a few mean that the declaration is wrong.
    texts = sorted({text for each in own for text in each.texts if _is_rejected(text, column)})
    total = sum(rows) - sum(each.missing for each in own)
    if rejected > MOST_REJECTED * total:
        shown = ", ".join(repr(text[:40]) for text in texts[:EXAMPLES])
        message = (
            f"columns.{column.name}: {rejected:,} of {total:,} values are not as declared ({column.type}): {shown}"
        )
        hint = "change what the spec says of the column, or name those texts in its `missing`"
        raise InvalidData(message, field=f"columns.{column.name}", hint=hint)


def _blank_texts(file: Opened, looked: Looked, column: ReadColumn, duck: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How often each text that means missing stands in a column."""
    kind = looked.kind
    text = typed.as_text(f"c{looked.place}", kind) if kind is not None else f"c{looked.place}"
    t = rules.trimmed(text, column)
    query = f"SELECT {t}, count(*) FROM {{rows}} WHERE {rules.one_of(t, column.missing)} GROUP BY 1"
    found = {str(text): int(str(count)) for text, count in _rows(file, query, duck)}
    if file.quoted_blanks and not column.quoted:  # those in quotes are meant
        relation = file.relation(nulls=True)
        for text, count in duck.execute(query.replace("{rows}", relation)).fetchall():
            found[text] -= count
    return {text: count for text, count in found.items() if count}


# --- the typed rows --------------------------------------------------------------------------------------


def select(read: Read, place: int, *, numbered: bool = False) -> str:
    """The rows of one file as the snapshot keeps them, as SQL; with *numbered*, columns are called 0, 1, ..."""
    file = read.files[place]
    nulls = file.quoted_blanks and any(
        not column.quoted and read.looked[place][name].blanks for name, column in read.columns[place].items()
    )
    cells = [
        f"{_cell(column, read.looked[place][name], nulls=nulls)} AS {column_name(str(number) if numbered else name)}"
        for number, (name, column) in enumerate(read.columns[place].items())
    ]
    return f"SELECT {', '.join(cells)} FROM {file.relation(nulls=nulls)}"


def _cell(column: ReadColumn, looked: Looked, *, nulls: bool) -> str:
    x = f"c{looked.place}"
    if looked.kind is not None:
        if looked.unread or pa.types.is_null(looked.kind):
            return "CAST(NULL AS VARCHAR)"
        if not looked.textual and not column.declared:
            return typed.value(x, looked.kind, column)
        x = typed.as_text(x, looked.kind)
    elif nulls:
        x = f"coalesce({x}, '')"
    t = rules.trimmed(x, column)
    made = rules.value(t, column)
    if not column.missing or (nulls and not column.quoted):
        return made
    if column.type in ("number", "integer", "boolean", "datetime") and not column.declared and not _valued(column):
        return made  # none of those texts is a value anyway
    return f"CASE WHEN NOT {rules.one_of(t, column.missing)} THEN {made} END"


def _valued(column: ReadColumn) -> bool:
    """May a text that means missing also be a value of the column: -1, or 9999-12-31?"""
    return any(not _is_rejected(text, column.model_copy(update={"missing": ()})) for text in column.missing)
