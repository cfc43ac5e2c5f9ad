# ruff: noqa: T201  # what a job prints is its log
"""The snapshot: a source's bytes at one moment, and the table that was read from them."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from activities.compute import Job
from activities.compute.data.asked import check_spec
from activities.compute.data.first import Spelled, read, read_all
from activities.compute.data.sources import _keep, find
from activities.compute.data.table import Table, bounded, describe, enough, schema_digest
from activities.compute.data.times import event_seconds, moment
from everloop.artifacts import Artifacts
from everloop.contracts import SnapshotRequest
from everloop.records import Blob, Column, Snapshot
from everloop.specs import LifecycleSpec

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
    enough(whole.num_rows)
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


def _span(table: Table, spec: LifecycleSpec) -> tuple[datetime | None, datetime | None]:
    if not spec.time:
        return None, None
    seconds = event_seconds(table, spec.time)
    if not np.isfinite(seconds).any():
        return None, None
    return moment(float(np.nanmin(seconds))), moment(float(np.nanmax(seconds)))
