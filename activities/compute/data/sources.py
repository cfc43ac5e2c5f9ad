# ruff: noqa: T201  # what a job prints is its log
"""Where rows come from: files that are found by name and kept as they are."""

from pathlib import Path

from everloop.artifacts import Artifacts
from everloop.errors import DatasetMissing, InvalidData
from everloop.records import Blob

PARTIAL = (".tmp", ".part", ".partial", ".crdownload", ".swp", "~")


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
