# ruff: noqa: T201  # what a job prints is its log
"""A user's trainer, kept with the snapshot: the folder as one archive, addressed by what it holds."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from activities.compute import reach
from everloop.artifacts import Artifacts
from everloop.errors import DatasetMissing, TrainerFailed
from everloop.records import Blob, Code
from everloop.requirements import REQUIREMENTS, required
from everloop.specs import LifecycleSpec

LEFT_OUT = frozenset((
    ".git", ".hg", ".svn", "__pycache__", ".venv", "venv", ".tox", ".mypy_cache", ".ruff_cache", ".pytest_cache",
    ".ipynb_checkpoints", "node_modules", ".idea", ".vscode", ".eggs", ".DS_Store",
))  # fmt: skip
COMPILED = (".pyc", ".pyo")
DATA = frozenset((
    ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".pq", ".arrow", ".feather", ".xlsx", ".npy", ".npz",
    ".h5", ".hdf5", ".pkl", ".pickle", ".joblib", ".pt", ".pth", ".safetensors", ".onnx", ".bin", ".db", ".sqlite",
    ".duckdb", ".zip", ".gz", ".tar", ".zst", ".bz2", ".7z", ".log", ".png", ".jpg", ".jpeg", ".mp4", ".pdf",
))  # fmt: skip
DATA_BYTES = 1 << 20
"""A file of data that is larger is left out: data comes by `source`."""
MOST_BYTES = 50 << 20
MOST_FILES = 5000
NAMED = 3
HINT = "give the absolute path of a folder with your module in it, or of a wheel"


def keep(spec: LifecycleSpec, artifacts: Artifacts) -> Code | None:
    """What *spec*'s trainer needs, kept; None where one of ours learns. The same files give the same digest.

    Raises `TrainerFailed` naming `code` or `requirements`, `NotFound` for `sha256:` of code that is not kept.
    """
    if not spec.own_trainer:
        return None
    if not spec.code:
        return Code(requirements=spec.requirements)
    code = Code(archive=_kept(spec.code, artifacts), requirements=spec.requirements)
    print(f"kept the trainer's code: {code.digest[:12]}")
    return code


def _kept(code: str, artifacts: Artifacts) -> Blob:
    """The archive of *code*."""
    if code.startswith("sha256:"):
        data = artifacts.get(code.removeprefix("sha256:"))
        return Blob(sha256=code.removeprefix("sha256:"), size_bytes=len(data), name="code")
    path = Path(code)
    try:
        reach.check(path)
        if path.is_dir():
            data = packed(path)
            _check_requirements(data)
            return artifacts.put(data, "code.tar")
        if path.suffix == ".whl":
            with reach.opened(path) as found:
                return artifacts.put(found.read_bytes(), path.name)
        path.stat()
    except DatasetMissing as error:
        raise TrainerFailed(str(error), field="code", hint=error.hint) from None
    except OSError as error:
        why = (error.strerror or "the system refuses").lower()
        hint = "check `code` on the machine that runs the compute worker"
        raise TrainerFailed(f"{error.filename or code} cannot be read: {why}", field="code", hint=hint) from None
    raise TrainerFailed(f"{code} is neither a folder nor a wheel", field="code", hint=HINT)


def packed(folder: Path) -> bytes:
    """The files of *folder* as a tar that says nothing but their names and bytes.

    Raises `TrainerFailed` for a link that leads out of the folder, and where it holds too much.
    """
    files = sorted(_files(folder), key=lambda path: path.relative_to(folder).as_posix())
    if not any(path.suffix == ".py" for path in files):
        raise TrainerFailed(f"{folder} holds no Python file", field="code", hint=HINT)
    _not_too_much(folder, files)
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in files:
            data = path.read_bytes()
            about = tarfile.TarInfo(path.relative_to(folder).as_posix())
            about.size, about.mode = len(data), 0o644
            archive.addfile(about, io.BytesIO(data))
    return made.getvalue()


def _files(folder: Path) -> Iterator[Path]:
    root = folder.resolve()
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            _stays_inside(Path(place) / name, root)
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and not name.endswith(".egg-info"))
        for name in sorted(names):
            path = Path(place) / name
            if name in LEFT_OUT or path.suffix in COMPILED or not path.is_file():
                continue
            if path.suffix.lower() in DATA and path.stat().st_size > DATA_BYTES:
                print(f"left out of the code: {path.relative_to(folder)}, {path.stat().st_size:,} bytes of data")
                continue
            yield path


def _stays_inside(path: Path, root: Path) -> None:
    if path.name in LEFT_OUT or not path.is_symlink() or path.resolve().is_relative_to(root):
        return
    where = f"{path.name} is a link that leads out of the folder, to {path.readlink()}"
    raise TrainerFailed(where, field="code", hint="put a copy of the file there, or take the link away")


def _not_too_much(folder: Path, files: list[Path]) -> None:
    sizes = {path: path.stat().st_size for path in files}
    total = sum(sizes.values())
    if total <= MOST_BYTES and len(files) <= MOST_FILES:
        return
    largest = sorted(sizes, key=lambda path: -sizes[path])[:NAMED]
    named = ", ".join(f"{path.relative_to(folder)} ({sizes[path]:,} bytes)" for path in largest)
    raise TrainerFailed(
        f"{folder} holds {total:,} bytes in {len(files):,} files; code may have {MOST_BYTES:,} in {MOST_FILES:,}."
        f" The largest: {named}",
        field="code",
        hint="keep data and models elsewhere; `code` is for modules",
    )


def _check_requirements(data: bytes) -> None:
    """Raise `TrainerFailed` where an archive's requirements.txt says what cannot be installed."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            found = archive.extractfile(REQUIREMENTS)
            text = found.read() if found else b""
    except (tarfile.TarError, KeyError):  # a wheel, or a folder without one
        return
    required(text)
