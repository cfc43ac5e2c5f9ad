"""A source as an earlier snapshot read it: for rows that are known by how they were read then."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb

from activities.compute.data.conversion import converted
from activities.compute.data.engine import connection
from activities.compute.data.files import open_file
from activities.compute.data.looked import Looked
from activities.compute.data.reading import Read
from activities.compute.data.table import Table
from everloop.artifacts import Artifacts
from everloop.errors import SchemaMismatch, naming
from everloop.reading import Dialect, ReadColumn, Reading
from everloop.records import Blob, Column

Manifest = Mapping[str, Any]


def manifest_of(artifacts: Artifacts, digest: str) -> Manifest:
    found: Manifest = json.loads(artifacts.get(digest))
    return found


def columns_of(artifacts: Artifacts, manifest: Manifest) -> list[tuple[ReadColumn, ...]]:
    """How the columns of each file of a snapshot were read."""
    usual = Reading.model_validate_json(artifacts.get(manifest["reading"]["sha256"])).columns
    return [
        tuple(map(ReadColumn.model_validate, file["columns"])) if "columns" in file else usual
        for file in manifest["files"]
    ]


def read_alike(artifacts: Artifacts, then: Manifest, now: Manifest) -> bool:
    """Would each file give the same values under both readings? What is declared as it was found changes none."""
    known = _by_source(artifacts, then)
    usual = known[then["files"][0]["source"]["sha256"]]
    for file, columns in zip(now["files"], columns_of(artifacts, now), strict=True):
        dialect, before = known.get(file["source"]["sha256"], (file["dialect"], usual[1]))
        if dialect != file["dialect"] or _rules(before) != _rules(columns):
            return False
    return True


def _by_source(artifacts: Artifacts, manifest: Manifest) -> dict[str, tuple[Any, tuple[ReadColumn, ...]]]:
    return {
        file["source"]["sha256"]: (file["dialect"], columns)
        for file, columns in zip(manifest["files"], columns_of(artifacts, manifest), strict=True)
    }


def _rules(columns: Sequence[ReadColumn]) -> dict[str, Any]:
    return {column.name: column.model_dump(exclude={"declared"}) for column in columns}


@contextmanager
def read_as_then(artifacts: Artifacts, then: Manifest, now: Manifest, scratch: Path) -> Iterator[Table]:
    """The files of the snapshot *now* as *then* reads them, in their order; its rows stay in their files.

    Files that were there are found as they were converted; others are converted as the first of then was read.
    Raises `InvalidData`, `SchemaMismatch`: a file cannot be read so.
    """
    from activities.compute.rows import Stored

    kept = {file["source"]["sha256"]: Blob.model_validate(file["table"]) for file in then["files"]}
    known = _by_source(artifacts, then)
    usual = known[then["files"][0]["source"]["sha256"]]
    with ExitStack() as until:
        duck = until.enter_context(connection(scratch))
        paths = []
        for file in now["files"]:
            source = Blob.model_validate(file["source"])
            if source.sha256 in kept and artifacts.has(kept[source.sha256].sha256):
                paths.append(until.enter_context(artifacts.open_local(kept[source.sha256])))
                continue
            dialect, columns = known.get(source.sha256, (file["dialect"], usual[1]))
            with naming(file=file["name"]):
                local = until.enter_context(artifacts.open_local(source))
                read = _read(local, file, dialect, columns, scratch, duck)
                paths.append(converted(read, 0, source, artifacts, scratch, duck, until).path)
        yield Table(Stored(paths), tuple(Column.model_validate(column) for column in then["columns"]))


def _read(  # noqa: PLR0917
    local: Path,
    file: Mapping[str, Any],
    dialect: Any,  # noqa: ANN401  # JSON
    columns: Sequence[ReadColumn],
    scratch: Path,
    duck: duckdb.DuckDBPyConnection,
) -> Read:
    known = Dialect.model_validate(dialect) if dialect else None
    opened = open_file(local, file["name"], scratch, {column.name for column in columns}, None, duck, known)
    for column in columns:
        if column.name not in opened.columns:
            message = f"{opened.name} lacks the column {column.name!r}, which the champion's data had"
            raise SchemaMismatch(message, field=column.name)
    looked = {
        # One text at least may mean missing: what stands in quotes is looked at.
        column.name: Looked(opened.columns.index(column.name), opened.types.get(column.name), blanks=1)
        for column in columns
    }
    return Read(
        reading=Reading(columns=tuple(columns)),
        files=[opened],
        columns=[{column.name: column for column in columns}],
        looked=[looked],
        rows=[file["rows"]],
        changed=[],
        unread={},
    )
