# ruff: noqa: T201  # what a job prints is its log
"""How a column of several files is read: in one way, or where that cannot be, in each file in its own."""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from activities.compute.data import typed
from activities.compute.data.files import Opened
from activities.compute.data.looked import Looked
from everloop.errors import SchemaMismatch
from everloop.reading import ReadColumn
from everloop.specs import ColumnReading, ColumnType
from everloop.texts import DAY_FIRST, MONTH_FIRST, Decided, decide


def plan_of(
    name: str, files: Sequence[Opened], columns: Sequence[Looked], asked: ColumnReading | None
) -> list[Decided]:
    """How each file's column is read: in one way, or where that cannot be, each in its own."""
    if asked and asked.kind and not _as_typed(columns, asked.kind):
        texts = set().union(*(each.texts for each in columns))
        typed_text = all(file.typed and each.textual for file, each in zip(files, columns, strict=True))
        return [decide(name, texts, asked, typed=typed_text)] * len(columns)
    if not all(each.textual for each in columns):
        return _plan_declared(name, files, columns, asked or ColumnReading())
    return _plan_texts(name, files, columns, asked)


def _as_typed(columns: Sequence[Looked], kind: ColumnType) -> bool:
    """Have the files' values the declared type already? Those of a file without any value may have none."""
    filled = [each.kind for each in columns if each.kind is None or not pa.types.is_null(each.kind)]
    return bool(filled) and all(typed.kept(each, kind, ()) for each in filled)


def _plan_texts(
    name: str, files: Sequence[Opened], columns: Sequence[Looked], asked: ColumnReading | None
) -> list[Decided]:
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


def _plan_declared(
    name: str, files: Sequence[Opened], columns: Sequence[Looked], asked: ColumnReading
) -> list[Decided]:
    """What the spec says, of values whose type says the rest: whole numbers stay such, decimals keep their digits."""
    plan = _plan_typed(name, files, columns)
    found = plan[0].column
    if found.type == "category" or not (asked.kind or asked.missing):  # no model understands it, or nothing is said
        return plan
    kind = asked.kind or ("number" if found.type == "integer" else found.type)
    said = decide(name, (), asked.model_copy(update={"type": kind}), typed=True).column
    made = said.model_copy(update={"type": found.type, "scale": found.scale, "decimal": "."})
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
