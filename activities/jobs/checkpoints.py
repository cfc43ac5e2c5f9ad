"""Checkpoints: what a stage has learned so far, kept for the attempt after this one.

    scratch/checkpoints/<chain>/<stage>/<question>/resumes          one line per attempt that went on
                                                  /<token>/<step>/  state.json, arrays.safetensors, digests.json
                                                          /progress-<attempt>

A checkpoint is written beside its place, brought to the disk, and renamed: it is there whole or not at all, and its
digests tell where the disk has lost some of it. A token's folder is its holder's claim: who finds a newer one has
lost the lease and writes no more. A newer holder reads the folders of older tokens and never writes there.

Where it lies says `Disk` (disk.py), or `Depot` (depot.py) where hosts share no disk: then it is on the artifact store,
and here only what is being written.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from activities.jobs.depot import kept_in
from activities.jobs.disk import LAST, to_disk
from everloop import disk
from everloop.errors import Invalid, LeaseLost

COUNT = 2
"""Checkpoints that stay: the newest may be lost with the machine's power."""
STATE, ARRAYS, DIGESTS = "state.json", "arrays.safetensors", LAST
ARRAY = "everloop:array"
"""Stands in the JSON for an array of the other file."""
DEEPEST = 100
"""Lists and dicts within each other, in a state."""


class Stopped(BaseException):
    """The job was told to end, and what it has learned is kept. No trainer's `except Exception` holds it up."""


@dataclass(frozen=True)
class Kept:
    """A whole checkpoint."""

    token: int
    step: int
    state: dict[str, Any]
    attempt: str
    seconds: float
    """From the beginning of its attempt to the checkpoint."""
    at: str
    """The step as people call it; empty where that was not said."""


class About(BaseModel, strict=True):
    """`digests.json`."""

    format: Literal[1] = 1
    token: int
    step: int
    at: str = ""
    attempt: str
    seconds: float
    writing: float = 0.0
    """Of them, so many with writing checkpoints."""
    sha256: dict[str, str]


class Resume(BaseModel, strict=True):
    """A line of `resumes`: what one attempt went on from, and what it did again."""

    token: int
    step: int
    steps_again: int
    seconds_again: float


def newest_of(folder: Path, token: int, attempt_began_ms: int, depot: str = "") -> tuple[int, int]:
    """When the newest checkpoint of *token* was written that is not older than its attempt, and how long the attempt
    has been writing checkpoints by then, in milliseconds; (0, 0) where there is none. Nothing is claimed or removed.
    """
    with contextlib.suppress(OSError):
        for written, digests in kept_in(folder, depot).written(token):
            if written < attempt_began_ms:
                break
            with contextlib.suppress(ValueError):
                told = About.model_validate_json(digests)
                return written, max(0, int(1000 * told.writing))
    return 0, 0


class Checkpoints:
    """Those of one stage, as the holder of one token sees them. For one thread."""

    def __init__(self, folder: Path, token: int, floor_bytes: int = 0, depot: str = "") -> None:
        """*folder*: of the question. *floor_bytes*: what must stay free on the disk. *depot*: the question's URL on
        the artifact store, where other hosts have to find it.
        """
        self.folder, self.token, self.floor_bytes = folder, token, floor_bytes
        self._place = kept_in(folder, depot)
        self.attempt = uuid.uuid4().hex[:12]
        self._began = time.monotonic()
        self._writing, self._write_began = 0.0, 0.0
        self._own = folder / str(token)
        self._claimed = False
        self._progress: int | None = None
        self._looked = 0.0

    # --- the fence ---

    def claim(self) -> None:
        """Say that this token's holder works here. Raises `LeaseLost` when a newer one does."""
        if self._claimed:
            return
        self._place.claim(self.token)
        self.check()
        self._claimed = True

    def check(self) -> None:
        """Raise `LeaseLost` when the holder of a newer token works here."""
        if self.fenced():
            raise LeaseLost(
                f"token {self.token} is older than the one that this stage runs with",
                hint="the stage takes a new lease by itself",
            )

    def fenced(self) -> bool:
        """Does the holder of a newer token work here?"""
        return any(token > self.token for token in self._place.tokens())

    def fenced_lately(self) -> bool:
        """`fenced`, not looked at more often than is worth it."""
        if time.monotonic() - self._looked < self._place.look_seconds:
            return False
        self._looked = time.monotonic()
        return self._claimed and self.fenced()

    # --- writing ---

    def write(self, step: int, state: Mapping[str, Any], at: str = "") -> None:
        """Keep *state* after *step*, which people call *at*.

        Raises `LeaseLost`, `StorageLow`, and `Invalid` for what cannot be kept.
        """
        if step < 0:  # its folder would never be found again
            raise Invalid(f"a checkpoint's step must be 0 or more, not {step}", field="step")
        self._write_began = time.monotonic()
        self.claim()
        arrays: dict[str, Any] = {}
        text = json.dumps(_plain(dict(state), "state", arrays)).encode()
        low = disk.low([self.folder], self.floor_bytes, len(text) + sum(array.nbytes for array in arrays.values()))
        if low is not None:
            raise low
        staged = self._own / f".new-{self.attempt}"
        shutil.rmtree(staged, ignore_errors=True)
        try:
            self._stage(staged, step, at, text, arrays)
            self.check()
            self._place.put(self.token, step, staged)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        self._drop_above(step)
        self._thin_out()
        self._writing += time.monotonic() - self._write_began

    def _stage(self, staged: Path, step: int, at: str, text: bytes, arrays: dict[str, Any]) -> None:
        from safetensors.numpy import save_file

        staged.mkdir(mode=0o700)
        (staged / STATE).write_bytes(text)
        save_file(arrays, staged / ARRAYS)
        about = About(
            token=self.token,
            step=step,
            at=at,
            attempt=self.attempt,
            seconds=self.seconds(),
            writing=self._writing + time.monotonic() - self._write_began,
            sha256={name: _digest(staged / name) for name in (STATE, ARRAYS)},
        )
        (staged / DIGESTS).write_text(about.model_dump_json())
        for path in (staged / STATE, staged / ARRAYS, staged / DIGESTS, staged):
            to_disk(path)

    def _drop_above(self, step: int) -> None:
        """A trainer that counts anew (a fold, a restart) has left them behind: by their step they would seem newer."""
        for token, above in self._place.places():
            if token == self.token and above > step:
                self._place.drop(token, above)

    def _thin_out(self) -> None:
        for token, step in self._place.places()[COUNT:]:
            self._place.drop(token, step)

    # --- reading ---

    def newest(self) -> Kept | None:
        """The newest checkpoint that is whole: of the newest token, then of the last step."""
        self.claim()
        for token, step in self._place.places():
            try:
                return self.read(token, step)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                print(f"the checkpoint of token {token} after {step} is not whole and is left out: {error}")  # noqa: T201
        return None

    def read(self, token: int, step: int) -> Kept:
        """The one of *token* after *step*. Raises `OSError` or `ValueError` where it is not there or not whole."""
        with self._place.opened(token, step) as folder:
            return self._read(token, step, folder)

    def _read(self, token: int, step: int, path: Path) -> Kept:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            about = About.model_validate_json((path / DIGESTS).read_bytes())
        except ValueError:
            raise ValueError(f"{DIGESTS} is not as it was written") from None
        if (about.token, about.step) != (token, step):
            raise ValueError(f"it was written by token {about.token} after {about.step}")
        for name in (STATE, ARRAYS):
            if not self.whole(path / name, about.sha256.get(name, "")):
                raise ValueError(f"{name} is not as it was written")
        try:
            arrays = load_file(path / ARRAYS)
        except SafetensorError as error:
            raise ValueError(str(error)) from None
        state = _whole(json.loads((path / STATE).read_text()), arrays)
        return Kept(token, step, dict(state), about.attempt, about.seconds, about.at)

    def whole(self, path: Path, told: str) -> bool:
        """Are the file's bytes those that were written?"""
        return _digest(path) == told

    # --- how far attempts came, for the report of what was done again ---

    def seconds(self) -> float:
        """Since this attempt began."""
        return time.monotonic() - self._began

    def reached(self, step: int) -> None:
        """Note how far this attempt is. It survives kill -9, not a loss of power."""
        if not self._claimed:
            return
        if self._progress is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            with contextlib.suppress(OSError):
                self._progress = os.open(self._own / f"progress-{self.attempt}", flags, 0o600)
        if self._progress is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._progress, f"{step:12d} {self.seconds():16.3f}\n".encode(), 0)

    def resumed(self, kept: Kept | None) -> dict[str, Any] | None:
        """What this stage's attempts so far have done again; None for the first. Call it once, at the start."""
        last = self._last_attempt()
        if last is None and kept is None:
            return None
        step, seconds, attempt = last or (0, 0.0, "")
        same = kept is not None and kept.attempt == attempt
        now = Resume(
            token=kept.token if kept else 0,
            step=kept.step if kept else 0,
            steps_again=max(0, step - (kept.step if kept else 0)),
            seconds_again=max(0.0, seconds - (kept.seconds if kept is not None and same else 0.0)),
        )
        lines = [*self._resumes(), now]
        with contextlib.suppress(OSError):  # the report is not worth the training
            self._place.note_resumes("".join(each.model_dump_json() + "\n" for each in lines).encode())
        return {
            "times": len(lines),
            "step": now.step,
            "token": now.token,
            "steps_again": sum(each.steps_again for each in lines),
            "seconds_again": round(sum(each.seconds_again for each in lines), 3),
            "at": kept.at if kept else "",
        }

    def _resumes(self) -> list[Resume]:
        """Of the attempts before; a line that was torn says nothing."""
        found: list[Resume] = []
        for line in self._place.resumes().splitlines():
            with contextlib.suppress(ValueError):
                found.append(Resume.model_validate_json(line))
        return found

    def _last_attempt(self) -> tuple[int, float, str] | None:
        """How far the attempt before came: its last step and its seconds. Its note is used up."""
        found, newest = None, 0
        for path in self.folder.glob("*/progress-*"):
            with contextlib.suppress(OSError, ValueError):  # torn, or another attempt has just used it up
                written, (step, seconds) = path.stat().st_mtime_ns, path.read_text().split()
                if written > newest:
                    found, newest = (int(step), float(seconds), path.name.removeprefix("progress-")), written
            with contextlib.suppress(OSError):
                path.unlink()
        return found

    def forget(self) -> None:
        """The stage has its result: nobody will go on from here. Leaves a newer holder's alone."""
        if self._claimed and not self.fenced():
            self._place.forget()


def _plain(value: Any, where: str, arrays: dict[str, Any], within: int = 0) -> Any:  # noqa: ANN401
    """*value* as JSON, its arrays moved to *arrays*. Raises `Invalid` that names what cannot be kept."""
    import numpy as np

    if value is None or isinstance(value, str | bool | int | float):
        return value
    if within > DEEPEST:
        raise Invalid(
            f"a checkpoint cannot keep what is nested more than {DEEPEST} deep, or holds itself ({where[:80]})"
        )
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic | tuple):
        return _plain(value.item(), where, arrays, within + 1)
    if _is_plain_array(value):
        name = str(len(arrays))
        arrays[name] = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
        return {ARRAY: name, "shape": list(value.shape)}
    if isinstance(value, Mapping) and ARRAY not in value and all(isinstance(name, str) for name in value):
        return {name: _plain(each, f"{where}.{name}", arrays, within + 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{place}]", arrays, within + 1) for place, each in enumerate(value)]
    masked = isinstance(value, np.ma.MaskedArray)
    what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) and not masked else f"a {type(value).__name__}"
    raise Invalid(
        f"a checkpoint cannot keep {what} ({where})",
        field="state",
        hint="it keeps numbers, texts, booleans, lists, and dicts of them by text, and NumPy arrays of numbers",
    )


def _is_plain_array(value: Any) -> bool:  # noqa: ANN401
    """Numbers that safetensors holds, and nothing beside them: a mask would be lost."""
    import numpy as np

    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        return False
    return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8  # noqa: PLR2004


def _whole(value: Any, arrays: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The inverse of `_plain`; tuples come back as lists."""
    if isinstance(value, dict):
        if ARRAY in value:
            return arrays[value[ARRAY]].reshape(value["shape"])
        return {name: _whole(each, arrays) for name, each in value.items()}
    return [_whole(each, arrays) for each in value] if isinstance(value, list) else value


def _digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
