"""Files that have types of their own: what each type becomes, and how other formats become Parquet."""

import datetime as dt
import io
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet

from activities.compute.data.engine import connection
from activities.compute.data.engine import name as column_name
from activities.compute.data.engine import text as quoted
from activities.compute.data.rules import WIDEST, clipped, finite
from everloop.dialect import column_names
from everloop.errors import InvalidData
from everloop.reading import ReadColumn
from everloop.specs import ColumnType
from everloop.texts import AMONG_NUMBERS, BLANKS

CHUNK_BYTES = 4 << 20
MICROSECONDS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, however they are stored."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def read_column(name: str, kind: pa.DataType) -> ReadColumn | None:  # noqa: PLR0911  # one return per type
    """What values of a type are; None where no model understands them, or where there are none."""
    if pa.types.is_boolean(kind):
        return ReadColumn(name=name, type="boolean")
    if pa.types.is_uint64(kind):
        return ReadColumn(name=name, type="number", scale=0)
    if pa.types.is_integer(kind):
        return ReadColumn(name=name, type="integer")
    if pa.types.is_decimal(kind) and kind.precision <= WIDEST and kind.scale >= 0:
        return ReadColumn(name=name, type="number", scale=kind.scale)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_duration(kind):
        return ReadColumn(name=name, type="number")
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return ReadColumn(name=name, type="datetime")
    return None


def kept(kind: pa.DataType | None, declared: ColumnType, missing: Collection[str]) -> bool:
    """Are typed values what the spec declares, so that they need not become texts first? Then no digit is lost."""
    found = read_column("", kind) if kind is not None else None
    if found is None or not set(missing) <= set(AMONG_NUMBERS):  # -1 may mean missing
        return False
    return found.type == declared or (declared == "number" and found.type == "integer")


def value(x: str, kind: pa.DataType, column: ReadColumn) -> str:
    """A typed value as what the snapshot keeps of *column*."""
    if column.type == "boolean":
        return f"CAST({x} AS BOOLEAN)"
    if column.type == "integer":
        return f"CAST({x} AS BIGINT)"
    if column.type == "datetime":
        return clipped(moment(x, kind))
    if column.scale is not None:
        return f"CAST({x} AS DECIMAL({WIDEST}, {column.scale}))"
    if pa.types.is_duration(kind):
        return f"CAST({x} AS DOUBLE) * {MICROSECONDS[kind.unit]!r}"
    return finite(f"CAST({x} AS DOUBLE)")


def moment(x: str, kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind) and kind.tz:
        return f"CAST({x} AS TIMESTAMPTZ)"
    return f"CAST({x} AS TIMESTAMP) AT TIME ZONE 'UTC'"


def as_text(x: str, kind: pa.DataType) -> str:
    """A value as the text that people would write: what is declared to be text or another type is read from it."""
    if is_text(kind):
        return f"coalesce({x}, '')"
    whole = f"{x} = trunc({x}) AND abs({x}) < 9007199254740992"
    if pa.types.is_floating(kind):
        return (
            f"coalesce(CASE WHEN {whole} THEN CAST(CAST({x} AS BIGINT) AS VARCHAR) ELSE CAST({x} AS VARCHAR) END, '')"
        )
    return f"coalesce(CAST({x} AS VARCHAR), '')"


# --- other formats as Parquet ---------------------------------------------------------------------------


def as_parquet(path: Path, name: str, kind: str, scratch: Path, wanted: Collection[str]) -> Path:
    """A Parquet file of the same rows. Raises `InvalidData`."""
    number = 0
    while (target := scratch / f"typed-{number}.parquet").exists():
        number += 1
    make = {"arrow": _arrow, "excel": _excel, "lines": _lines}[kind]
    try:
        make(path, name, target, wanted)
    except InvalidData:
        raise
    except Exception as error:  # three libraries, each with its own family of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        kinds = {"arrow": "Arrow", "excel": "Excel", "lines": "JSON lines"}
        message = f"{name} is not a readable {kinds[kind]} file: {reason}"
        raise InvalidData(message, field="source.path", hint="write it again") from error
    return target


def _arrow(path: Path, _name: str, target: Path, _wanted: Collection[str]) -> None:
    with path.open("rb") as source:
        magic = source.read(6)
    if magic[:4] == b"FEA1":  # Feather's first version, of small files
        pa.parquet.write_table(pa.feather.read_table(path, memory_map=False), target)
        return
    with pa.OSFile(str(path), "rb") as source:
        if magic == b"ARROW1":
            file = pa.ipc.open_file(source)
            schema, batches = file.schema, (file.get_batch(place) for place in range(file.num_record_batches))
        else:
            stream = pa.ipc.open_stream(source)
            schema, batches = stream.schema, iter(stream)
        write(target, schema, batches)


def write(target: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Batches as Parquet, one at a time in memory."""
    with pa.parquet.ParquetWriter(target, schema) as out:
        for batch in batches:
            out.write_batch(batch)


def _lines(path: Path, name: str, target: Path, _wanted: Collection[str]) -> None:
    """JSON lines: a column per key; numbers, booleans and texts are what JSON says they are."""
    compression = "gzip" if name.lower().endswith(".gz") else "zstd" if name.lower().endswith(".zst") else "none"
    if name.lower().endswith(".bz2"):
        plain = target.with_suffix(".jsonl")
        with pa.input_stream(str(path), compression="bz2") as source, plain.open("wb") as out:
            while chunk := source.read(CHUNK_BYTES):
                out.write(chunk)
        path = plain
    rows = f"read_ndjson_objects({quoted(str(path))}, compression = '{compression}', maximum_object_size = 16777216)"
    with connection(target.parent) as duck:
        try:
            _check_objects(name, rows, duck)
            keyed = f"SELECT row_number() OVER () AS n, unnest(json_keys(json)) AS k, json FROM {rows}"
            kind = "json_type(json, '/' || replace(replace(k, '~', '~0'), '/', '~1'))"
            asked = f"SELECT k, list(DISTINCT t) FROM ({keyed}), LATERAL (SELECT {kind} AS t) GROUP BY k"
            found = duck.execute(f"{asked} ORDER BY min(n), k").fetchall()
        except duckdb.InvalidInputException:
            message = f"{name}: {_odd_line(path, compression)}"
            raise InvalidData(message, field="source.path", hint=ONE_OBJECT) from None
        (first,) = duck.execute(f"SELECT json_keys(json) FROM {rows} LIMIT 1").fetchone() or ([],)
        kinds = {key: set(types) - {None, "NULL"} for key, types in found}
        _narrow(kinds, rows, duck)
        keys = [*first, *(key for key in kinds if key not in set(first))]
        cells = ", ".join(f"{_json(key, kinds[key])} AS {column_name(key.strip(BLANKS))}" for key in keys)
        duck.execute(f"COPY (SELECT {cells} FROM {rows}) TO {quoted(str(target))} (FORMAT parquet)")


ONE_OBJECT = 'each line must be one object, such as {"age": 41, "plan": "basic"}'


KINDS = {"ARRAY": "an array", "VARCHAR": "a text", "BOOLEAN": "true or false", "NULL": "null"}


def _odd_line(path: Path, compression: str) -> str:
    """Which line is no JSON, where DuckDB has found one: it counts them in another way than people do."""
    with pa.input_stream(str(path), compression=None if compression == "none" else compression) as source:
        for number, line in enumerate(io.TextIOWrapper(source, "utf-8", "replace"), 1):
            try:
                json.loads(line) if line.strip() else None
            except ValueError as error:
                return f"line {number:,} is no JSON ({str(error).partition(':')[0].lower()})"
    return "a line is no JSON"


def _check_objects(name: str, rows: str, duck: duckdb.DuckDBPyConnection) -> None:
    numbered = f"SELECT row_number() OVER () AS n, json_type(json) AS kind FROM {rows}"
    (odd,) = duck.execute(
        f"SELECT arg_min([CAST(n AS VARCHAR), kind], n) FROM ({numbered}) WHERE kind <> 'OBJECT'"
    ).fetchall()
    if odd[0]:
        place, kind = odd[0]
        message = f"{name}: line {int(place):,} is no JSON object but {KINDS.get(kind, 'a number')}"
        raise InvalidData(message, field="source.path", hint=ONE_OBJECT)


def _narrow(kinds: dict[str, set[str]], rows: str, duck: duckdb.DuckDBPyConnection) -> None:
    """Whole numbers without a sign that 64 bits with one hold are such: DuckDB calls each by its own size."""
    names = [key for key, types in kinds.items() if "UBIGINT" in types and types <= {"BIGINT", "UBIGINT"}]
    for start in range(0, len(names), 100):
        some = names[start : start + 100]
        most = ", ".join(f"max(TRY_CAST({_cell(key)} AS DECIMAL(38, 0)))" for key in some)
        for key, value in zip(some, duck.execute(f"SELECT {most} FROM {rows}").fetchall()[0], strict=True):
            if value is not None and value < 1 << 63:
                kinds[key] = {"BIGINT"}


def _cell(key: str) -> str:
    pointer = "/" + key.replace("~", "~0").replace("/", "~1")
    return f"json_extract_string(json, {quoted(pointer)})"


def _json(key: str, kinds: set[str]) -> str:
    cell = _cell(key)
    if kinds and kinds <= {"BIGINT", "UBIGINT"}:
        return f"CAST({cell} AS {'DECIMAL(38, 0)' if 'UBIGINT' in kinds else 'BIGINT'})"
    if kinds and kinds <= {"BIGINT", "UBIGINT", "DOUBLE", "HUGEINT"}:
        return f"CAST({cell} AS DOUBLE)"
    return f"CAST({cell} AS BOOLEAN)" if kinds == {"BOOLEAN"} else cell


def _excel(path: Path, name: str, target: Path, wanted: Collection[str]) -> None:
    """The first sheet that has rows. Its header is the first row that names a column of *wanted*, else the first."""
    import python_calamine

    book = python_calamine.CalamineWorkbook.from_path(str(path))
    for sheet in book.sheet_names:
        rows = [row for row in book.get_sheet_by_name(sheet).to_python() if any(cell != "" for cell in row)]
        if rows:
            break
    else:
        raise InvalidData(f"{name} has no rows", field="source.path", hint="it needs a header line and rows")
    named = [place for place, row in enumerate(rows[:20]) if {str(cell).strip(BLANKS) for cell in row} & set(wanted)]
    start = named[0] if named else 0
    names = column_names([_cell_name(cell) for cell in rows[start]])
    columns = [_excel_column([row[place] for row in rows[start + 1 :]]) for place in range(len(names))]
    pa.parquet.write_table(pa.table(columns, names=names), target)


def _cell_name(cell: object) -> str:
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip(BLANKS)


def _excel_column(cells: Sequence[Any]) -> pa.Array:
    """Cells of one type as that type, whole numbers as such; else all as texts."""
    values = [None if cell == "" else cell for cell in cells]
    kinds = {type(cell) for cell in values if cell is not None}
    if kinds <= {int, float} and all(
        float(cell).is_integer() and abs(cell) < 2**53 for cell in values if cell is not None
    ):
        return pa.array([None if cell is None else int(cell) for cell in values], pa.int64() if kinds else pa.null())
    if kinds <= {int, float}:
        return pa.array(values, pa.float64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds <= {dt.date, dt.datetime}:
        return pa.array([_moment(cell) for cell in values], pa.timestamp("us"))
    return pa.array([None if cell is None else _cell_name(cell) for cell in values], pa.string())


def _moment(cell: Any) -> dt.datetime | None:  # noqa: ANN401  # a date or a datetime
    if cell is None or isinstance(cell, dt.datetime):
        return cell
    return dt.datetime(cell.year, cell.month, cell.day)  # noqa: DTZ001  # a sheet has no zones
