# ruff: noqa: T201  # what a job prints is its log
"""The first reader on several files, as it was: what they agree on, and which of them is to blame."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from activities.compute.data.first import AS_GUESSED, DAY_FIRST, MONTH_FIRST, Spelled, read
from activities.compute.data.table import (
    ARROW,
    Raw,
    Table,
    describe,
    example,
    field_of,
    layouts_of,
    raw_of,
    unread_of,
    whole,
)
from everloop.artifacts import Artifacts
from everloop.errors import InvalidData, SchemaMismatch
from everloop.records import Blob, Snapshot
from everloop.rows import (
    WITH_COMMA,
)


def table_of(artifacts: Artifacts, of: Snapshot) -> Table:
    """A snapshot's source as this reader reads it. Raises `InvalidData`, `SchemaMismatch`, `NotFound`."""
    files = json.loads(artifacts.get(of.manifest))["files"]
    names = [file["name"] for file in files]
    if odd := [name for name in names if Path(name).suffix.lower() not in (".csv", ".parquet")]:
        raise InvalidData(f"{odd[0]} is neither a .csv nor a .parquet file", field="source.path")

    def read_kept(place: int, spelled: Spelled) -> pa.Table:
        with artifacts.open_local(Blob.model_validate(files[place]["source"])) as local:
            return read(local, Path(names[place]).suffix.lower(), names[place], spelled)

    rows = pa.concat_tables(read_all(names, read_kept))
    return Table(rows, describe(rows))


def read_all(names: Sequence[str], read_one: Callable[[int, Spelled], pa.Table]) -> list[pa.Table]:
    """Every file of a source with the same columns and types. *read_one* reads the file of a place in *names*.

    Where files disagree on what a column is, they are read once more. Raises what `read` and `unify` do.
    """
    parts = [read_one(place, AS_GUESSED) for place in range(len(names))]
    spelled = Spelled(text=_codes(parts, names), commas=_commas(parts))
    again = [place for place, part in enumerate(parts) if _differs(part, spelled)]
    for place in again:
        parts[place] = read_one(place, spelled)
        _say_points(parts[place], names[place], spelled)
    return unify(parts, names)


def _codes(parts: Sequence[pa.Table], names: Sequence[str]) -> frozenset[str]:
    """Columns of CSV files that are text in one file and seem to be whole numbers or booleans in another.

    Fractions are no codes: there the text is more likely a fault, and `unify` says in which file.
    """
    if not names[0].lower().endswith(".csv"):
        return frozenset()
    found = set()
    for column in parts[0].column_names:
        own = [part[column] for part in parts if column in part.column_names]
        kinds = {raw_of(values.type) for values in own} - {None}
        if len(kinds) == 1 or "text" not in kinds or "datetime" in kinds:
            continue
        if all(whole(values) for values in own):
            print(f"{column!r} is text in some files: it is read as text in all")
            found.add(column)
    return frozenset(found)


def _commas(parts: Sequence[pa.Table]) -> frozenset[str]:
    return frozenset(field.name for part in parts for field in part.schema if WITH_COMMA in layouts_of(field))


def _differs(part: pa.Table, spelled: Spelled) -> bool:
    """Would the file's columns be read otherwise, now that the other files are known?"""
    for field in part.schema:
        if field.name in spelled.text and not (pa.types.is_string(field.type) or pa.types.is_null(field.type)):
            return True
        if field.name in spelled.commas - spelled.text and WITH_COMMA not in layouts_of(field):
            return True
    return False


def _say_points(part: pa.Table, name: str, spelled: Spelled) -> None:
    for field in part.schema:
        if field.name in spelled.commas and pa.types.is_float64(field.type) and WITH_COMMA not in layouts_of(field):
            print(f"{name}: {field.name!r} has decimal points here and decimal commas in other files: read as written")


def unify(parts: Sequence[pa.Table], names: Sequence[str]) -> list[pa.Table]:
    """The same columns and types in each file. Raises `SchemaMismatch` with the file and the column."""
    _same_columns(parts, names)
    order = parts[0].column_names
    kinds = {column: _kind_of(column, parts, names) for column in order}
    parts = _one_order_of_days(parts, names)
    layouts = {
        column: sorted({one for part in parts for one in layouts_of(part.schema.field(column))}) for column in order
    }
    unread = {field.name: unread_of(field) for part in parts for field in part.schema if unread_of(field)}
    schema = pa.schema(
        [field_of(column, ARROW[kinds[column]], layouts[column], unread.get(column, "")) for column in order]
    )
    return [part.select(order).cast(schema) for part in parts]


def _one_order_of_days(parts: Sequence[pa.Table], names: Sequence[str]) -> list[pa.Table]:
    """03/04/2013 is one day in all files: where one file can only be day first, all are read so."""
    day_first = {
        field.name
        for part in parts
        for field in part.schema
        if any(layout.startswith(DAY_FIRST) for layout in layouts_of(field))
    }
    if not day_first:
        return list(parts)
    return [_day_first(part, day_first, name) for part, name in zip(parts, names, strict=True)]


def _day_first(part: pa.Table, columns: set[str], name: str) -> pa.Table:
    for place, field in enumerate(part.schema):
        layouts = layouts_of(field)
        if field.name not in columns or not any(layout.startswith(MONTH_FIRST) for layout in layouts):
            continue
        whole, swapped = "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S"
        written = pc.strftime(part[field.name].cast(pa.timestamp("s")), format=whole)
        try:
            times = pc.strptime(written, format=swapped, unit="us").cast(ARROW["datetime"])
        except pa.ArrowInvalid:
            message = f"{name}: the column {field.name!r} writes the month first, in the other files the day"
            hint = "write its days as 2013-01-31 in all files"
            raise SchemaMismatch(message, field=field.name, hint=hint) from None
        renamed = [layout.replace(MONTH_FIRST, DAY_FIRST) for layout in layouts]
        part = part.set_column(place, field_of(field.name, times.type, renamed), times)
    return part


def _same_columns(parts: Sequence[pa.Table], names: Sequence[str]) -> None:
    usual = Counter(frozenset(part.column_names) for part in parts).most_common(1)[0][0]
    for part, name in zip(parts, names, strict=True):
        own = frozenset(part.column_names)
        if own == usual:
            continue
        missing, extra = sorted(usual - own), sorted(own - usual)
        what = f"lacks the column {missing[0]!r}" if missing else f"has the column {extra[0]!r}"
        hint = "all files of a folder need the same columns"
        field = (missing or extra)[0]
        raise SchemaMismatch(f"{name} {what}, unlike the other files", field=field, hint=hint)


def _kind_of(column: str, parts: Sequence[pa.Table], names: Sequence[str]) -> Raw:
    found = [raw_of(part.schema.field(column).type) for part in parts]
    counts = Counter(kind for kind in found if kind)
    if not counts:
        return "text"
    usual = counts.most_common(1)[0][0]
    for kind, name in zip(found, names, strict=True):
        if kind and kind != usual:
            hint = "a column must hold the same kind of values in all files"
            sample = example(next(part[column] for part, other in zip(parts, names, strict=True) if other == name))
            what = f"{kind} values (for instance {sample!r})"
            message = f"{name}: the column {column!r} holds {what}, in the other files {usual} values"
            raise SchemaMismatch(message, field=column, hint=hint)
    return usual
