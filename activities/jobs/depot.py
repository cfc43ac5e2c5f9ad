"""Checkpoints of one stage on the artifact store, where hosts share no disk: `<url>/<token>/<step>/<file>`.

What `Disk` does for one machine. A store has no rename, so a checkpoint is there once its last file is, the digests.
`<token>/claim` says that the holder of this token works here.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from activities.jobs.disk import LAST, RESUMES, Disk

CLAIM = "claim"


def kept_in(folder: Path, url: str = "") -> "Disk | Depot":
    """Where the checkpoints of one stage are: in *folder*, or at *url* where it has one."""
    return Depot(url, folder) if url else Disk(folder)


class Depot:
    """What the store has of one stage. Raises `OSError` for whatever the store answers or does not."""

    look_seconds = 5.0
    """As `Disk.look_seconds`: to ask a store costs more."""

    def __init__(self, url: str, folder: Path) -> None:
        """*folder*: of the stage on this host, for what is being written and read."""
        self.url = url
        self._here = Disk(folder)
        self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)

    def tokens(self) -> list[int]:
        """Of all who have worked here, the highest first."""
        with contextlib.suppress(OSError):
            return sorted({int(first) for first, *rest in self._found() if rest and first.isdigit()}, reverse=True)
        return self._here.tokens()  # whoever cannot reach the store keeps nothing there either

    def places(self) -> list[tuple[int, int]]:
        """Token and step of each whole checkpoint, the newest first."""
        whole = [parts for parts in self._found() if len(parts) == 3 and parts[2] == LAST]  # noqa: PLR2004
        return sorted(((int(token), int(step)) for token, step, _ in whole if token.isdigit() and step.isdigit()))[::-1]

    def claim(self, token: int) -> None:
        self._here.claim(token)
        with _asked():
            self._files.pipe_file(f"{self._made(str(token))}/{CLAIM}", b"1")

    def put(self, token: int, step: int, folder: Path) -> None:
        """Keep the files of *folder*."""
        with _asked():
            place = self._made(f"{token}/{step:012d}")
            for path in sorted(folder.iterdir(), key=lambda path: path.name == LAST):
                self._files.put_file(str(path), f"{place}/{path.name}")

    @contextlib.contextmanager
    def opened(self, token: int, step: int) -> Iterator[Path]:
        """A folder with its files, while the block lasts."""
        with tempfile.TemporaryDirectory(prefix=".read-", dir=self._here.folder) as folder:
            with _asked():
                for path in self._files.find(f"{self._root}/{token}/{step:012d}"):
                    self._files.get_file(path, str(Path(folder) / path.rsplit("/", 1)[1]))
            yield Path(folder)

    def drop(self, token: int, step: int) -> None:
        """Its last file goes first: what is left then is no checkpoint."""
        with contextlib.suppress(OSError), _asked():
            place = f"{self._root}/{token}/{step:012d}"
            self._files.rm_file(f"{place}/{LAST}")
            self._files.rm(place, recursive=True)

    def forget(self) -> None:
        """All of it, here and there."""
        with contextlib.suppress(OSError), _asked():
            self._files.rm(self._root, recursive=True)
        self._here.forget()

    def resumes(self) -> bytes:
        """The lines that attempts have left; none where there are none."""
        with contextlib.suppress(OSError), _asked():
            return bytes(self._files.cat_file(f"{self._root}/{RESUMES}"))
        return b""

    def note_resumes(self, lines: bytes) -> None:
        with _asked():
            self._files.pipe_file(f"{self._made()}/{RESUMES}", lines)

    def written(self, token: int) -> Iterator[tuple[int, bytes]]:
        """Of each checkpoint of *token*, the newest first: when it was written, in milliseconds, and its digests."""
        for of_token, step in self.places():
            if of_token == token:
                with _asked():
                    path = f"{self._root}/{token}/{step:012d}/{LAST}"
                    at, digests = modified(self._files.info(path)), bytes(self._files.cat_file(path))
                yield int(at.timestamp() * 1000), digests

    def _found(self) -> Iterator[list[str]]:
        with _asked():
            paths = self._files.find(self._root)
        for path in paths:
            yield path.removeprefix(self._root).strip("/").split("/")

    def _made(self, below: str = "") -> str:
        place = f"{self._root}/{below}".rstrip("/")
        self._files.makedirs(place, exist_ok=True)  # a store of objects has no folders, and says nothing
        return place


def modified(about: dict[str, Any]) -> datetime:
    """When a file of a store was written, as its kind of store says it."""
    at = about.get("LastModified") or about.get("mtime") or about.get("updated") or about.get("last_modified") or 0.0
    if isinstance(at, str):
        return datetime.fromisoformat(at)
    return at if isinstance(at, datetime) else datetime.fromtimestamp(float(at), UTC)


@contextlib.contextmanager
def _asked() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"the artifact store failed: {type(error).__name__}: {error}") from error
