# ruff: noqa: T201  # what a job prints is its log
"""The snapshot: a source's bytes at one moment, and the table that was read from them."""

import csv
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from activities.compute import Job
from activities.compute.code import keep
from activities.compute.data import reading, rules, typed
from activities.compute.data.asked import check_spec
from activities.compute.data.conversion import Converted, attempts, converted, digest_of
from activities.compute.data.engine import connection, parquet
from activities.compute.data.engine import name as column_name
from activities.compute.data.files import Opened, open_file
from activities.compute.data.histograms import histograms
from activities.compute.data.sources import _keep, find, shown
from activities.compute.data.table import Table, bounded, column_of, enough, field_of, schema_digest
from activities.compute.data.times import event_seconds, moment
from everloop.artifacts import Artifacts
from everloop.contracts import SnapshotRequest
from everloop.errors import naming
from everloop.reading import Changed, Reading
from everloop.records import Blob, Column, Snapshot
from everloop.rows import WITH_COMMA
from everloop.specs import ColumnReading, LifecycleSpec

MEMORY = "512MB"
"""What DuckDB may hold while a source becomes a snapshot; the rest is spilled to the job's scratch folder."""
MOST_REJECTED_ROWS = 10_000
"""Kept for people to look at; all are counted."""
MOST_FETCHED = 50_000
"""Rows that `init` looks at, at least; twice as many at most."""
MOST_CLASSES = 200
MOST_AT_ONCE, CELLS_AT_ONCE = 20, 1_000_000
"""Columns whose different values are counted together, where they are short: each takes DuckDB some memory."""
SENTENCES = 20
"""On what was changed, in the result; the manifest has all."""


def snapshot(request: SnapshotRequest, job: Job) -> Snapshot:
    """Keep the source's bytes as blobs, then read the table from them.

    Safe to run twice: the same bytes give the same blobs. Raises `DatasetMissing`, `InvalidData`,
    `SchemaMismatch`, `DatasetTooSmall`, `InvalidSpec` (a column that the spec names is not there), `TrainerFailed`.
    """
    spec = request.spec
    code = keep(spec, job.artifacts)
    paths = find(Path(spec.source.path))
    blobs = [_keep(path, job.artifacts) for path in paths]
    print(f"kept {len(blobs)} files, {sum(blob.size_bytes for blob in blobs):,} bytes")
    with ExitStack() as stack:
        duck = stack.enter_context(connection(job.scratch, memory=MEMORY))
        local = [stack.enter_context(job.artifacts.open_local(blob)) for blob in blobs]
        files = _opened(local, [shown(path) for path in paths], spec, job.scratch, duck)
        read = reading.settle(files, asked_of(spec), duck, attempts(files, blobs, job.artifacts, job.scratch))
        enough(sum(read.rows))  # first: the first line of a file without rows may be anything, and is not quoted
        check_spec(spec, list(read.columns[0]))
        kept: list[Converted] = []
        for place, blob in enumerate(blobs):
            with naming(file=files[place].name):
                kept.append(converted(read, place, blob, job.artifacts, job.scratch, duck, stack))
            job.report(place + 1, files=place + 1, of=len(files), converted=sum(each.again for each in kept))
        print(f"converted {sum(each.again for each in kept)} of {len(kept)} files, the others are as before")
        tables = [each.path for each in kept]
        counted = _counted(read, tables, duck)
        columns = describe_files(read, counted, duck)
        drawn = histograms(columns, counted, duck)
        with naming(column=spec.time or ""):
            span = _span(tables, columns, spec)
        rejected = _rejected(read, job.scratch / "rejected.csv", duck)
    stored = job.artifacts.put(read.reading.model_dump_json().encode(), "reading.json")
    changed = [sentence for each in read.changed for sentence in each.sentences()]
    for sentence in changed:
        print(sentence)
    profile = json.dumps({"columns": drawn, "changed": changed}, sort_keys=True)
    print(f"{sum(read.rows):,} rows, {len(columns)} columns; schema {schema_digest(columns)[:12]}")
    return Snapshot(
        manifest=_manifest(read, blobs, [each.table for each in kept], columns, stored, job),
        rows=sum(read.rows),
        files=len(paths),
        size_bytes=sum(blob.size_bytes for blob in blobs),
        columns=bounded(columns),
        schema_digest=schema_digest(columns),
        time_from=span[0],
        time_to=span[1],
        reading=stored,
        changed=tuple(sentence[:200] for sentence in changed[:SENTENCES]),
        profile=job.artifacts.put(profile.encode(), "profile.json"),
        target_missing=next(column.nulls for column in columns if column.name == spec.target),
        rejected=job.artifacts.put_file(rejected, "rejected.csv") if rejected else None,
        code=code,
    )


def asked_of(spec: LifecycleSpec) -> dict[str, ColumnReading]:
    """What the spec says of columns. A key is an identifier, so that no digit of it is ever lost."""
    asked = dict(spec.columns)
    if spec.key and not (spec.key in asked and asked[spec.key].kind):
        own = asked.get(spec.key, ColumnReading())
        asked[spec.key] = own.model_copy(update={"type": "identifier"})
    return asked


def wanted_of(spec: LifecycleSpec) -> set[str]:
    """Names that tell a header from other lines."""
    named = {
        spec.target,
        spec.time,
        spec.key,
        spec.group,
        spec.weight,
        *spec.columns,
        *(spec.features.include or ()),
        *spec.features.exclude,
    }
    return {name for name in named if name}


def _opened(
    local: Sequence[Path],
    names: Sequence[str],
    spec: LifecycleSpec,
    scratch: Path,
    duck: duckdb.DuckDBPyConnection,
) -> list[Opened]:
    wanted = wanted_of(spec)
    opened = []
    for path, name in zip(local, names, strict=True):
        with naming(file=name):
            opened.append(open_file(path, name, scratch, wanted, spec.source.encoding, duck))
    return opened


@dataclass(frozen=True)
class Drawn:
    """What is known of all rows where only some of them are looked at."""

    target_missing: int
    """Rows without a target."""
    repeated: frozenset[str]
    """Columns that seem to say who a row is, and do not: some value is there twice."""


def read_paths(
    paths: Sequence[Path], spec: LifecycleSpec, scratch: Path, threads: int, may_be_key: Callable[[str], object]
) -> tuple[Table, reading.Read, Drawn]:
    """The table of files that are not kept, as `snapshot` would read it: for `init`.

    How columns are read is held against all rows; of many rows a seeded sample is returned, with two of each class.
    Columns of which *may_be_key* is true are counted over all rows.
    """
    local = []
    for place, path in enumerate(paths):  # a name that DuckDB can open, whatever the file's own is
        link = scratch / f"source-{place}"
        link.symlink_to(path)
        local.append(link)
    with connection(scratch, threads) as duck:
        files = _opened(local, [shown(path) for path in paths], spec, scratch, duck)
        read = reading.settle(files, asked_of(spec), duck)
        every = max(1, sum(read.rows) // MOST_FETCHED)
        parts = [
            _fetched(read, place, duck, _some(read, place, spec.target, every, duck)) for place in range(len(paths))
        ]
        rows = pa.concat_tables(parts).combine_chunks()
        columns = tuple(
            column_of(column, len(rows), rows[name].null_count, _distinct(rows[name]), _layouts(read, name))
            for name, column in read.columns[0].items()
        )
        keys = [each.name for each in columns if each.distinct == len(rows) and may_be_key(each.name)]
        drawn = _counted_over_all(read, spec.target, keys, duck)
    return _table(rows, columns, read.unread, read.reading, read.changed), read, drawn


def _counted_over_all(read: reading.Read, target: str, keys: Sequence[str], duck: duckdb.DuckDBPyConnection) -> Drawn:
    names = list(read.columns[0])
    if target not in names:
        return Drawn(0, frozenset())  # which is said with its nearest names
    asked = [names.index(target), *map(names.index, keys)]
    cells = ", ".join(column_name(str(place)) for place in asked)
    files = (f"SELECT {cells} FROM ({reading.select(read, place, numbered=True)})" for place in range(len(read.files)))
    counts = [f"count(*) - count({column_name(str(asked[0]))})"]
    counts += [f"count(*) - count(DISTINCT {column_name(str(place))})" for place in asked[1:]]
    answer = duck.execute(f"SELECT {', '.join(counts)} FROM ({' UNION ALL '.join(files)})").fetchall()[0]
    return Drawn(int(answer[0]), frozenset(key for key, twice in zip(keys, answer[1:], strict=True) if twice))


def _some(read: reading.Read, place: int, target: str, every: int, duck: duckdb.DuckDBPyConnection) -> str:
    """Which rows of a file to look at: about one of *every*, and the first and last of each class of the target.

    The same rows each time, however many threads read the file.
    """
    if every == 1 or target not in read.columns[place]:
        return ""
    file, looked = read.files[place], read.looked[place][target]
    rows = f"SELECT c{looked.place} AS x, row_number() OVER () AS n FROM {file.relation()}"
    classes = duck.execute(f"SELECT min(n), max(n) FROM ({rows}) GROUP BY x LIMIT {MOST_CLASSES + 1}").fetchall()
    ends = {int(n) for both in classes for n in both} if len(classes) <= MOST_CLASSES else {1}
    return f"hash(n) % {every} = 0 OR n IN ({', '.join(map(str, sorted(ends)))})"


def _fetched(read: reading.Read, place: int, duck: duckdb.DuckDBPyConnection, where: str = "") -> pa.Table:
    names = list(read.columns[0])
    try:
        return duck.sql(reading.select(read, place, numbered=True, where=where)).to_arrow_table().rename_columns(names)
    except duckdb.Error as error:
        raise read.files[place].fault(str(error)) from None


def _distinct(values: pa.ChunkedArray) -> int:
    return int(pa.compute.count_distinct(values, mode="only_valid").as_py())


def load(artifacts: Artifacts, of: Snapshot, names: Collection[str] | None = None) -> Table:
    """The canonical table of a snapshot, optionally of some columns only. Raises `NotFound`, `IntegrityError`."""
    manifest = json.loads(artifacts.get(of.manifest))
    columns = _columns(manifest)
    chosen = None if names is None else [column.name for column in columns if column.name in names]
    tables = []
    for file in manifest["files"]:
        with artifacts.open_local(Blob.model_validate(file["table"])) as path:
            # Not mapped: the rows outlive the file's name when the store is remote.
            tables.append(pa.parquet.read_table(path, columns=chosen, memory_map=False, use_threads=False))
    return described(pa.concat_tables(tables).combine_chunks(), manifest, of, artifacts)


def _columns(manifest: Mapping[str, Any]) -> tuple[Column, ...]:
    return tuple(Column.model_validate(column) for column in manifest["columns"])


def described(rows: Any, manifest: Mapping[str, Any], of: Snapshot, artifacts: Artifacts) -> Table:  # noqa: ANN401
    """*rows* (a pyarrow table, or what stands for one) with what the snapshot says of its columns."""
    columns = _columns(manifest)
    if of.reading is None:
        return Table(rows, columns, manifest=of.manifest.sha256)
    stored = Reading.model_validate_json(artifacts.get(of.reading))
    changed = [Changed.model_validate(change) for change in manifest["changed"]]
    return replace(_table(rows, columns, manifest["unread"], stored, changed), manifest=of.manifest.sha256)


def _table(
    rows: pa.Table,
    columns: Sequence[Column],
    unread: Mapping[str, str],
    stored: Reading,
    changed: Sequence[Changed],
) -> Table:
    by_name = {column.name: column for column in columns}
    fields = [
        field_of(each.name, each.type, by_name[each.name].layouts, unread.get(each.name, "")) for each in rows.schema
    ]
    return Table(rows.cast(pa.schema(fields)), tuple(columns), stored, tuple(changed))


# --- files of typed columns -------------------------------------------------------------------------------


def _counted(read: reading.Read, tables: Sequence[Path], duck: duckdb.DuckDBPyConnection) -> str:
    """The rows as SQL, columns c0, c1, ...: of a small table, which may be a wide one, once read for all questions."""
    rows = parquet(tables, len(read.columns[0]))
    if sum(read.rows) * len(read.columns[0]) > CELLS_AT_ONCE:
        return rows
    duck.execute(f"CREATE TEMP TABLE counted AS SELECT * FROM {rows}")
    return "counted"


def describe_files(read: reading.Read, rows: str, duck: duckdb.DuckDBPyConnection) -> tuple[Column, ...]:
    """Each column's kind, nulls and number of different values: few long columns at a time, to bound memory."""
    at_once = max(1, min(MOST_AT_ONCE, CELLS_AT_ONCE // sum(read.rows)))
    names = list(read.columns[0])
    found = []
    for start in range(0, len(names), at_once):
        some = range(start, min(start + at_once, len(names)))
        counts = ", ".join(f"count(*) - count(c{place}), count(DISTINCT c{place})" for place in some)
        with naming(column=names[start] if len(some) == 1 else ""):
            answer = [int(count) for count in duck.execute(f"SELECT {counts} FROM {rows}").fetchall()[0]]
        for place, nulls, distinct in zip(some, answer[::2], answer[1::2], strict=True):
            column = read.columns[0][names[place]]
            found.append(column_of(column, sum(read.rows), nulls, distinct, _layouts(read, names[place])))
    return tuple(found)


def _layouts(read: reading.Read, name: str) -> tuple[str, ...]:
    """How a column's texts were written, over all files."""
    own = [columns[name] for columns in read.columns]
    commas = {WITH_COMMA} if any(column.decimal == "," for column in own) else set()
    return tuple(sorted({layout for column in own for layout in column.format} | commas))


def _rejected(read: reading.Read, target: Path, duck: duckdb.DuckDBPyConnection) -> Path | None:
    """The values that are not as declared, with their file and row; None where there is none."""
    rows: list[tuple[Any, ...]] = []
    for change in read.changed:
        if not change.rejected:
            continue
        for place, file in enumerate(read.files):
            column, looked = read.columns[place][change.column], read.looked[place][change.column]
            text = typed.as_text("x", looked.kind) if looked.kind is not None else "x"
            t = rules.trimmed(text, column, file.odd_blanks)
            odd = f"{t} <> '' AND NOT {rules.one_of(t, column.missing)} AND NOT {rules.fits(t, column)}"
            numbered = f"SELECT row_number() OVER () AS n, c{looked.place} AS x FROM {file.relation()}"
            query = f"SELECT n, {t} FROM ({numbered}) WHERE {odd} ORDER BY n LIMIT {MOST_REJECTED_ROWS}"
            with naming(column=change.column, file=file.name):
                found = duck.execute(query).fetchall()
            rows += [(file.name, n, change.column, value) for n, value in found]
    if not rows:
        return None
    with target.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["file", "row", "column", "value"])
        writer.writerows(rows[:MOST_REJECTED_ROWS])
    return target


def _manifest(  # noqa: PLR0917
    read: reading.Read,
    blobs: Sequence[Blob],
    kept: Sequence[Blob],
    columns: Sequence[Column],
    stored: Blob,
    job: Job,
) -> Blob:
    files = []
    for place, (file, blob, table) in enumerate(zip(read.files, blobs, kept, strict=True)):
        entry: dict[str, Any] = {"name": file.name, "source": blob.model_dump(), "table": table.model_dump()}
        entry |= {"rows": read.rows[place], "dialect": file.dialect.model_dump() if file.dialect else None}
        entry |= {"reading": digest_of(read, place)}
        if read.columns[place] != read.columns[0]:  # numbers with a decimal comma here, with a point there
            entry |= {"columns": [column.model_dump() for column in read.columns[place].values()]}
        files.append(entry)
    manifest = {
        "files": files,
        "columns": [column.model_dump() for column in columns],
        "reading": stored.model_dump(),
        "unread": read.unread,
        "changed": [change.model_dump() for change in read.changed],
    }
    return job.artifacts.put(json.dumps(manifest, sort_keys=True).encode(), "manifest.json")


def _span(
    tables: Sequence[Path], columns: Sequence[Column], spec: LifecycleSpec
) -> tuple[datetime | None, datetime | None]:
    if not spec.time:
        return None, None
    seconds = event_seconds(Table(_ends(tables, spec.time), tuple(columns)), spec.time)
    if not np.isfinite(seconds).any():
        return None, None
    return moment(float(np.nanmin(seconds))), moment(float(np.nanmax(seconds)))


def _ends(tables: Sequence[Path], name: str) -> pa.Table:
    """A column's least and greatest values, and some that are not whole: a long column need not be in memory."""
    parts = []
    for table in tables:
        with pa.parquet.ParquetFile(table) as file:
            for batch in file.iter_batches(columns=[name], use_threads=False):
                values = batch[name]
                if pa.types.is_string(values.type) or pa.types.is_boolean(
                    values.type
                ):  # no times: said with an example
                    parts.append(values)
                    continue
                ends = pa.compute.min_max(values)
                parts.append(pa.array([ends["min"].as_py(), ends["max"].as_py()], values.type))
                if pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
                    parts.append(values.filter(pa.compute.not_equal(values, pa.compute.round(values)))[:1])
    return pa.table({name: pa.chunked_array(parts)})
