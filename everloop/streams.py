"""Around code of others in our process: our log survives what it does to stdout, and its forks never become us."""

import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

NONE = -1
STREAMS = (("stdout", 1), ("stderr", 2))


class _Bytes(io.BufferedWriter):
    """Stays open when it is closed, as by the end of a second wrapper around it."""

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self.flush()


class _Log(io.TextIOWrapper):
    """A line at a time, whatever characters; it stays open when somebody closes it."""

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self.flush()


def last() -> None:
    """Make stdout and stderr of this process such that closing them does no harm."""
    for name, handle in STREAMS:
        with suppress(Exception):
            getattr(sys, name).flush()
        setattr(sys, name, _log(handle))


def _log(handle: int) -> _Log:
    raw = io.FileIO(handle, "w", closefd=False)
    return _Log(_Bytes(raw), "utf-8", "backslashreplace", line_buffering=True)


@contextmanager
def guest() -> Iterator[None]:
    """Run code of others in the block.

    Afterwards stdout and stderr can be written to, whatever it has put in their place or closed. A process that it
    has forked ends with the block: what comes after is for the one that came in.
    """
    ours = os.getpid()
    kept = [_copy(handle) for _, handle in STREAMS]
    code = 1
    try:
        yield
        code = 0
    except BaseException:
        if os.getpid() != ours:
            with suppress(Exception):
                traceback.print_exc()
        raise
    finally:
        if os.getpid() != ours:
            os._exit(code)
        for (name, handle), ours_of_it in zip(STREAMS, kept, strict=True):
            _mend(name, handle, ours_of_it)


def _copy(handle: int) -> int:
    with suppress(OSError):
        return os.dup(handle)
    return NONE


def _mend(name: str, handle: int, kept: int) -> None:
    """Make the stream *name* usable; *kept* is what its *handle* was, and is closed."""
    try:
        os.fstat(handle)
    except OSError:  # closed, and not taken by another file
        with suppress(OSError):
            os.dup2(kept, handle)
    with suppress(OSError):
        os.close(kept)
    if not _works(getattr(sys, name, None)):
        setattr(sys, name, _log(handle))


def _works(stream: object) -> bool:
    try:
        stream.write("")  # type: ignore[attr-defined]  # whatever was put there
        stream.flush()  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001
        return False
    return True
