"""A decision held against all rows, in one pass over each file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from activities.compute.data import rules, typed
from activities.compute.data.files import Opened
from activities.compute.data.looked import TEXTUAL, Looked, ask
from everloop.errors import naming
from everloop.reading import ReadColumn
from everloop.texts import AMONG_NUMBERS, Decided

SAMPLED = 1000
"""Rows of each file that the first decision is made from."""


AT_ONCE = 40
"""Columns that one pass looks at: each takes DuckDB some memory."""


LONG = 15
"""Digits that float64 always holds."""


def sample(file: Opened, columns: Mapping[str, Looked], duck: duckdb.DuckDBPyConnection) -> None:
    textual = [each for each in columns.values() if each.textual]
    if not textual:
        return
    cells = ", ".join(f"coalesce(c{each.place}, '')" for each in textual)
    for row in ask(file, f"SELECT {cells} FROM {{rows}} LIMIT {SAMPLED}", duck):
        for each, cell in zip(textual, row, strict=True):
            each.texts.add(str(cell))


def check(
    files: Sequence[Opened],
    looked: Sequence[Mapping[str, Looked]],
    plan: Mapping[str, Sequence[Decided]],
    rows: list[int],
    duck: duckdb.DuckDBPyConnection,
) -> bool:
    """Count, in one pass over each file, what the plan does to the columns it is of. False where nothing was left."""
    busy = False
    for place, (file, columns) in enumerate(zip(files, looked, strict=True)):
        pending = [name for name, decided in plan.items() if columns[name].checked != decided[place]]
        for start in range(0, len(pending), AT_ONCE):
            some = {name: plan[name][place] for name in pending[start : start + AT_ONCE]}
            with naming(file=file.name):
                rows[place], again = _count(file, columns, some, duck)
                if again:
                    _count(file, columns, {name: some[name] for name in again}, duck, quickly=False)
            busy = True
    return busy


def _count(
    file: Opened,
    columns: Mapping[str, Looked],
    plan: Mapping[str, Decided],
    duck: duckdb.DuckDBPyConnection,
    *,
    quickly: bool = True,
) -> tuple[int, list[str]]:
    """One pass over the file: how many rows it has, and columns at which a closer look is needed.

    What follows from the other is a level of its own in the query: DuckDB computes each once.
    """
    steps = {
        name: (_quick_steps(decided, columns[name]) if quickly else None)
        or _steps(decided, columns[name], odd=file.odd_blanks)
        for name, decided in plan.items()
    }
    query = f"SELECT {', '.join(step.cell for step in steps.values() if step.cell) or '1'} FROM {{rows}}"
    query = f"SELECT *{''.join(', ' + step.fits for step in steps.values() if step.fits)} FROM ({query})"
    query = f"SELECT *{''.join(', ' + step.blank for step in steps.values() if step.blank)} FROM ({query})"
    counts = ", ".join(["count(*)", *(count for step in steps.values() for count in step.counts)])
    (answer,) = ask(file, f"SELECT {counts} FROM ({query})", duck)
    at, again = 1, []
    for name, step in steps.items():
        own = answer[at : at + len(step.counts)]
        at += len(step.counts)
        if not step.quick:
            _note(columns[name], plan[name], own)
        elif not _note_quickly(columns[name], plan[name], own):
            again.append(name)
    return int(str(answer[0])), again


@dataclass
class Steps:
    """What to compute of a column in each row, one level after the other, and what to count of that."""

    cell: str = ""
    fits: str = ""
    blank: str = ""
    counts: tuple[str, ...] = ()
    quick: bool = False


def _quick_steps(decided: Decided, looked: Looked) -> Steps | None:
    """Of plain numbers, most often all that is to be said: each is one, or empty. A fifth of the cost of `_steps`."""
    column = decided.column
    if looked.kind is not None or column.type not in ("integer", "number") or column.missing != AMONG_NUMBERS:
        return None
    if column.thousands or column.unit or column.decimal == ",":
        return None
    t, f = f"t{looked.place}", f"f{looked.place}"
    fits = rules.is_usual_number(t, column)
    counts = [f"count(*) FILTER (WHERE NOT {f})", f"count(*) FILTER (WHERE {t} = '')"]
    if column.type == "number":
        # Where the shortest text of the float64 is the same, no digit is lost.
        back = f"CAST(TRY_CAST({t} AS DOUBLE) AS VARCHAR)"
        counts.append(f"max(CASE WHEN strlen({t}) > {LONG} AND {back} <> {t} THEN strlen({t}) END)")
    return Steps(f"c{looked.place} AS {t}", f"{fits} AS {f}", counts=tuple(counts), quick=True)


def _note_quickly(looked: Looked, decided: Decided, answer: Sequence[object]) -> bool:
    """Whether that was all there is to know of the column."""
    others, empty, *longest = (int(str(value or 0)) for value in answer)
    if others > empty:
        return False
    looked.checked, looked.surprises, looked.clipped = decided, 0, 0
    looked.missing, looked.blanks = empty, 0
    looked.longest = longest[0] if longest else 0
    return True


def _steps(decided: Decided, looked: Looked, *, odd: str) -> Steps:
    column, place = decided.column, looked.place
    t, f, b, m = f"t{place}", f"f{place}", f"b{place}", f"m{place}"
    if looked.kind is not None and looked.kept(column):
        if column.type != "datetime" or looked.unread:
            return Steps()
        when = typed.moment(f"c{place}", looked.kind)
        return Steps(f"{when} AS {m}", counts=(f"count(*) FILTER (WHERE {rules.outside(m)})",))
    text = typed.as_text(f"c{place}", looked.kind) if looked.kind is not None else f"c{place}"
    found = Steps(f"{rules.trimmed(text, column, odd)} AS {t}")
    if column.type == "datetime":
        found.fits, f = f"{rules.moment(t, column)} AS {m}", f"({m} IS NOT NULL)"
    elif column.type in TEXTUAL:
        found.fits = f"{'true' if decided.watch is None else rules.like(t, decided.watch)} AS {f}"
    else:
        found.fits = f"{rules.fits(t, column)} AS {f}"
    blank = rules.one_of(t, column.missing)
    # Most values fit, and none of those means missing unless the spec says so.
    found.blank = f"{blank} AS {b}" if column.declared or column.type in TEXTUAL else f"(NOT {f} AND {blank}) AS {b}"
    if column.type in TEXTUAL and decided.watch is None:
        counts = ["0", "NULL", "NULL", "NULL", f"count(*) FILTER (WHERE {b} OR {t} = '')"]
        return Steps(found.cell, "", found.blank, (*counts, f"count(*) FILTER (WHERE {b})"))
    where = f"(WHERE NOT {f} AND NOT {b} AND {t} <> '')"
    counts = [f"count(*) FILTER {where}", f"min({t}) FILTER {where}", f"max({t}) FILTER {where}"]
    counts += [f"any_value({t}) FILTER {where}", f"count(*) FILTER (WHERE {b} OR {t} = '')"]
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


def keep_exact(
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
            whole, scale, lost = (max(one[place] for one in own) for place in range(3))
            if lost and whole + scale <= rules.WIDEST:
                plan[name] = [Decided(one.column.model_copy(update={"scale": scale}), one.watch) for one in plan[name]]


POWERS = "regexp_full_match({0}, '[0-9]*[.]?[0-9]*')"


def _cut(p: str) -> str:
    return f"CASE WHEN {POWERS.format(p)} THEN {p} END"


def lossy(p: str) -> str:
    """Would float64 change the number *p*, a text without a sign? Never of one with a power: it is null."""
    # Shortest text of the nearest float64: where it is another number, digits are lost.
    back = f"CAST(TRY_CAST({p} AS DOUBLE) AS VARCHAR)"
    wide = f"DECIMAL({rules.WIDEST}, {rules.WIDEST // 2})"
    same = f"TRY_CAST({p} AS {wide}) = TRY_CAST({back} AS {wide})"
    many = f"strlen(trim(replace({_cut(p)}, '.', ''), '0'))"
    return f"coalesce({many} > {LONG + 2} OR ({many} > {LONG} AND NOT coalesce({same}, true)), false)"


def _digits(
    file: Opened, looked: Mapping[str, Looked], columns: Mapping[str, ReadColumn], duck: duckdb.DuckDBPyConnection
) -> dict[str, tuple[int, int, int]]:
    """By column: most digits before and after the point, and how many values float64 would change (0 with powers)."""
    cells, counts = [], []
    for name, column in columns.items():
        place = looked[name].place
        plain = rules.plain(rules.trimmed(f"c{place}", column, file.odd_blanks), column)
        cells.append(f"CASE WHEN TRY_CAST({plain} AS DOUBLE) IS NOT NULL THEN ltrim({plain}, '+-') END AS p{place}")
        p = f"p{place}"
        parts = [f"max(strlen(split_part({_cut(p)}, '.', {part})))" for part in (1, 2)]
        counts += [*parts, f"count(*) FILTER (WHERE NOT {POWERS.format(p)})"]
        counts += [f"count(*) FILTER (WHERE {lossy(p)})"]
    query = f"SELECT {', '.join(counts)} FROM (SELECT {', '.join(cells)} FROM {{rows}})"
    (answer,) = ask(file, query, duck)
    numbers = [int(str(value or 0)) for value in answer]
    found = {}
    for place, name in enumerate(columns):
        whole, scale, powers, lost = numbers[4 * place : 4 * place + 4]
        found[name] = (whole, scale, 0 if powers else lost)
    return found
