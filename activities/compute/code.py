# ruff: noqa: T201  # what a job prints is its log
"""A user's trainer, kept with the snapshot: the folder as one archive, addressed by what it holds."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from activities.compute import reach
from everloop import archive
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
MARKS = ("pyvenv.cfg", "conda-meta")
"""What is in a folder that is an environment."""
MODULES = (".py", ".so", ".pyd")
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
                _not_too_much(path, {path.name: found.stat().st_size})
                data = found.read_bytes()
            _check_wheel(path, data)
            return artifacts.put(data, path.name)
        path.stat()
    except DatasetMissing as error:
        raise TrainerFailed(str(error), field="code", hint=error.hint) from None
    except OSError as error:
        why = (error.strerror or "the system refuses").lower()
        hint = "check `code` on the machine that runs the compute worker"
        where = error.filename if str(error.filename or "").startswith("/") else code  # a step of a path has no folder
        raise TrainerFailed(f"{where} cannot be read: {why}", field="code", hint=hint) from None
    raise TrainerFailed(f"{code} is neither a folder nor a wheel", field="code", hint=HINT)


def packed(folder: Path) -> bytes:
    """The files of *folder* as a tar that says nothing but their names and bytes.

    Raises `TrainerFailed` for a link that leads out of the folder, and where it holds too much; `OSError` for what
    cannot be read.
    """
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if not any(path.suffix == ".py" for path in files.values()):
        raise TrainerFailed(f"{folder} holds no Python file", field="code", hint=HINT)
    _not_too_much(folder, {name: path.stat().st_size for name, path in files.items()})
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as packing:
        for name, path in sorted(files.items()):
            data = path.read_bytes()
            about = tarfile.TarInfo(name)
            about.size, about.mode = len(data), 0o644
            packing.addfile(about, io.BytesIO(data))
    return made.getvalue()


def _files(folder: Path) -> Iterator[Path]:
    root = folder.resolve()
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not _is_left_out(Path(place) / name))
        for name in (*folders, *names):
            _stays_inside(Path(place) / name, root)
        for name in folders:
            if (path := Path(place) / name).is_symlink():
                print(f"left out of the code: {path.relative_to(folder)}, a link to a folder")
        for name in sorted(names):
            path = Path(place) / name
            if name in LEFT_OUT or path.suffix in COMPILED or not path.is_file():
                continue
            if path.suffix.lower() in DATA and path.stat().st_size > DATA_BYTES:
                print(f"left out of the code: {path.relative_to(folder)}, {path.stat().st_size:,} bytes of data")
                continue
            yield path


def _raise(error: OSError) -> None:
    """A folder that cannot be listed is not passed over: a part of the code would be missing."""
    raise error


def _is_left_out(folder: Path) -> bool:
    """Is it none of the user's own: an environment, whatever it is called, or what tools keep?"""
    return folder.name in LEFT_OUT or folder.suffix == ".egg-info" or any((folder / mark).exists() for mark in MARKS)


def _stays_inside(path: Path, root: Path) -> None:
    if path.name in LEFT_OUT or not path.is_symlink():
        return
    try:
        if path.resolve().is_relative_to(root):
            return
        where = f"leads out of the folder, to {path.readlink()}"
    except (OSError, RuntimeError):  # as Python's versions say it
        where = "leads to itself"
    told = f"{path.relative_to(root) if path.is_relative_to(root) else path.name} is a link that {where}"
    raise TrainerFailed(told, field="code", hint="put a copy of the file there, or take the link away")


def _not_too_much(code: Path, sizes: dict[str, int]) -> None:
    """Raise `TrainerFailed` where the files *sizes* of *code* are too many, or too large."""
    total = sum(sizes.values())
    if total <= MOST_BYTES and len(sizes) <= MOST_FILES:
        return
    largest = sorted(sizes, key=lambda name: -sizes[name])[:NAMED]
    named = ", ".join(f"{name} ({sizes[name]:,} bytes)" for name in largest)
    raise TrainerFailed(
        f"{code} holds {total:,} bytes in {len(sizes):,} files; code may have {MOST_BYTES:,} in {MOST_FILES:,}."
        f" The largest: {named}",
        field="code",
        hint="keep data and models elsewhere; `code` is for modules",
    )


def _check_wheel(path: Path, data: bytes) -> None:
    """Raise `TrainerFailed` for a wheel that a later stage could not unpack. As large unpacked as a folder may be."""
    sizes = archive.sizes(data)
    _not_too_much(path, sizes)
    if not any(name.endswith(MODULES) for name in sizes):
        raise TrainerFailed(f"{path} holds no module", field="code", hint=HINT)
    for _ in archive.members(data):
        pass


def _check_requirements(data: bytes) -> None:
    """Raise `TrainerFailed` where a folder's requirements.txt says what cannot be installed."""
    for path, content in archive.members(data):
        if str(path) == REQUIREMENTS:
            required(content)
