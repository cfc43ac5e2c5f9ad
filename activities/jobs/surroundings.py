# ruff: noqa: T201  # what a job prints is its log
"""What a user's code needs around it, in its job alone: its own files in front, and the packages that it requires.

Files are unpacked and packages installed once per content on the host that runs them. The packages lie in a virtual
environment over ours: they come before ours, and what is not among them is found in ours. The process that jobs are
forked from has ours loaded, so a job with requirements goes on as a process of that environment.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import venv
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from activities.jobs.shelf import shelved
from everloop import archive, disk, engine
from everloop import settings as configuration
from everloop.artifacts import Artifacts
from everloop.errors import TrainerFailed, text
from everloop.requirements import REQUIREMENTS, required

MODULE = "activities.jobs.child"
OURS = frozenset(("everloop", "workflows", "activities", "api", "workers"))
SITE = re.compile(r"/(site|dist)-packages$")
SHOWN_LINES = 6
SHOWN_CHARACTERS = 900
SECRET = re.compile(r"PIP_|(HTTPS?|ALL|FTP)_PROXY$", re.IGNORECASE)
"""In a job's environment for pip alone: an index's address may hold a password."""
CRASH = "ERROR: Exception:"
"""What pip says before the trace of an exception of its own: the trace's last line tells why."""
PIP = ("-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off")


def enter(code: dict[str, Any], artifacts: Artifacts, folder: Path, events: int, needs: str) -> None:
    """Make *code* (a `records.Code`) importable here. With requirements: become another process, and come back there.

    *folder*, *events*: of the job, to go on with it. *needs*: the module that the job calls.
    Raises `TrainerFailed` naming `code` or `requirements`.
    """
    kept = configuration.load().scratch_dir / "code"
    files = _files(kept, code.get("archive"), artifacts)
    if wanted := _wanted(code, files):
        inside = Path(sys.prefix)
        key = inside.name if _is_room(inside) else _key(wanted)
        room = shelved(kept / "environments", key, lambda place: _install(place, wanted))
        if inside != room:
            _become(room, folder, events)
        _must_start(needs)
    for name in [name for name in os.environ if SECRET.match(name)]:
        del os.environ[name]
    sys.dont_write_bytecode = True  # the folder is shared, and stays as it was kept
    if files is not None:
        sys.path.insert(0, str(files))
        importlib.invalidate_caches()


# --- the user's own files -------------------------------------------------------------------------


def _files(kept: Path, stored: dict[str, Any] | None, artifacts: Artifacts) -> Path | None:
    if stored is None:
        return None
    digest = stored["sha256"]
    found = shelved(kept / "files", digest, lambda place: _unpack(artifacts.get(digest), place))
    for name in sorted(OURS):
        if (found / name).is_dir() or (found / f"{name}.py").exists():
            hint = "give your package another name"
            raise TrainerFailed(f"the name {name!r} is taken: it is a package of Everloop", field="code", hint=hint)
    return found


def _unpack(data: bytes, place: Path) -> None:
    for path, content in archive.members(data):
        target = place.joinpath(*path.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _wanted(code: dict[str, Any], files: Path | None) -> tuple[str, ...]:
    """What pip has to install."""
    if code.get("requirements"):
        return tuple(code["requirements"])
    said = files / REQUIREMENTS if files is not None else None
    return required(said.read_bytes()) if said is not None and said.is_file() else ()


# --- what it requires -----------------------------------------------------------------------------


def _key(wanted: Sequence[str]) -> str:
    """The same for the same requirements over the same packages of ours, on the same Python."""
    ours = sorted({f"{each.name}=={each.version}" for each in importlib.metadata.distributions(path=_beneath())})
    said = [sorted(wanted), ours, sys.version, platform.machine(), sys.base_prefix]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _beneath() -> list[str]:
    """The folders of packages that Everloop itself was started with."""
    room = Path(sys.prefix)
    return [path for path in sys.path if SITE.search(path) and not (_is_room(room) and Path(path).is_relative_to(room))]


def _is_room(prefix: Path) -> bool:
    return prefix.parent.name == "environments" and (prefix / "ours").exists()


def _install(room: Path, wanted: Sequence[str]) -> None:
    """A virtual environment over ours in *room*, with *required* in it. pip finds packages as its own settings say."""
    print(f"installing {', '.join(wanted)}", flush=True)
    venv.EnvBuilder(symlinks=True).create(room)
    (room / "ours").touch()
    site = next((room / "lib").glob("python*/site-packages"))
    (site / "ours.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in _beneath()))
    python = str(room / "bin" / "python")
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if importlib.util.find_spec("pip") is None:  # where something else installed us
        _said([python, "-m", "ensurepip"], outside, wanted)
    _said([python, *PIP, *wanted], outside, wanted)
    _starts(python)


def _starts(python: str) -> None:
    """Raise `TrainerFailed` where *python* cannot even run a job: that process could not say why by itself."""
    tried = subprocess.run(
        [python, "-c", f"import {MODULE}"],
        env=engine.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        print(tried.stderr, flush=True)
        raise _conflict((tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1])


def _said(command: list[str], environment: dict[str, str], wanted: Sequence[str]) -> None:
    """Run *command*; what it says goes to the job's log. Raises `TrainerFailed` with its last lines."""
    last: deque[str] = deque(maxlen=200)
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None  # noqa: S101  # asked for
        for line in running.stdout:
            print(line, end="", flush=True)
            last.append(line.strip())
    if running.returncode == 0:
        return
    text = "\n".join(last)
    if disk.SAID.search(text):
        raise disk.full(Path(command[0]), 0)
    errors = [line for line in last if line.startswith("ERROR") and line != CRASH] or [line for line in last if line]
    raise TrainerFailed(
        f"pip cannot install {', '.join(wanted)}: {' '.join(errors[-SHOWN_LINES:])[-SHOWN_CHARACTERS:]}",
        field="requirements",
        hint="change `requirements` and submit again; or mend what pip stumbled on, then retry",
    )


def _become(room: Path, folder: Path, events: int) -> None:
    """Go on as a process of *room*: same number, group, log and locks, but none of the modules that are loaded here."""
    sys.stdout.flush()
    sys.stderr.flush()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            os.set_inheritable(int(name), True)  # the slot's lock too: it lasts as long as the job
        except OSError:
            continue  # the listing's own
    python = str(room / "bin" / "python")
    environment = engine.environment({"PYTHONUNBUFFERED": "1"})
    os.execve(python, [python, "-m", MODULE, str(folder), str(events)], environment)  # noqa: S606


def _must_start(module: str) -> None:
    """Raise `TrainerFailed` where Everloop's own code does not run with what the user requires."""
    try:
        importlib.import_module(module)
    except Exception as error:
        raise _conflict(f"{type(error).__name__}: {text(error)}") from error


def _conflict(why: str) -> TrainerFailed:
    hint = "leave the versions of packages open that Everloop has too, or take others"
    message = f"Everloop does not start with these requirements: {why}"
    return TrainerFailed(message[:SHOWN_CHARACTERS], field="requirements", hint=hint)
