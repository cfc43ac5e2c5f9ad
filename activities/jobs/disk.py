"""Checkpoints of one stage on this machine's disk: `<folder>/<token>/<step>/<file>`.

One that is there is whole: it is written beside its place, brought to the disk, and renamed. `Depot` does the same on
the artifact store, where hosts share no disk.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from activities.jobs.numbered import numbered

RESUMES = "resumes"
LAST = "digests.json"
"""The file of a checkpoint that is written last."""


class Disk:
    """What a folder has of one stage. Raises `OSError` for whatever the disk does not do."""

    look_seconds = 1.0
    """How often a running job looks whether its lease was given to another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tokens(self) -> list[int]:
        """Of all who have worked here, the highest first."""
        with contextlib.suppress(FileNotFoundError):
            return [token for token, _ in numbered(self.folder)]
        return []

    def places(self) -> list[tuple[int, int]]:
        """Token and step of each checkpoint, the newest first."""
        found = []
        for token in self.tokens():
            with contextlib.suppress(OSError):  # removed meanwhile, or nothing that can be looked into
                found += [(token, step) for step, _ in numbered(self.folder / str(token))]
        return found

    def claim(self, token: int) -> None:
        """Say that the holder of *token* works here."""
        (self.folder / str(token)).mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(self, token: int, step: int, folder: Path) -> None:
        """Keep *folder*, which lies beside its place and is on the disk whole."""
        place = self._place(token, step)
        shutil.rmtree(place, ignore_errors=True)  # of an attempt before with this token, torn or the same
        folder.rename(place)
        to_disk(place.parent)

    @contextlib.contextmanager
    def opened(self, token: int, step: int) -> Iterator[Path]:
        """A folder with its files, while the block lasts."""
        yield self._place(token, step)

    def drop(self, token: int, step: int) -> None:
        shutil.rmtree(self._place(token, step), ignore_errors=True)

    def forget(self) -> None:
        """All of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others of the chain are still there
            self.folder.parent.rmdir()
            self.folder.parent.parent.rmdir()

    def resumes(self) -> bytes:
        """The lines that attempts have left; none where there are none."""
        with contextlib.suppress(OSError):
            return (self.folder / RESUMES).read_bytes()
        return b""

    def note_resumes(self, lines: bytes) -> None:
        staged = self.folder / f".{RESUMES}-{uuid.uuid4().hex[:12]}"
        staged.write_bytes(lines)
        staged.replace(self.folder / RESUMES)

    def written(self, token: int) -> Iterator[tuple[int, bytes]]:
        """Of each checkpoint of *token*, the newest first: when it was written, in milliseconds, and its digests."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for _, path in numbered(self.folder / str(token)):
                with contextlib.suppress(OSError):
                    found.append((int((path / LAST).stat().st_mtime * 1000), path / LAST))
        for at, path in sorted(found, reverse=True):
            with contextlib.suppress(OSError):
                yield at, path.read_bytes()

    def _place(self, token: int, step: int) -> Path:
        return self.folder / str(token) / f"{step:012d}"


def to_disk(path: Path) -> None:
    """A file, or the names in a folder, survive a loss of power from now on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
