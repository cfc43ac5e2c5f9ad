"""A user's code as it is kept: a tar of a folder, or a wheel as it was built. Read here, and nowhere else."""

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from everloop.errors import TrainerFailed, text

HINT = "`code` is a folder, or a wheel as `python -m build` makes it"
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError,
    RuntimeError,  # of a file with a password
    NotImplementedError, OSError, ValueError,
)  # fmt: skip
"""What reading an archive raises that is none, or is damaged."""


def sizes(data: bytes) -> dict[str, int]:
    """The files of a wheel and what they take unpacked; nothing is unpacked for it. Raises `TrainerFailed`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            return {info.filename: info.file_size for info in wheel.infolist() if not info.is_dir()}
    except BROKEN as error:
        raise _broken(error) from None


def members(data: bytes) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The plain files of an archive: where each belongs, and what it holds.

    Raises `TrainerFailed` naming a file that leads out of the archive, that cannot be read, or that another one needs
    as its folder.
    """
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    try:
        for name, content in _plain(data):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise TrainerFailed(f"the archive holds {name!r}, which leads out of it", field="code")
            files.add(path)
            folders.update(path.parents)
            if both := files & {path, *path.parents} & folders:
                raise TrainerFailed(f"the archive holds {str(both.pop())!r} as a file and as a folder", field="code")
            yield path, content
    except BROKEN as error:
        raise _broken(error) from None


def _plain(data: bytes) -> Iterator[tuple[str, bytes]]:
    held = io.BytesIO(data)
    if zipfile.is_zipfile(held):
        with zipfile.ZipFile(held) as wheel:
            yield from ((info.filename, wheel.read(info)) for info in wheel.infolist() if not info.is_dir())
        return
    held.seek(0)
    with tarfile.open(fileobj=held) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content.read()


def _broken(error: Exception) -> TrainerFailed:
    why = (text(error).splitlines() or [type(error).__name__])[0]
    return TrainerFailed(f"the code is no archive: {why}", field="code", hint=HINT)
