"""A table as every stage reads it: canonical columns, what they are, and the same as arrays."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from activities.compute.inference import Columns
from everloop.errors import DatasetTooSmall, naming
from everloop.reading import Changed, ReadColumn, Reading
from everloop.records import Column

Raw = Literal["number", "boolean", "datetime", "text"]

MINIMUM_ROWS = 50
"""Fewer labelled rows than this cannot be split three ways and still say anything."""

CATEGORY_DISTINCT = 100
"""A text column with at most this many values is a category whatever its length."""
SUMMARY_BYTES = 8 << 10
"""Columns listed in a stage's result, which travels through Temporal; the manifest lists all."""
LAYOUTS = b"everloop_layouts"
"""Of a column: how its text was written, where times were not ISO 8601 or numbers had a decimal comma."""
UNREAD = b"everloop_unread"
"""Of a column without values: the type of the ones it had, which no model understands."""

ARROW: dict[Raw, pa.DataType] = {
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "datetime": pa.timestamp("us", "UTC"),
    "text": pa.string(),
}


@dataclass(frozen=True)
class Table:
    """The canonical rows of a snapshot, in the order of its files."""

    rows: pa.Table
    columns: tuple[Column, ...]
    """All of them, as detected: `Snapshot.columns` may list only the first."""
    reading: Reading | None = None
    """How they were read. None: by the first reader."""
    changed: tuple[Changed, ...] = ()
    """What the rules made of their texts."""
    manifest: str = ""
    """Digest of the snapshot's manifest."""
    hashes: NDArray[np.uint64] | None = field(default=None, compare=False, repr=False)
    """Of what each row holds, where somebody has them already: see `hashing.content_hashes`."""

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    def column(self, name: str) -> Column:
        return self._by_name[name]

    def changes(self, name: str) -> Changed | None:
        return next((change for change in self.changed if change.column == name), None)

    def arrays(self, names: Iterable[str], rows: NDArray[np.int64] | None = None) -> Columns:
        """Raw columns as the model's graph takes them (see `inference.Columns`), optionally of some rows only."""
        table = self.rows.select(list(names))
        found: Columns = {}
        for name, column in zip(table.column_names, _take(table, rows), strict=True):
            with naming(column=name):
                found[name] = array_of(column)
        return found


def field_of(name: str, kind: pa.DataType, layouts: Sequence[str], unread: str = "") -> pa.Field:
    notes = ({LAYOUTS: json.dumps(layouts)} if layouts else {}) | ({UNREAD: unread} if unread else {})
    return pa.field(name, kind, metadata=notes or None)


def layouts_of(field: pa.Field) -> list[str]:
    found: list[str] = json.loads((field.metadata or {}).get(LAYOUTS, b"[]"))
    return found


def unread_type(table: Table, name: str) -> str:
    """The type of a column that was left out because no model understands it; else nothing."""
    return unread_of(table.rows.schema.field(name))


def unread_of(field: pa.Field) -> str:
    found: str = (field.metadata or {}).get(UNREAD, b"").decode()
    return found


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_float64(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def raw_of(kind: pa.DataType) -> Raw | None:
    if is_number(kind):
        return "number"
    return next((name for name, known in ARROW.items() if known == kind), None)


def describe(table: pa.Table) -> tuple[Column, ...]:
    """Each column's kind, nulls and number of different values."""
    return tuple(_describe(field, table[field.name]) for field in table.schema)


def _describe(field: pa.Field, values: pa.ChunkedArray) -> Column:
    distinct = int(pc.count_distinct(values, mode="only_valid").as_py())
    kind = raw_of(values.type)
    if kind == "text":
        filled = len(values) - values.null_count
        kind_named: Any = "category" if distinct <= max(CATEGORY_DISTINCT, filled // 2) else "text"
    else:
        kind_named = kind
    return Column(
        name=field.name, kind=kind_named, nulls=values.null_count, distinct=distinct, layouts=tuple(layouts_of(field))
    )


def column_of(column: ReadColumn, rows: int, nulls: int, distinct: int, layouts: Sequence[str]) -> Column:
    """A column as it was read, with what was counted of its values."""
    kinds: dict[str, Any] = {"integer": "number", "identifier": "text"}
    kind = kinds.get(column.type, column.type)
    if kind == "category" and not column.declared and distinct > max(CATEGORY_DISTINCT, (rows - nulls) // 2):
        kind = "text"
    return Column(name=column.name, kind=kind, nulls=nulls, distinct=distinct, layouts=tuple(layouts))


def schema_digest(columns: Iterable[Column]) -> str:
    return hashlib.sha256(json.dumps([[column.name, column.kind] for column in columns]).encode()).hexdigest()


def bounded(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The first columns, as many as a result that travels through Temporal may list."""
    kept, size = [], 0
    for column in columns:
        size += len(column.model_dump_json())
        if size > SUMMARY_BYTES:
            break
        kept.append(column)
    return tuple(kept)


def null_where(column: pa.ChunkedArray, blanks: Sequence[str]) -> pa.ChunkedArray:
    blank = pc.is_in(column, value_set=pa.array(list(blanks), pa.string()))
    return pc.if_else(blank, pa.scalar(None, pa.string()), column)


# --- columns as arrays --------------------------------------------------------------------------


def _take(table: pa.Table, rows: NDArray[np.int64] | None) -> list[pa.ChunkedArray]:
    return list((table if rows is None else table.take(pa.array(rows))).columns)


def array_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """A canonical column as float64 (NaN is missing; datetimes are seconds since 1970) or text ("" is missing)."""
    if pa.types.is_string(column.type):
        return np.asarray(pc.fill_null(column, "").to_numpy(), dtype=object)
    if pa.types.is_timestamp(column.type):
        return floats(column.cast(pa.int64()).cast(pa.float64(), safe=False)) / 1e6
    return floats(column)


def floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Numbers and booleans as a model takes them: whole numbers beyond 2^53 and exact decimals are rounded here."""
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)  # null becomes NaN


def example(column: pa.ChunkedArray) -> object:
    """Its first value."""
    found = pc.drop_null(column)
    return found[0].as_py() if len(found) else None


def whole(values: pa.ChunkedArray) -> bool:
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    if not pa.types.is_float64(values.type):
        return True
    return bool(pc.all(pc.equal(values, pc.round(values))).as_py())


def enough(rows: int) -> None:
    if rows < MINIMUM_ROWS:
        hint = f"at least {MINIMUM_ROWS} rows with a target are needed"
        raise DatasetTooSmall(f"the data has {rows} row{'s' * (rows != 1)}", field="source.path", hint=hint)
