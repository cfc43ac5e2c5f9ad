"""A data folder and the stack that runs on it: which processes are alive, how to end them, how to forget all.

Linux only: who is alive is read from `/proc`, and who may start is decided by a lock on `up.lock`.
"""

import fcntl
import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from everloop.errors import Conflict, EverloopError, Unavailable
from everloop.settings import PRIVATE, Settings

MARKER = "EVERLOOP"
"""A file that says: Everloop made this folder, so `reset` may empty it."""

UNSAFE = "?#%"
"""The database would be made elsewhere: these mean something in its URL."""

STOP_SECONDS = 12.0
"""How long `down` waits for an orderly end before it kills."""


SESSIONS_KEPT = 1000
"""An attempt of a session before these has long timed out."""


class AlreadyRunning(Conflict):
    """A stack already runs on this data folder."""


class ForeignFolder(Conflict):
    """The folder holds files that Everloop did not make."""


@dataclass(frozen=True)
class Up:
    """A running stack, as it says of itself in `up.json` once it is ready."""

    pid: int
    started: int
    """Start time of the process, in clock ticks since boot: a reused pid has another."""
    session: str
    port_base: int
    api_url: str
    serve_url: str
    temporal: str
    temporal_ui_url: str
    data_dir: str


@dataclass(frozen=True)
class Alive:
    """A process that belongs to a stack."""

    pid: int
    started: int
    command: str

    def gone(self) -> bool:
        return start_time(self.pid) != self.started


def start_time(pid: int) -> int:
    """When *pid* started, in clock ticks since boot; 0 when there is no such process (or only its remains)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def lock(settings: Settings) -> IO[str]:
    """Take the data folder for this process, for as long as the file stays open. Raises `AlreadyRunning`."""
    handle = (settings.data_dir / "up.lock").open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise _already(settings) from None
    handle.truncate(0)
    handle.write(f"{os.getpid()} {start_time(os.getpid())}\n")
    handle.flush()
    return handle


def remember_session(settings: Settings) -> None:
    """Note this session, and that of a killed one before it. Call with the lock held."""
    known = _sessions(settings)
    with suppress(OSError, ValueError, KeyError, TypeError):  # an earlier version kept no list
        known.append(str(json.loads((settings.data_dir / "up.json").read_text())["session"]))
    kept = list(dict.fromkeys([*known, settings.session]))[-SESSIONS_KEPT:]
    staged = settings.data_dir / "sessions.new"
    staged.write_text("".join(f"{session}\n" for session in kept))
    staged.replace(settings.data_dir / "sessions")


def ended_sessions(settings: Settings) -> frozenset[str]:
    """Earlier lives of the stack on this data folder: they are over, since who asks is the one that holds its lock."""
    return frozenset(_sessions(settings)) - {settings.session}


def _sessions(settings: Settings) -> list[str]:
    try:
        return (settings.data_dir / "sessions").read_text().split()
    except OSError:
        return []


def _already(settings: Settings) -> AlreadyRunning:
    up = read(settings)
    where = f", at {up.api_url}" if up else " (it is starting or stopping)"
    return AlreadyRunning(
        f"Everloop already runs on {settings.data_dir}{where}",
        hint="`everloop login` gives a link to its page, `everloop down` ends it; "
        "another --data-dir and --port-base start a second one",
    )


def owner(settings: Settings) -> Alive | None:
    """The process that holds the data folder, or None. It may still be starting."""
    try:
        with (settings.data_dir / "up.lock").open("r+") as handle:
            text = handle.read().split()
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return Alive(int(text[0]), int(text[1]), "everloop up") if len(text) == 2 else None  # noqa: PLR2004
    return None


def read(settings: Settings) -> Up | None:
    """The stack that is ready on this data folder, or None. What a killed one left behind does not count."""
    try:
        up = Up(**json.loads((settings.data_dir / "up.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return up if start_time(up.pid) == up.started else None


def announce(up: Up) -> None:
    """Write `up.json`, whole or not at all."""
    path = Path(up.data_dir) / "up.json"
    staged = path.with_suffix(".new")
    staged.write_text(json.dumps(asdict(up), indent=2))
    staged.replace(path)


def withdraw(settings: Settings) -> None:
    """Remove `up.json`."""
    (settings.data_dir / "up.json").unlink(missing_ok=True)


def claim(settings: Settings) -> None:
    """Make the data folder ours, or raise `ForeignFolder` when it holds anything that we did not put there."""
    folder = settings.data_dir
    if unsafe := set(str(folder)) & set(UNSAFE):
        raise ForeignFolder(
            f"{folder} has {' and '.join(sorted(unsafe))} in its path, which the databases' addresses cannot hold",
            hint="choose another --data-dir",
            field="data_dir",
        )
    if folder.exists() and not folder.is_dir():
        raise ForeignFolder(f"{folder} is a file", hint="choose a folder with --data-dir", field="data_dir")
    if folder.exists() and not (folder / MARKER).exists() and any(not _is_ours(entry) for entry in folder.iterdir()):
        raise ForeignFolder(
            f"{folder} holds files that Everloop did not make",
            hint="choose an empty folder with --data-dir",
            field="data_dir",
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / MARKER).write_text("Made by Everloop. `everloop reset` empties this folder.\n")
    except OSError as error:
        raise EverloopError(
            f"cannot write to {folder}: {error.strerror}",
            hint="choose another folder with --data-dir",
            field="data_dir",
        ) from None


def close_to_others(settings: Settings) -> str:
    """Take every right on the data folder from other users; which parts had any, as words, empty when none had.

    A folder of an earlier version, or one that was copied, may be open. What links point to is left as it is.
    """
    folder = settings.data_dir
    found = [entry for entry in (folder, *folder.iterdir()) if _open(entry)]
    for entry in found:
        inside = () if entry == folder or entry.is_symlink() else entry.rglob("*")
        for each in (entry, *(path for path in inside if _open(path))):
            with suppress(OSError):
                each.chmod(stat.S_IMODE(each.stat().st_mode) & ~PRIVATE)
    named = sorted("the folder itself" if entry == folder else entry.name for entry in found)
    return ", ".join(named)


def _open(path: Path) -> bool:
    mode = path.lstat().st_mode
    return not stat.S_ISLNK(mode) and bool(mode & PRIVATE)


def _is_ours(folder: Path) -> bool:
    """A data folder of its own, inside of another one: the demo's is."""
    return (folder / MARKER).exists()


def members(settings: Settings) -> list[Alive]:
    """Every live process that a launcher started on this data folder, the launcher itself not counted.

    They are known by their environment, which holds the folder and a launcher's session; children's children
    inherit both.
    """
    launcher = owner(settings)
    spared = {os.getpid(), launcher.pid if launcher else 0}
    wanted = f"EVERLOOP_DATA_DIR={settings.data_dir}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in spared:
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if wanted in variables and any(v.startswith(b"EVERLOOP_SESSION=up-") for v in variables):
            started = start_time(int(entry.name))
            if started:
                found.append(Alive(int(entry.name), started, command))
    return found


def end(processes: Iterable[Alive], signal_number: int) -> None:
    """Send a signal to each that is still the process it was."""
    for process in processes:
        if not process.gone():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal_number)


def wait_gone(processes: Iterable[Alive], seconds: float) -> list[Alive]:
    """Wait until all are gone, at most *seconds*; returns who is left."""
    deadline = time.monotonic() + seconds
    left = [process for process in processes if not process.gone()]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if not process.gone()]
    return left


def down(settings: Settings) -> str:
    """End the stack on this data folder and whatever is left of an earlier one. Returns what was done.

    Raises `Unavailable` when a process cannot be ended.
    """
    parent = owner(settings)
    said = []
    if parent is not None:
        started = time.monotonic()
        end([parent], signal.SIGTERM)
        if wait_gone([parent], STOP_SECONDS):
            end([parent], signal.SIGKILL)
            said.append(f"it did not end in {STOP_SECONDS:.0f} s and was killed")
        else:
            said.append(f"Everloop on {settings.data_dir} has ended ({time.monotonic() - started:.1f} s)")
        wait_gone([parent], 2)
    left = members(settings)
    if parent is not None:
        left = wait_gone(left, 2)
    if left:
        end(left, signal.SIGKILL)
        said.append(f"killed {len(left)} left over: {', '.join(str(p.pid) for p in left)}")
        if stuck := wait_gone(left, 3):
            raise Unavailable(f"cannot end process {stuck[0].pid} ({stuck[0].command})", hint="end it by hand")
    withdraw(settings)
    return "; ".join(said) or f"nothing runs on {settings.data_dir}"


def reset(settings: Settings) -> None:
    """Remove everything in the data folder but other stacks' folders in it.

    Raises `AlreadyRunning`, or `ForeignFolder` when Everloop did not make it.
    """
    folder = settings.data_dir
    if not folder.exists():
        return
    if not (folder / MARKER).exists():
        raise ForeignFolder(
            f"{folder} was not made by Everloop (it has no file {MARKER}): nothing is removed",
            hint="name the folder that `everloop up` used with --data-dir",
            field="data_dir",
        )
    if owner(settings) is not None or members(settings):
        raise AlreadyRunning(f"Everloop runs on {folder}: nothing is removed", hint="run `everloop down` first")
    # The marker goes last: a reset that is cut short can be repeated.
    for entry in sorted(folder.iterdir(), key=lambda path: path.name == MARKER):
        if _is_ours(entry):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
