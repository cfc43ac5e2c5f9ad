# ruff: noqa: T201  # what a job prints is its log
"""Where rows come from: files that are found by name and kept as they are."""

import contextlib
import fnmatch
import os
import re
from collections.abc import Iterable
from pathlib import Path

from activities.compute import reach
from everloop.artifacts import Artifacts
from everloop.errors import DatasetMissing, InvalidData
from everloop.records import Blob

PARTIAL = (".tmp", ".part", ".partial", ".crdownload", ".swp", "~")
FORMATS = {
    "csv": (".csv", ".tsv", ".tab", ".psv"),
    "lines": (".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "excel": (".xlsx", ".xls", ".xlsb", ".ods"),
}
COMPRESSED = (".gz", ".zst", ".bz2")
"""Text files may be compressed; the others are so inside."""
KNOWN = ".csv, .tsv, .jsonl, .parquet, .arrow, .feather or .xlsx"
GLOB = re.compile(r"[*?\[]")


def format_of(name: str) -> str | None:
    """What kind of file *name* is: `csv`, `lines`, `parquet`, `arrow`, `excel`; None where we cannot read it."""
    lowered = name.lower()
    bare = lowered
    for ending in COMPRESSED:
        bare = bare.removesuffix(ending)
    if lowered.endswith(".txt"):
        return None
    found = next((kind for kind, endings in FORMATS.items() if bare.endswith(endings)), None)
    return found if bare == lowered or found in ("csv", "lines") else None


def compression_of(name: str) -> str:
    return next((ending[1:] for ending in COMPRESSED if name.lower().endswith(ending)), "")


def shown(path: Path) -> str:
    """A file's name for people and records: what is not UTF-8 in it is marked."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def find(source: Path) -> list[Path]:
    """The files of a source, by name: the file itself, a folder's files of a known format, or those of a glob.

    Hidden files and files that are still being written are passed over. Raises `DatasetMissing`, `InvalidData`.
    """
    field = "source.path"
    try:
        if GLOB.search(str(source)) and not source.exists():
            return _one_format(_matching(source), source)
        reach.check(source)
        if source.is_file():
            return [_known_format(source)]
        entries = sorted(source.iterdir(), key=lambda path: os.fsencode(path.name))
    except (FileNotFoundError, NotADirectoryError):
        hint = "check source.path; it must be readable on the machine that runs the compute worker"
        raise DatasetMissing(f"there is no file or folder {_named(source)}", field=field, hint=hint) from None
    except PermissionError:
        hint = "give the user that runs Everloop the right to read it"
        raise DatasetMissing(f"{_named(source)} may not be read", field=field, hint=hint) from None
    except OSError as error:  # a link to itself, a name that is too long, a disk that fails
        why = (error.strerror or "the system refuses").lower()
        hint = "check source.path on the machine that runs the compute worker"
        raise DatasetMissing(f"{_named(source)} cannot be read: {why}", field=field, hint=hint) from None
    return _one_format([path for path in entries if path.is_file()], source)


def _named(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def _matching(source: Path) -> list[Path]:
    """The files that a glob names. Listed by us: DuckDB's own listing stops at a name that is not UTF-8."""
    parts = source.parts
    fixed = next(place for place, part in enumerate(parts) if GLOB.search(part))
    found = [Path(*parts[:fixed])]
    for part in parts[fixed:]:
        found = [entry for folder in found if folder.is_dir() for entry in _fitting(folder, part)]
    return sorted((path for path in found if path.is_file()), key=os.fsencode)


def _fitting(folder: Path, part: str) -> Iterable[Path]:
    if part == "**":
        return [folder, *(Path(place) for place, _, _ in os.walk(folder) if Path(place) != folder)]
    return [entry for entry in folder.iterdir() if fnmatch.fnmatchcase(entry.name, part)]


def _one_format(files: list[Path], source: Path) -> list[Path]:
    """Those that can be read, which must be of one format."""
    field = "source.path"
    files = [path for path in files if not _passed_over(path.name)]
    usable = [path for path in files if format_of(path.name)]
    for other in files:
        if other not in usable:
            print(f"passed over {shown(other)}: neither {KNOWN}")
    if not usable:
        hint = f"put {KNOWN} files into it"
        raise DatasetMissing(f"{_named(source)} holds no {KNOWN} file", field=field, hint=hint)
    kinds = sorted({str(format_of(path.name)) for path in usable})
    if len(kinds) > 1:
        hint = "keep files of one format in a folder, or name them by a glob such as /data/*.csv"
        raise InvalidData(f"{_named(source)} mixes {' and '.join(kinds)} files", field=field, hint=hint)
    for path in usable:
        with contextlib.suppress(OSError):  # said when it is kept
            reach.check(path)
    return usable


def _known_format(path: Path) -> Path:
    if format_of(path.name):
        return path
    hint = f"give a {KNOWN} file, or a folder of them"
    raise InvalidData(f"{shown(path)} is neither a {KNOWN} file", field="source.path", hint=hint)


def _passed_over(name: str) -> bool:
    return name.startswith((".", "_", "~$")) or name.lower().endswith(PARTIAL)


def _keep(path: Path, artifacts: Artifacts) -> Blob:
    with contextlib.ExitStack() as held:
        try:
            found = held.enter_context(reach.opened(path))
            with found.open("rb"):  # whatever fails from here on is not the source's fault
                pass
        except FileNotFoundError:
            raise _vanished(path) from None
        except PermissionError:
            hint = "give the user that runs Everloop the right to read it"
            raise DatasetMissing(f"{_named(path)} may not be read", field="source.path", hint=hint) from None
        return artifacts.put_file(found, shown(path))


def _vanished(path: Path) -> DatasetMissing:
    hint = "put it back, or submit again"
    return DatasetMissing(f"{_named(path)} vanished while it was read", field="source.path", hint=hint)
