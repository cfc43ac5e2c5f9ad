"""How far a source's path may lead: links are followed, but none that another user has planted.

Jobs run with the rights of the user that runs Everloop. A folder that others may write to can hold a link of
theirs to a file that only we may read, and its content would end in a model, a log or an error. So each step of
a path, and each file of a folder, is looked at as it is opened, and a link is followed when

- root made it, or the user that runs Everloop (`/data -> /mnt/data` of an administrator), or
- whatever it leads to belongs to who made it, or is readable by everybody: then nobody gains anything by it.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from everloop.errors import DatasetMissing

MOST_LINKS = 40  # as the kernel has it
HINT = "name the file that it leads to, or let its owner make the link"


def check(path: Path) -> None:
    """Raise `DatasetMissing` when *path* leads through a link that is not to be followed, `OSError` as `open` does."""
    os.close(_walk(path))


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A path to the file that *path* leads to, for as long as the block runs: nobody can put another in its place.

    Raises `DatasetMissing` when it leads through a link that is not to be followed, `OSError` as `open` does.
    """
    found = _walk(path)
    try:
        yield Path(f"/proc/self/fd/{found}")
    finally:
        os.close(found)


def _walk(path: Path) -> int:
    """A descriptor (O_PATH) of what *path* leads to, step by step from the root."""
    todo = list(reversed(path.absolute().parts[1:]))
    makers: dict[int, str] = {}  # of links that neither root nor we have made, and their names
    links = 0
    place = _root()
    try:
        while todo:
            name = todo.pop()
            step = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            about = os.fstat(step)
            if not stat.S_ISLNK(about.st_mode):
                os.close(place)
                place = step
                _may_pass(about, makers, path, last=not todo)
                continue
            target = _target(step)
            links = _one_more(links)
            if about.st_uid not in (0, os.geteuid()):
                makers[about.st_uid] = name
            todo += reversed([part for part in target.split("/") if part not in ("", ".")])
            if target.startswith("/"):
                os.close(place)
                place = _root()
        _may_pass(os.fstat(place), makers, path, last=True)
    except BaseException:
        os.close(place)
        raise
    return place


def _target(link: int) -> str:
    try:
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _one_more(links: int) -> int:
    if links == MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return links + 1


def _root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _may_pass(about: os.stat_result, makers: dict[int, str], path: Path, *, last: bool) -> None:
    """Raise unless every stranger that has sent us here could have come by themselves."""
    needed = stat.S_IROTH if last and not stat.S_ISDIR(about.st_mode) else stat.S_IXOTH
    needed |= stat.S_IROTH if last else 0
    for maker, link in makers.items():
        if about.st_uid != maker and about.st_mode & needed != needed:
            raise DatasetMissing(
                f"{path} leads through the link {link!r} of another user (uid {maker}) to what that user may not read: "
                "it is not followed",
                field="source.path",
                hint=HINT,
            )
