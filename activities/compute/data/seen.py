# ruff: noqa: T201  # what a job prints is its log
"""Which rows a champion has learned from: by their hashes under the reading that it was trained with."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute.data import first_folder
from activities.compute.data.earlier import Manifest, manifest_of, read_alike, read_as_then
from activities.compute.data.hashing import row_hashes
from activities.compute.data.table import Table, array_of
from activities.compute.data.times import event_seconds
from everloop.artifacts import Artifacts
from everloop.contracts import PrepareRequest
from everloop.errors import EverloopError, Invalid
from everloop.records import Champion
from everloop.rows import WITH_COMMA

FIRST = 1
"""The reading of a champion that does not say by which it was trained."""


@dataclass(frozen=True)
class Seen:
    """What a champion learned from."""

    hashes: NDArray[np.uint64]
    reading: Mapping[str, list[str]]
    version: int
    manifest: str
    """Digest of the manifest of its snapshot; nothing where it does not say so."""


def keep_seen(table: Table, rows: NDArray[np.int64], path: Path) -> None:
    """Write to *path* what a later challenger needs to know its fresh rows: hashes, and how columns were read."""
    version = table.reading.version if table.reading else FIRST
    hashes = np.unique(row_hashes(table)[rows])
    np.savez(path, hashes=hashes, reading=json.dumps(reading_of(table)), version=version, manifest=table.manifest)


def reading_of(table: Table) -> dict[str, list[str]]:
    """Each column as `text`, `number` or `datetime` (nothing, while it holds no value), and how it was written."""
    found = {}
    for column in table.columns:
        values = table.rows[column.name]
        plain = "text" if array_of(values[:1]).dtype == object else "number"
        kind = "datetime" if column.kind == "datetime" else plain
        found[column.name] = [kind if values.null_count < len(values) else "", *column.layouts]
    return found


def unseen(
    table: Table,
    rows: NDArray[np.int64],
    request: PrepareRequest,
    artifacts: Artifacts,
    scratch: Path | None = None,
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """For each labelled row: has no champion learned from it? And the columns that keep us from knowing.

    A row that is later than all that the champion learned from is new to it, whatever it was read by. Where there is
    no time and the champion is of another reading, the source is read once more as it was read then.
    """
    champion = request.champion
    if champion is None:
        return np.ones(len(rows), np.bool_), ()
    with artifacts.open_local(champion.seen) as path, np.load(path, allow_pickle=False) as stored:
        known = Seen(
            hashes=stored["hashes"],
            reading=json.loads(str(stored["reading"])),
            version=int(stored["version"]) if "version" in stored else FIRST,
            manifest=str(stored["manifest"]) if "manifest" in stored else "",
        )
    if known.version != (table.reading.version if table.reading else FIRST):
        return _of_another_version(table, rows, request, artifacts, known)
    otherwise = of_other_kinds if known.manifest else read_otherwise  # once, manifests were not kept
    if unmatched := otherwise(known.reading, reading_of(table)):
        return np.zeros(len(rows), np.bool_), unmatched
    if known.manifest:
        then, own = manifest_of(artifacts, known.manifest), manifest_of(artifacts, request.snapshot.manifest.sha256)
        if not read_alike(artifacts, then, own):
            return _of_another_reading(table, rows, request, artifacts, known, then, own, scratch)
    return ~np.isin(row_hashes(table)[rows], known.hashes), ()


def _of_another_reading(  # noqa: PLR0917
    table: Table,
    rows: NDArray[np.int64],
    request: PrepareRequest,
    artifacts: Artifacts,
    known: Seen,
    then: Manifest,
    own: Manifest,
    scratch: Path | None,
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """The same rules, told otherwise: another text means missing, blanks stay, a comma is decimal."""
    later = _later(table, rows, request.champion, request.spec.time)
    if later is not None:
        print(f"columns are read otherwise than for the champion: {later.sum():,} rows are later than all it knows")
        return later, ()
    print("columns are read otherwise than for the champion: rows are compared as they were read for it")
    try:
        with (
            tempfile.TemporaryDirectory(dir=scratch) as folder,
            read_as_then(artifacts, then, own, Path(folder)) as old,
        ):
            hashes = row_hashes(old) if len(old) == len(table) else None
    except Invalid as error:
        print(f"the source cannot be read as it was for the champion: {error}")
        hashes = None
    if hashes is None:
        return np.zeros(len(rows), np.bool_), tuple(table.rows.column_names)
    return ~np.isin(hashes[rows], known.hashes), ()


def _of_another_version(
    table: Table,
    rows: NDArray[np.int64],
    request: PrepareRequest,
    artifacts: Artifacts,
    known: Seen,
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    later = _later(table, rows, request.champion, request.spec.time)
    if later is not None:
        print(f"the champion is of another reading: {later.sum():,} rows are later than all that it learned from")
        return later, ()
    nothing = np.zeros(len(rows), np.bool_)
    if table.reading is None:  # a champion of a later version than we are
        return nothing, tuple(sorted(known.reading))
    try:
        old = first_folder.table_of(artifacts, request.snapshot)
    except EverloopError as error:
        print(f"the source cannot be read as it was for the champion: {error}")
        return nothing, tuple(table.rows.column_names)
    if len(old) != len(table):
        return nothing, tuple(table.rows.column_names)
    if unmatched := read_otherwise(known.reading, reading_of(old)):
        return nothing, unmatched
    return ~np.isin(row_hashes(old)[rows], known.hashes), ()


def _later(
    table: Table, rows: NDArray[np.int64], champion: Champion | None, time: str | None
) -> NDArray[np.bool_] | None:
    if not time or champion is None or champion.trained_until is None:
        return None
    return np.asarray(event_seconds(table, time)[rows] > champion.trained_until.timestamp())


def of_other_kinds(then: Mapping[str, Sequence[str]], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns that are there no more, are new, or of another kind: the champion could not be asked about their rows."""
    found = [name for name in then if name not in now] + [name for name in now if name not in then]
    found += [name for name in then.keys() & now.keys() if len({then[name][0], now[name][0]} - {""}) > 1]
    return tuple(sorted(found))


def read_otherwise(then: Mapping[str, Sequence[str]], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns whose old values have another hash now: a row that the champion learned from would seem new."""
    found = []
    for name in then.keys() & now.keys():
        (before, *layouts), (kind, *others) = then[name], now[name]
        if "" in (before, kind):
            continue
        commas = (WITH_COMMA in layouts) != (WITH_COMMA in others)
        if commas or not set(layouts) <= set(others):
            found.append(name)
    return tuple(sorted({*found, *of_other_kinds(then, now)}))
