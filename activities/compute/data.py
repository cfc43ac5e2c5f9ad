# ruff: noqa: T201  # what a job prints is its log
"""Files become a table: found, kept as they are, read from what was kept, and looked at.

Every stage after `snapshot` reads the canonical table (Parquet blobs of four plain types), never the source:
the source may change at any time. A value has one meaning everywhere, also in predict requests:

- number: float64; NaN and infinities are missing
- boolean: true, false
- datetime: UTC, microseconds; a time without a zone is UTC
- text: UTF-8; the empty text and the tokens of `inference.MISSING_TEXT` are missing
"""

import csv
import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from activities.compute import Job
from activities.compute.inference import Columns
from everloop.artifacts import Artifacts
from everloop.contracts import SnapshotRequest, ValidateRequest
from everloop.errors import (
    DatasetMissing,
    DatasetTooSmall,
    InvalidData,
    InvalidSpec,
    SchemaMismatch,
    TargetUnusable,
)
from everloop.records import Blob, Check, Column, Snapshot, Validation
from everloop.rows import (
    DECIMAL_COMMA,
    HEAD,
    MISSING_TEXT,
    NUMBER_BLANKS,
    THOUSANDS,
    WITH_COMMA,
    column_names,
    delimiter_of,
)
from everloop.specs import LifecycleSpec

Raw = Literal["number", "boolean", "datetime", "text"]

MINIMUM_ROWS = 50
"""Fewer labelled rows than this cannot be split three ways and still say anything."""
MOST_CLASSES = 100
SPREAD = (1e-100, 1e100)
"""Of a numeric target, from its least to its largest value: squared errors must fit into float64."""
CATEGORY_DISTINCT = 100
"""A text column with at most this many values is a category whatever its length."""
SUMMARY_BYTES = 8 << 10
"""Columns listed in a stage's result, which travels through Temporal; the manifest lists all."""
BLOCK_BYTES = 16 << 20
"""A CSV row must fit into one block."""

PARTIAL = (".tmp", ".part", ".partial", ".crdownload", ".swp", "~")
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

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    def column(self, name: str) -> Column:
        return self._by_name[name]

    def arrays(self, names: Iterable[str], rows: NDArray[np.int64] | None = None) -> Columns:
        """Raw columns as the model's graph takes them (see `inference.Columns`), optionally of some rows only."""
        table = self.rows.select(list(names))
        return {name: array_of(column) for name, column in zip(table.column_names, _take(table, rows), strict=True)}


# --- the snapshot -------------------------------------------------------------------------------


def snapshot(request: SnapshotRequest, job: Job) -> Snapshot:
    """Keep the source's bytes as blobs, then read the table from them.

    Safe to run twice: the same bytes give the same blobs. Raises `DatasetMissing`, `InvalidData`,
    `SchemaMismatch`, `DatasetTooSmall`, `InvalidSpec` (a column that the spec names is not there).
    """
    spec = request.spec
    paths = find(Path(spec.source.path))
    blobs = [_keep(path, job.artifacts) for path in paths]
    print(f"kept {len(blobs)} files, {sum(blob.size_bytes for blob in blobs):,} bytes")

    def read_kept(place: int, spelled: Spelled) -> pa.Table:
        with job.artifacts.open_local(blobs[place]) as local:
            part = read(local, paths[place].suffix.lower(), paths[place].name, spelled)
        job.report(place + 1, files=place + 1, of=len(paths))
        return part

    tables = read_all([path.name for path in paths], read_kept)
    whole = pa.concat_tables(tables)
    columns = describe(whole)
    check_spec(spec, [column.name for column in columns])
    _enough(whole.num_rows)
    manifest = _manifest(paths, blobs, tables, columns, job)
    span = _span(Table(whole, columns), spec)
    print(f"{whole.num_rows:,} rows, {len(columns)} columns; schema {schema_digest(columns)[:12]}")
    return Snapshot(
        manifest=manifest,
        rows=whole.num_rows,
        files=len(paths),
        size_bytes=sum(blob.size_bytes for blob in blobs),
        columns=bounded(columns),
        schema_digest=schema_digest(columns),
        time_from=span[0],
        time_to=span[1],
    )


def load(artifacts: Artifacts, of: Snapshot) -> Table:
    """The canonical table of a snapshot. Raises `NotFound`, `IntegrityError`."""
    manifest = json.loads(artifacts.get(of.manifest))
    tables = []
    for file in manifest["files"]:
        with artifacts.open_local(Blob.model_validate(file["table"])) as path:
            # Not mapped: the rows outlive the file's name when the store is remote.
            tables.append(pa.parquet.read_table(path, memory_map=False, use_threads=False))
    columns = tuple(Column.model_validate(column) for column in manifest["columns"])
    return Table(pa.concat_tables(tables).combine_chunks(), columns)


def find(source: Path) -> list[Path]:
    """The files of a source, by name: the file itself, or a folder's `.csv` or `.parquet` files.

    Hidden files and files that are still being written are passed over. Raises `DatasetMissing`, `InvalidData`.
    """
    field = "source.path"
    try:
        if source.is_file():
            return [_known_format(source)]
        entries = sorted(source.iterdir(), key=lambda path: path.name)
    except (FileNotFoundError, NotADirectoryError):
        hint = "check source.path; it must be readable on the machine that runs the compute worker"
        raise DatasetMissing(f"there is no file or folder {source}", field=field, hint=hint) from None
    except PermissionError:
        hint = "give the user that runs Everloop the right to read it"
        raise DatasetMissing(f"{source} may not be read", field=field, hint=hint) from None
    except OSError as error:  # a link to itself, a name that is too long, a disk that fails
        why = (error.strerror or "the system refuses").lower()
        hint = "check source.path on the machine that runs the compute worker"
        raise DatasetMissing(f"{source} cannot be read: {why}", field=field, hint=hint) from None
    files = [path for path in entries if path.is_file() and not _passed_over(path.name)]
    usable = [path for path in files if path.suffix.lower() in (".csv", ".parquet")]
    for other in set(files) - set(usable):
        print(f"passed over {other.name}: neither .csv nor .parquet")
    if not usable:
        hint = "put .csv or .parquet files into it"
        raise DatasetMissing(f"the folder {source} holds no .csv or .parquet file", field=field, hint=hint)
    if len({path.suffix.lower() for path in usable}) > 1:
        hint = "keep files of one format in a folder"
        raise InvalidData(f"the folder {source} mixes .csv and .parquet files", field=field, hint=hint)
    return usable


def _known_format(path: Path) -> Path:
    if path.suffix.lower() in (".csv", ".parquet"):
        return path
    hint = "give a .csv or .parquet file, or a folder of them"
    raise InvalidData(f"{path.name} is neither a .csv nor a .parquet file", field="source.path", hint=hint)


def _passed_over(name: str) -> bool:
    return name.startswith((".", "_")) or name.lower().endswith(PARTIAL)


def _keep(path: Path, artifacts: Artifacts) -> Blob:
    try:
        with path.open("rb"):  # whatever fails from here on is not the source's fault
            pass
    except FileNotFoundError:
        raise _vanished(path) from None
    except PermissionError:
        hint = "give the user that runs Everloop the right to read it"
        raise DatasetMissing(f"{path} may not be read", field="source.path", hint=hint) from None
    try:
        return artifacts.put_file(path)
    except FileNotFoundError:
        raise _vanished(path) from None


def _vanished(path: Path) -> DatasetMissing:
    hint = "put it back, or submit again"
    return DatasetMissing(f"{path} vanished while it was read", field="source.path", hint=hint)


def _manifest(
    paths: Sequence[Path], blobs: Sequence[Blob], tables: Sequence[pa.Table], columns: Sequence[Column], job: Job
) -> Blob:
    files = []
    for path, blob, table in zip(paths, blobs, tables, strict=True):
        local = job.scratch / "table.parquet"
        pa.parquet.write_table(table, local, compression="zstd")
        kept = job.artifacts.put_file(local)
        entry = {"name": path.name, "source": blob.model_dump(), "table": kept.model_dump(), "rows": table.num_rows}
        files.append(entry)
    manifest = {"files": files, "columns": [column.model_dump() for column in columns]}
    return job.artifacts.put(json.dumps(manifest, sort_keys=True).encode(), "manifest.json")


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


def _span(table: Table, spec: LifecycleSpec) -> tuple[datetime | None, datetime | None]:
    if not spec.time:
        return None, None
    seconds = event_seconds(table, spec.time)
    if not np.isfinite(seconds).any():
        return None, None
    return moment(float(np.nanmin(seconds))), moment(float(np.nanmax(seconds)))


def moment(seconds: float) -> datetime:
    """A UTC datetime of seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def _enough(rows: int) -> None:
    if rows < MINIMUM_ROWS:
        hint = f"at least {MINIMUM_ROWS} rows with a target are needed"
        raise DatasetTooSmall(f"the data has {rows} row{'s' * (rows != 1)}", field="source.path", hint=hint)


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spelled:
    """What the other files of a folder say about how this one's columns are to be read."""

    text: frozenset[str] = frozenset()
    """These stay text, as they are written: `007` is a code here because `B12` is one there."""
    commas: frozenset[str] = frozenset()
    """Numbers in these have a decimal comma, so that a dot stands between thousands."""


AS_GUESSED = Spelled()


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
        kinds = {_raw(values.type) for values in own} - {None}
        if len(kinds) == 1 or "text" not in kinds or "datetime" in kinds:
            continue
        if all(_whole(values) for values in own):
            print(f"{column!r} is text in some files: it is read as text in all")
            found.add(column)
    return frozenset(found)


def _whole(values: pa.ChunkedArray) -> bool:
    if not pa.types.is_float64(values.type):
        return True
    return bool(pc.all(pc.equal(values, pc.round(values))).as_py())


def _commas(parts: Sequence[pa.Table]) -> frozenset[str]:
    return frozenset(field.name for part in parts for field in part.schema if WITH_COMMA in _layouts(field))


def _differs(part: pa.Table, spelled: Spelled) -> bool:
    """Would the file's columns be read otherwise, now that the other files are known?"""
    for field in part.schema:
        if field.name in spelled.text and not (pa.types.is_string(field.type) or pa.types.is_null(field.type)):
            return True
        if field.name in spelled.commas - spelled.text and WITH_COMMA not in _layouts(field):
            return True
    return False


def _say_points(part: pa.Table, name: str, spelled: Spelled) -> None:
    for field in part.schema:
        if field.name in spelled.commas and pa.types.is_float64(field.type) and WITH_COMMA not in _layouts(field):
            print(f"{name}: {field.name!r} has decimal points here and decimal commas in other files: read as written")


def read(path: Path, suffix: str, name: str, spelled: Spelled = AS_GUESSED) -> pa.Table:
    """One file as canonical columns; a column without any value has the null type.

    *name* is what errors call it. Raises `InvalidData` with the line, where there is one.
    """
    if suffix == ".csv":
        raw, delimiter = _read_csv(path, name)
    else:
        raw, delimiter = _read_parquet(path, name), ""
    if len(set(raw.column_names)) < raw.num_columns:
        twice = next(column for column, count in Counter(raw.column_names).items() if count > 1)
        raise InvalidData(f"{name} has two columns named {twice!r}", field=twice, hint="give each column its own name")
    if raw.num_rows == 0:
        raise InvalidData(f"{name} has a header but no rows", field="source.path", hint="add rows, or remove the file")
    guessed = {
        column: _from_text(values, column, delimiter, spelled) if delimiter else _from_typed(values)
        for column, values in zip(raw.column_names, raw.columns, strict=True)
    }
    fields = [
        _field(column, guess.values.type, [guess.layout] if guess.layout else [], guess.unread)
        for column, guess in guessed.items()
    ]
    return pa.table([guess.values for guess in guessed.values()], pa.schema(fields))


def _field(name: str, kind: pa.DataType, layouts: Sequence[str], unread: str = "") -> pa.Field:
    notes = ({LAYOUTS: json.dumps(layouts)} if layouts else {}) | ({UNREAD: unread} if unread else {})
    return pa.field(name, kind, metadata=notes or None)


def _layouts(field: pa.Field) -> list[str]:
    found: list[str] = json.loads((field.metadata or {}).get(LAYOUTS, b"[]"))
    return found


def unread_type(table: Table, name: str) -> str:
    """The type of a column that was left out because no model understands it; else nothing."""
    return _unread(table.rows.schema.field(name))


def _unread(field: pa.Field) -> str:
    found: str = (field.metadata or {}).get(UNREAD, b"").decode()
    return found


def _read_csv(path: Path, name: str) -> tuple[pa.Table, str]:
    """The columns as text, and what separates them."""
    if path.stat().st_size == 0:
        raise InvalidData(f"{name} is empty", field="source.path", hint="it needs a header line and rows")
    header, delimiter = _header(path, name)
    places = [str(place) for place in range(len(header))]
    bad: list[Any] = []

    def ragged(row: Any) -> str:  # noqa: ANN401
        bad.append(row)
        return "error"

    blanks = sorted(MISSING_TEXT)
    try:
        table = pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=places, skip_rows_after_names=1
            ),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=ragged),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(places, pa.string()), strings_can_be_null=True, null_values=blanks
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        hint = "save it as UTF-8" if "UTF8" in str(error) else "mend or remove the file"
        raise InvalidData(_csv_fault(name, bad, str(error)), field="source.path", hint=hint) from None
    return table.rename_columns(header), delimiter


def _csv_fault(name: str, bad: Sequence[Any], message: str) -> str:
    if bad:
        row = bad[0]
        where = f"row {row.number} (the header is row 1)" if row.number else "a row"
        return f"{name}: {where} has {row.actual_columns} fields where the header has {row.expected_columns}"
    if "UTF8" in message:
        return f"{name} is not UTF-8 text"
    return f"{name} is not a readable CSV file: {message.splitlines()[0][:200]}"


def _header(path: Path, name: str) -> tuple[list[str], str]:
    """Names of a CSV file's columns, and what separates them."""
    csv.field_size_limit(BLOCK_BYTES)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as text:
        delimiter = delimiter_of(text.read(HEAD))
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            header = next(csv.reader(text, delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise InvalidData(
            f"{name} is not UTF-8 text ({error.reason})", field="source.path", hint="save it as UTF-8"
        ) from None
    except csv.Error as error:
        hint = "the first line must name the columns"
        raise InvalidData(f"{name} has no readable header line ({error})", field="source.path", hint=hint) from None
    if not any(cell.strip() for cell in header) or any("\0" in cell for cell in header):
        hint = "the first line must name the columns"
        raise InvalidData(f"{name} has no header line", field="source.path", hint=hint)
    return column_names(header), delimiter


def _read_parquet(path: Path, name: str) -> pa.Table:
    if path.stat().st_size == 0:
        raise InvalidData(f"{name} is empty", field="source.path", hint="write it again")
    try:
        table = pa.parquet.ParquetFile(path).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        hint = "write it again, with pandas' or pyarrow's Parquet writer"
        raise InvalidData(f"{name} is not a readable Parquet file: {reason}", field="source.path", hint=hint) from None
    return table.select([column for column in table.column_names if not column.startswith("__index_level_")])


@dataclass(frozen=True)
class Guess:
    """A column as canonical values, and what is to be kept about how it was written."""

    values: pa.ChunkedArray
    layout: str = ""
    """Of times that are not ISO 8601, or `WITH_COMMA`."""
    unread: str = ""
    """The type that no model understands; then there are no values."""


def _from_text(column: pa.ChunkedArray, name: str, delimiter: str, spelled: Spelled) -> Guess:
    """A CSV column as what its text says: number, boolean, datetime, else text as it is."""
    if column.null_count == len(column):
        return Guess(_nothing(column))
    if name in spelled.text:
        return Guess(column)
    for values in (column, _null_where(column, NUMBER_BLANKS)):
        if values.null_count == len(values):
            continue
        if delimiter != "," and (made := _comma_numbers(values, expected=name in spelled.commas)) is not None:
            return Guess(made, WITH_COMMA)
        for attempt in (_numbers, _booleans):
            made = attempt(values)
            if made is not None:
                return Guess(made)
        times = _times(values)
        if times is not None:
            return times
    return Guess(column)


def _nothing(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(len(column))])


def _from_typed(column: pa.ChunkedArray) -> Guess:
    """A Parquet column as one of the canonical types; without values where no model understands the type."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return _from_values(column)
    text = _null_where(column.cast(pa.string()), sorted(MISSING_TEXT))
    if text.null_count == len(text):
        return Guess(_nothing(text))
    return _times(text) or Guess(text)


def _from_values(column: pa.ChunkedArray) -> Guess:
    kind = column.type
    if column.null_count == len(column):
        return Guess(_nothing(column))
    if pa.types.is_boolean(kind):
        return Guess(column)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Guess(_finite(column.cast(pa.float64(), safe=False)))
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return Guess(_utc(column))
    if pa.types.is_duration(kind):
        return Guess(column.cast(pa.duration("us"), safe=False).cast(pa.int64()).cast(pa.float64()))
    print(f"values of type {kind} are not understood: that column is left out")
    return Guess(_nothing(column), unread=str(kind)[:80])


def _utc(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    zone = column.type.tz
    return column.cast(pa.timestamp("us", zone or "UTC"), safe=False).cast(ARROW["datetime"])


def _null_where(column: pa.ChunkedArray, blanks: Sequence[str]) -> pa.ChunkedArray:
    blank = pc.is_in(column, value_set=pa.array(list(blanks), pa.string()))
    return pc.if_else(blank, pa.scalar(None, pa.string()), column)


def _finite(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, pa.float64()))


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    try:
        values = pc.utf8_trim_whitespace(column).cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    return None if _any_code(column) else _finite(values)


def _comma_numbers(column: pa.ChunkedArray, *, expected: bool) -> pa.ChunkedArray | None:
    """Numbers with a decimal comma. 1.234 and 1,234 may be either: one other cell settles it, or what is *expected*."""
    text = pc.utf8_trim_whitespace(column)
    if not pc.all(pc.match_substring_regex(text, DECIMAL_COMMA)).as_py() or _any_code(text):
        return None
    commas = pc.drop_null(text.filter(pc.match_substring(text, ",")))
    if not expected and pc.all(pc.match_substring_regex(commas, THOUSANDS), min_count=0).as_py():
        return None
    pointed = pc.replace_substring(pc.replace_substring(text, ".", ""), ",", ".")
    return _finite(pointed.cast(pa.float64()))


def _any_code(column: pa.ChunkedArray) -> bool:
    """007 is a code, not seven."""
    return bool(pc.any(pc.match_substring_regex(column, r"^\s*[+-]?0[0-9]")).as_py())


def _booleans(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    lowered = pc.utf8_lower(column)
    if not set(pc.unique(lowered).to_pylist()) <= {"true", "false", None}:
        return None
    return pc.equal(lowered, "true")


ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?( ?(Z|UTC|GMT|[+-]\d{2}:?\d{2}|[+-]\d{2}))?)?$"
MONTH_FIRST, DAY_FIRST = "%m/%d/%Y", "%d/%m/%Y"
OTHER_TIMES = tuple(
    (re.compile(shape + clock + "$"), day + time)
    for shape, day in (
        (r"^\d{4}/\d{1,2}/\d{1,2}", "%Y/%m/%d"),
        (r"^\d{1,2}/\d{1,2}/\d{4}", MONTH_FIRST),  # unless that is impossible
        (r"^\d{1,2}/\d{1,2}/\d{4}", DAY_FIRST),
        (r"^\d{1,2}\.\d{1,2}\.\d{4}", "%d.%m.%Y"),
        (r"^\d{1,2}-[A-Za-z]{3}-\d{4}", "%d-%b-%Y"),
    )
    for clock, time in (("", ""), (r" \d{1,2}:\d{2}", " %H:%M"), (r" \d{1,2}:\d{2}:\d{2}", " %H:%M:%S"))
)


def _times(column: pa.ChunkedArray) -> Guess | None:
    first = pc.drop_null(column.slice(0, 1000))
    sample = (first if len(first) else pc.drop_null(column))[0].as_py()
    if re.match(ISO, sample):
        times = _iso_times(column)
        return None if times is None else Guess(times)
    for shape, layout in OTHER_TIMES:
        if not shape.match(sample):
            continue
        try:
            return Guess(pc.strptime(column, format=layout, unit="us").cast(ARROW["datetime"]), layout)
        except pa.ArrowInvalid:
            continue
    return None


def _iso_times(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    if not pc.all(pc.match_substring_regex(column, ISO)).as_py():
        return None
    text = pc.replace_substring_regex(column, r"(\.\d{6})\d+", r"\1")
    text = pc.replace_substring_regex(text, r" ?(UTC|GMT)$", "Z")
    text = pc.replace_substring_regex(text, r" ([Z+-])", r"\1")
    text = pc.replace_substring_regex(text, r"^(\d{4}-\d{2}-\d{2})$", r"\1T00:00:00")
    zoned = pc.match_substring_regex(text, r"\d:\d.*(Z|[+-]\d{2}(:?\d{2})?)$")
    text = pc.if_else(zoned, text, pc.binary_join_element_wise(text, "Z", ""))
    try:
        return text.cast(ARROW["datetime"])
    except pa.ArrowInvalid:
        return None  # a day like 2013-02-30: not a time after all


def unify(parts: Sequence[pa.Table], names: Sequence[str]) -> list[pa.Table]:
    """The same columns and types in each file. Raises `SchemaMismatch` with the file and the column."""
    _same_columns(parts, names)
    order = parts[0].column_names
    kinds = {column: _kind_of(column, parts, names) for column in order}
    parts = _one_order_of_days(parts, names)
    layouts = {
        column: sorted({one for part in parts for one in _layouts(part.schema.field(column))}) for column in order
    }
    unread = {field.name: _unread(field) for part in parts for field in part.schema if _unread(field)}
    schema = pa.schema(
        [_field(column, ARROW[kinds[column]], layouts[column], unread.get(column, "")) for column in order]
    )
    return [part.select(order).cast(schema) for part in parts]


def _one_order_of_days(parts: Sequence[pa.Table], names: Sequence[str]) -> list[pa.Table]:
    """03/04/2013 is one day in all files: where one file can only be day first, all are read so."""
    day_first = {
        field.name
        for part in parts
        for field in part.schema
        if any(layout.startswith(DAY_FIRST) for layout in _layouts(field))
    }
    if not day_first:
        return list(parts)
    return [_day_first(part, day_first, name) for part, name in zip(parts, names, strict=True)]


def _day_first(part: pa.Table, columns: set[str], name: str) -> pa.Table:
    for place, field in enumerate(part.schema):
        layouts = _layouts(field)
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
        part = part.set_column(place, _field(field.name, times.type, renamed), times)
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
    found = [_raw(part.schema.field(column).type) for part in parts]
    counts = Counter(kind for kind in found if kind)
    if not counts:
        return "text"
    usual = counts.most_common(1)[0][0]
    for kind, name in zip(found, names, strict=True):
        if kind and kind != usual:
            hint = "a column must hold the same kind of values in all files"
            sample = _example(next(part[column] for part, other in zip(parts, names, strict=True) if other == name))
            what = f"{kind} values (for instance {sample!r})"
            message = f"{name}: the column {column!r} holds {what}, in the other files {usual} values"
            raise SchemaMismatch(message, field=column, hint=hint)
    return usual


def _raw(kind: pa.DataType) -> Raw | None:
    return next((name for name, known in ARROW.items() if known == kind), None)


def describe(table: pa.Table) -> tuple[Column, ...]:
    """Each column's kind, nulls and number of different values."""
    return tuple(_describe(field, table[field.name]) for field in table.schema)


def _describe(field: pa.Field, values: pa.ChunkedArray) -> Column:
    distinct = int(pc.count_distinct(values, mode="only_valid").as_py())
    kind = _raw(values.type)
    if kind == "text":
        filled = len(values) - values.null_count
        kind_named: Any = "category" if distinct <= max(CATEGORY_DISTINCT, filled // 2) else "text"
    else:
        kind_named = kind
    return Column(
        name=field.name, kind=kind_named, nulls=values.null_count, distinct=distinct, layouts=tuple(_layouts(field))
    )


def check_spec(spec: LifecycleSpec, names: Sequence[str]) -> None:
    """Every column that the spec names exists. Raises `InvalidSpec` with the nearest names that do."""
    wanted: list[tuple[str, str]] = [("target", spec.target)]
    wanted += [(field, value) for field, value in (("time", spec.time), ("key", spec.key)) if value]
    wanted += [("features.include", name) for name in spec.features.include or ()]
    wanted += [("features.exclude", name) for name in spec.features.exclude]
    for field, name in wanted:
        if name not in names:
            message = f"{field}: the data has no column {name!r}"
            raise InvalidSpec(message, field=field, hint=nearest(name, names))


def nearest(name: str, names: Sequence[str]) -> str:
    """Which columns are most like *name*, as a hint."""
    lowered = {other.lower(): other for other in names}
    close = [lowered[match] for match in difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.5)]
    shown = close or list(names[:8])
    more = "" if close or len(names) <= len(shown) else f" and {len(names) - len(shown)} more"
    return f"the {'nearest ' if close else ''}columns are {', '.join(map(repr, shown))}{more}"


# --- columns as arrays --------------------------------------------------------------------------


def _take(table: pa.Table, rows: NDArray[np.int64] | None) -> list[pa.ChunkedArray]:
    return list((table if rows is None else table.take(pa.array(rows))).columns)


def array_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """A canonical column as float64 (NaN is missing; datetimes are seconds since 1970) or text ("" is missing)."""
    if pa.types.is_string(column.type):
        return np.asarray(pc.fill_null(column, "").to_numpy(), dtype=object)
    if pa.types.is_timestamp(column.type):
        return _floats(column.cast(pa.int64()).cast(pa.float64(), safe=False)) / 1e6
    return _floats(column.cast(pa.float64()))


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(column, float("nan")).to_numpy(), dtype=np.float64)


def _example(column: pa.ChunkedArray) -> object:
    """Its first value."""
    found = pc.drop_null(column)
    return found[0].as_py() if len(found) else None


def _no_times(column: pa.ChunkedArray) -> str:
    """Why a text or boolean column is no time: the first value that is none, or not like the ones before it."""
    first = _example(column)
    if not isinstance(first, str):
        return f"does not hold times (for instance {first!r})"
    filled = pc.drop_null(_null_where(column, NUMBER_BLANKS))
    if not len(filled):
        return f"does not hold times (for instance {first!r})"
    first = filled[0].as_py()
    odd = _first_odd(filled, first)
    if odd == first:
        return f"does not hold times (for instance {first!r})"
    return f"does not hold times alone (for instance {odd!r}, while the first is {first!r})"


def _first_odd(filled: pa.ChunkedArray, first: str) -> str:
    """The first text that is not written as *first* is, or names a day that does not exist."""
    if re.match(ISO, first):
        fits = [pc.match_substring_regex(filled, ISO)]
    else:
        fits = [
            pc.is_valid(pc.strptime(filled, format=layout, unit="us", error_is_null=True))
            for shape, layout in OTHER_TIMES
            if shape.match(first)
        ]
    places = [pc.index(fit, value=False).as_py() for fit in fits]
    odd: str
    if -1 not in places:
        odd = filled[max(places, default=0)].as_py()
        return odd
    for odd in pc.unique(filled).to_pylist():
        if _iso_times(pa.chunked_array([[odd]])) is None:
            return odd
    return first


YEARS, DAYS, SECONDS, MILLISECONDS = (1500, 2500), (15000101, 25001231), (1e8, 1e11), (1e11, 1e14)


def event_seconds(table: Table, time: str) -> NDArray[np.float64]:
    """When each row happened, in seconds since 1970 UTC; NaN where that is not said.

    A column of numbers may hold years, days as YYYYMMDD, seconds or milliseconds since 1970.
    Raises `InvalidData` for anything else.
    """
    column = table.rows[time]
    if pa.types.is_timestamp(column.type):
        return _floats(column.cast(pa.int64()).cast(pa.float64(), safe=False)) / 1e6
    hint = "times look like 2013-01-31, 2013-01-31T12:00:00Z, or seconds since 1970; or leave out `time`"
    if column.null_count == len(column):
        raise InvalidData(f"the column {time!r} has no value in any row", field="time", hint=hint)
    if not pa.types.is_float64(column.type):
        raise InvalidData(f"the column {time!r} {_no_times(column)}", field="time", hint=hint)
    values = _floats(column)
    unit = _unit(values)
    if unit is None:
        low, high = np.nanmin(values), np.nanmax(values)
        message = f"the column {time!r} holds numbers from {low:g} to {high:g}, not times"
        raise InvalidData(message, field="time", hint=hint)
    if unit == "year":
        return _calendar(values, values * 0 + 1, values * 0 + 1)
    if unit == "day":
        return _calendar(values // 10000, values // 100 % 100, values % 100)
    return values / 1e3 if unit == "milliseconds" else values


def _unit(values: NDArray[np.float64]) -> str | None:
    """What the numbers of a time column are (see `inference.UNITS`)."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    whole = bool(np.nanmax(np.abs(values - np.round(values))) == 0)
    if whole and YEARS[0] <= low and high <= YEARS[1]:
        return "year"
    if whole and DAYS[0] <= low and high <= DAYS[1]:
        return "day"
    if SECONDS[0] <= low and high < SECONDS[1]:
        return "seconds"
    if MILLISECONDS[0] <= low and high < MILLISECONDS[1]:
        return "milliseconds"
    return None


def time_layouts(table: Table, time: str) -> tuple[str, ...]:
    """How a predict request may write the time column besides ISO 8601: as the table does."""
    column = table.rows[time]
    if pa.types.is_timestamp(column.type):
        return table.column(time).layouts
    unit = _unit(_floats(column))
    return (unit,) if unit else ()


def _calendar(
    years: NDArray[np.float64], months: NDArray[np.float64], days: NDArray[np.float64]
) -> NDArray[np.float64]:
    there = np.isfinite(years)
    whole = [np.where(there, part, 1).astype(np.int64) for part in (years, months, days)]
    start = (whole[0] - 1970).astype("datetime64[Y]").astype("datetime64[M]") + (whole[1] - 1)
    seconds = (start.astype("datetime64[D]") + (whole[2] - 1)).astype("datetime64[s]").astype(np.float64)
    return np.where(there, seconds, np.nan)


# --- the target ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The column to learn: a class index or a number per row; NaN where a row has no label."""

    values: NDArray[np.float64]
    classes: tuple[str, ...] = ()
    """Binary: negative first, then the positive class."""
    positive: str = ""

    @property
    def labelled(self) -> NDArray[np.int64]:
        """Row numbers with a label."""
        return np.flatnonzero(np.isfinite(self.values))


def target_of(table: Table, spec: LifecycleSpec) -> Target:
    """The target as the spec's task needs it. Raises `TargetUnusable` or `DatasetTooSmall` with what to do."""
    column = table.rows[spec.target]
    filled = len(column) - column.null_count
    unread = unread_type(table, spec.target)
    if filled == 0 and unread:
        raise _unusable(spec, f"holds values of type {unread}, which are not understood", "choose another target")
    if filled == 0:
        raise _unusable(spec, "has no value in any row", "choose another target")
    if pa.types.is_timestamp(column.type):
        raise _unusable(spec, "holds times", "choose another target")
    if filled < MINIMUM_ROWS:
        hint = f"at least {MINIMUM_ROWS} rows with a target are needed"
        message = f"only {filled} of {len(column)} rows have a value in the target {spec.target!r}"
        raise DatasetTooSmall(message, field=spec.target, hint=hint)
    return _number_target(column, spec) if spec.task == "regression" else _class_target(column, spec)


def _unusable(spec: LifecycleSpec, what: str, hint: str) -> TargetUnusable:
    return TargetUnusable(f"the target {spec.target!r} {what}", field=spec.target, hint=hint)


def _number_target(column: pa.ChunkedArray, spec: LifecycleSpec) -> Target:
    if not pa.types.is_float64(column.type):
        if pa.types.is_string(column.type) and (why := mistaken(column)):
            raise _unusable(spec, f"is not numeric: {why}", "mend the column, or choose another target")
        raise _unusable(
            spec, f"is not numeric (for instance {_example(column)!r})", "use `task: binary` or `task: multiclass`"
        )
    values = _floats(column)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low == high:
        raise _unusable(spec, f"is always {low:g}{_except_missing(column)}", "choose a target that varies")
    if not SPREAD[0] <= high - low <= SPREAD[1]:
        hint = f"scale it, for instance divide it by {high - low:.0e}" if high - low < np.inf else "scale it"
        what = f"goes from {low:g} to {high:g}: its spread must lie between 1e-100 and 1e100, as errors are squared"
        raise _unusable(spec, what, hint)
    return Target(values)


def _except_missing(column: pa.ChunkedArray) -> str:
    """What to think of where a class seems to have vanished: it may be called `NA`."""
    if not column.null_count:
        return ""
    return f" where it has a value; {column.null_count:,} rows have none (a text like NA or null counts as missing)"


def _class_target(column: pa.ChunkedArray, spec: LifecycleSpec) -> Target:
    coded = pc.dictionary_encode(column.combine_chunks())
    values = coded.dictionary.to_pylist()
    if len(values) == 1:
        what = f"is always {label_of(values[0])!r}{_except_missing(column)}"
        hint = "choose a target that varies" + (", or give that class another name" if column.null_count else "")
        raise _unusable(spec, what, hint)
    numeric = pa.types.is_float64(column.type)
    if spec.task == "binary" and len(values) != 2:  # noqa: PLR2004
        hint = "use `task: regression` or `task: multiclass`" if numeric else "use `task: multiclass`"
        raise _unusable(spec, f"has {len(values)} different values, a binary target has 2", hint)
    if len(values) > MOST_CLASSES:
        hint = "use `task: regression`" if numeric else f"at most {MOST_CLASSES} classes can be told apart"
        raise _unusable(spec, f"has {len(values)} different values", hint)
    order = sorted(range(len(values)), key=lambda place: values[place])
    labels = [label_of(values[place]) for place in order]
    if spec.positive is not None:
        chosen = _positive(labels, spec)
        order = [
            *(place for place, label in zip(order, labels, strict=True) if label != chosen),
            order[labels.index(chosen)],
        ]
        labels = [label_of(values[place]) for place in order]
    index = np.empty(len(values), np.float64)
    index[order] = np.arange(len(values))
    codes = _floats(pa.chunked_array([coded.indices]).cast(pa.float64()))
    there = np.isfinite(codes)
    found = np.where(there, index[np.where(there, codes, 0).astype(np.int64)], np.nan)
    _check_counts(found[there], labels, spec)
    return Target(found, tuple(labels), labels[-1] if spec.task == "binary" else "")


def _positive(labels: Sequence[str], spec: LifecycleSpec) -> str:
    wanted = spec.positive or ""
    for same in (lambda label: label == wanted, lambda label: _loose(label) == _loose(wanted)):
        found = [label for label in labels if same(label)]
        if len(found) == 1:
            return found[0]
    hint = f"use one of {', '.join(map(repr, labels))}"
    message = f"positive: the target {spec.target!r} has no value {wanted!r}"
    raise InvalidSpec(message, field="positive", hint=hint)


def _loose(label: str) -> str:
    try:
        return repr(float(label))
    except ValueError:
        return label.strip().lower()


def _check_counts(codes: NDArray[np.float64], labels: Sequence[str], spec: LifecycleSpec) -> None:
    counts = np.bincount(codes.astype(np.int64), minlength=len(labels))
    for label, count in zip(labels, counts, strict=True):
        if count == 1:
            hint = "add rows of that class, or remove that row"
            raise _unusable(spec, f"has only one row of the class {label!r}", hint)


def label_of(value: object) -> str:
    """A class as text: 1.0 is `1`, true is `true`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return str(value)


# --- validation ---------------------------------------------------------------------------------

MANY_NULLS = 0.5
CODES = 20
"""Text with at most this many different values is taken for codes, whatever they look like."""
RARE_CLASS = 10
MOST_CHECKS = 60
"""Listed in the result; the log has all."""


def validate(request: ValidateRequest, job: Job) -> Validation:
    """Look at the table before anything is learned from it.

    Raises `TargetUnusable`, `DatasetTooSmall` or `InvalidData` for what cannot be learned from;
    the rest is listed as warnings.
    """
    from activities.compute.rows import opened

    with opened(job.artifacts, request.snapshot) as table:  # one column in memory at a time
        return _validate(request.spec, table)


def _validate(spec: LifecycleSpec, table: Table) -> Validation:
    check_spec(spec, table.rows.column_names)
    _enough(len(table))
    target = target_of(table, spec)
    looks: tuple[Callable[[Table, LifecycleSpec], list[Check]], ...] = (_nulls, _ranges, _duplicates, _when)
    checks = [_ok("schema", f"{len(table.columns)} columns, {len(table):,} rows"), *_target_checks(target, spec)]
    for look in looks:
        checks += look(table, spec)
    for check in checks:
        print(f"{check.level}: {check.message}")
    return Validation(checks=_bounded_checks(checks))


def _bounded_checks(checks: Sequence[Check]) -> tuple[Check, ...]:
    kept = list(checks[:MOST_CHECKS])
    if len(checks) > len(kept):
        left = len(checks) - len(kept)
        kept.append(Check(name="more", level="warning", message=f"{left} more, see the log of this stage"))
    return tuple(kept)


def _ok(name: str, message: str) -> Check:
    return Check(name=name, level="ok", message=message)


def _warn(name: str, column: str, message: str) -> Check:
    shown = column if len(column) <= 80 else column[:77] + "..."  # noqa: PLR2004
    return Check(name=name, level="warning", column=shown, message=message.replace(column, shown))


def _target_checks(target: Target, spec: LifecycleSpec) -> list[Check]:
    missing = len(target.values) - len(target.labelled)
    checks = []
    if missing:
        what = f"{missing:,} rows without a target are not used"
        checks.append(_warn("target", spec.target, what))
    counts: list[int] = []
    if target.classes:
        counts = np.bincount(target.values[target.labelled].astype(np.int64)).tolist()
    for label, count in zip(target.classes, counts, strict=True):
        if count < RARE_CLASS:
            checks.append(_warn("target", spec.target, f"the class {label[:80]!r} has only {count} rows"))
    kinds = f"{len(target.classes)} classes" if target.classes else "numeric"
    return checks or [_ok("target", f"{kinds}, {len(target.labelled):,} labelled rows")]


def _nulls(table: Table, spec: LifecycleSpec) -> list[Check]:
    found = []
    for column in table.columns:
        share = column.nulls / len(table)
        if column.name == spec.target or share <= MANY_NULLS:
            continue
        what = "has no usable values" if share == 1 else f"is missing in {share:.0%} of the rows"
        found.append(_warn("nulls", column.name, f"{column.name!r} {what}"))
    return found or [_ok("nulls", "no column is mostly missing")]


def _ranges(table: Table, spec: LifecycleSpec) -> list[Check]:
    found = []
    for column in table.columns:
        if column.name in (spec.target, spec.time, spec.key):
            continue
        if column.distinct == 1 and not column.nulls:
            found.append(_warn("ranges", column.name, f"{column.name!r} is the same in every row"))
        if column.kind in ("text", "category") and (why := mistaken(table.rows[column.name])):
            found.append(_warn("ranges", column.name, f"{column.name!r}: {why}"))
        elif column.kind == "text":
            found.append(_warn("ranges", column.name, f"{column.name!r} looks like free text or an identifier"))
        if column.kind == "number" and _beyond_whole(table.rows[column.name]):
            what = f"{column.name!r} holds numbers beyond 2^63: they are rounded; write them like 1.8e19 in requests"
            found.append(_warn("ranges", column.name, what))
    return found or [_ok("ranges", "every column varies")]


MOSTLY_NUMBERS, MOSTLY_WHOLE = 0.5, 0.9
"""Share of numbers from which a text column seems meant as numbers; whole ones may be codes, so more are asked for."""
DRESSED = r"^[+-]?[$€£¥]? ?[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)? ?[%$€£¥]?$"
"""A number with a currency, a percent sign or commas between thousands."""
PLAIN = r"(?i)^\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*$"


def mistaken(column: pa.ChunkedArray) -> str:
    """Why a text column was probably meant to hold numbers; nothing where that is not likely.

    Codes are meant as they are: a column of few different values, with leading zeros (01234), or where digits
    stand in what is no number (E909, 12b, 12345-6789).
    """
    filled = pc.utf8_trim_whitespace(pc.drop_null(column))
    if not len(filled) or _any_code(filled):
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
    filled = pc.drop_null(_null_where(filled, NUMBER_BLANKS))
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


def _beyond_whole(column: pa.ChunkedArray) -> bool:
    """Whole numbers that JSON may not carry as such: our API takes those of 64 bits with a sign."""
    most = pc.max(pc.abs(column)).as_py()
    return most is not None and most >= 2**63 and _whole(column)


def _duplicates(table: Table, spec: LifecycleSpec) -> list[Check]:
    hashes = content_hashes(table)
    double = len(hashes) - len(np.unique(hashes))
    found = []
    if double:
        found.append(Check(name="duplicates", level="warning", message=f"{double:,} rows are there more than once"))
    if spec.key and (distinct := table.column(spec.key).distinct or 0) < len(table) - table.column(spec.key).nulls:
        what = f"the key {spec.key!r} has {distinct:,} different values in {len(table):,} rows"
        found.append(_warn("duplicates", spec.key, what))
    return found or [_ok("duplicates", "no row is there twice")]


def _when(table: Table, spec: LifecycleSpec) -> list[Check]:
    if not spec.time:
        return []
    found = [_warn("time", name, why) for name in (spec.time,) if (why := month_first(table, name))]
    missing = int(np.isnan(event_seconds(table, spec.time)).sum())
    if missing:
        found.append(_warn("time", spec.time, f"{missing:,} rows have no time: they are only trained on"))
    return found or [_ok("time", "every row has a time")]


def month_first(table: Table, name: str) -> str:
    """A sentence where days like 03/04/2013 are read month first and no value of the column says so; else nothing."""
    if not any(layout.startswith(MONTH_FIRST) for layout in table.column(name).layouts):
        return ""
    if pc.max(pc.day(table.rows[name])).as_py() > 12:  # noqa: PLR2004  # months
        return ""
    return f"{name!r} is read month first (03/04/2013 is 4 March), and could be day first: if so, write 2013-04-03"


# --- rows by their content ----------------------------------------------------------------------

MISSING_HASH = np.uint64(0x9E3779B97F4A7C15)
ODD = np.uint64(0xBF58476D1CE4E5B9)


def row_hashes(table: Table) -> NDArray[np.uint64]:
    """Who a row is: its content, and the how-manieth of that content it is. The same in every process and snapshot.

    A folder that grows keeps the identities of the rows it had, also where rows repeat.
    """
    content = content_hashes(table)
    order = np.argsort(content, kind="stable")
    ranked = content[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    lengths = np.diff(np.r_[first, len(ranked)])
    copies = np.empty(len(content), np.uint64)
    copies[order] = np.arange(len(content), dtype=np.uint64) - np.repeat(first, lengths).astype(np.uint64)
    return content ^ (copies * ODD)


def content_hashes(table: Table) -> NDArray[np.uint64]:
    """A 64-bit hash of what each row holds.

    Columns are hashed by pandas' keyed SipHash (text) or its integer mix (numbers), salted with their name, and
    added: neither the order of columns nor a column's kind while it holds no value matters.
    """
    from pandas.util import hash_array

    total = np.zeros(len(table), np.uint64)
    for name in table.rows.column_names:
        values = array_of(table.rows[name])
        salt = np.uint64(int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big"))
        if values.dtype == object:
            missing = values == ""
            hashed = hash_array(values, categorize=True)
        else:
            missing = np.isnan(values)
            hashed = hash_array(values + 0.0)  # -0.0 and 0.0 are the same value
        mixed = (np.where(missing, MISSING_HASH, hashed) ^ salt) * ODD
        total += mixed ^ (mixed >> np.uint64(29))
    return total
