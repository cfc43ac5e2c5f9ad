"""Files of the compute worker's disk that a job reads on another host: lent to it by the artifact store.

They are not artifacts: they lie with the job's attempt, and are gone when it has ended. A prediction log forgets.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import fsspec


def lend(url: str, folder: Path, names: Sequence[str]) -> None:
    """Put the files *names* of *folder* below *url*. One that is not there is left out: the job will miss it too."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            files.makedirs(f"{root}/{PurePosixPath(name).parent}", exist_ok=True)
            files.put_file(str(folder / name), f"{root}/{name}")


def borrow(url: str, folder: Path) -> None:
    """All of them, into *folder*."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    for path in files.find(root):
        target = folder / path.removeprefix(root).strip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(path, str(target))


def take_back(url: str) -> None:
    """Never fails a job."""
    with contextlib.suppress(Exception):  # whatever the store behind the URL raises
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        files.rm(root, recursive=True)
