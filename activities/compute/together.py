"""Ranks of one job that each look at their own rows of a table, and tell each other what they have found there.

They leave files where their attempt meets (`Gang.folder`), a path or a URL of the artifact store. It is new for every
attempt, so nobody reads what one that was killed has left. Who waits for a rank that has died is ended from outside
(activities/jobs/ranks.py), and all begin again: nothing is kept between attempts.
"""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

LOOK_SECONDS, FAR_LOOK_SECONDS = 0.01, 0.2
"""How often a rank looks for what it waits for: on its machine's disk, on a store."""


def name_of(column: str) -> str:
    """A column in the name of a file."""
    return hashlib.sha256(column.encode("utf-8", "surrogatepass")).hexdigest()[:24]


@dataclass(frozen=True)
class Together:
    """The ranks of one job, as one of them sees them. A job that is alone sends no file anywhere."""

    rank: int = 0
    size: int = 1
    folder: str = ""
    """Where they meet: an fsspec URL."""
    scratch: Path = field(default_factory=Path)
    """Of this rank alone."""

    @classmethod
    def of(cls, job: Any) -> "Together":  # noqa: ANN401  # a `Job`, which may be a `Context`
        if getattr(job, "world_size", 1) == 1:
            return cls(scratch=job.scratch)
        return cls(job.rank, job.world_size, f"{job.rendezvous.folder}/shares", job.scratch)

    @property
    def alone(self) -> bool:
        return self.size == 1

    def share(self, count: int, unit: int = 1) -> tuple[int, int]:
        """Of *count* things in a row, the first and the one after the last that are this rank's, in whole units."""
        units = -(-count // unit)
        low, high = (units * each // self.size * unit for each in (self.rank, self.rank + 1))
        return min(low, count), min(high, count)

    # --- files ---

    def send(self, name: str, to: int, path: Path) -> None:
        """Give the file at *path* to the rank *to*. It is moved or copied: *path* is of no more use."""
        self._put(f"{name}.{self.rank}-{to}", path, own=to == self.rank)

    @contextmanager
    def received(self, name: str) -> Iterator[list[Path]]:
        """What all ranks have sent to this one as *name*, in the order of the ranks. Waits for them."""
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="received-") as folder:
            yield [
                self._got(f"{name}.{each}-{self.rank}", Path(folder) / str(each), own=each == self.rank, take=True)
                for each in range(self.size)
            ]

    # --- values ---

    def told(self, name: str, value: Any = None) -> Any:  # noqa: ANN401  # JSON
        """What rank 0 says: its *value*, which all ranks are told."""
        if self.alone:
            return value
        return self._said_by(0, name, value)

    def gathered(self, name: str, value: Any) -> list[Any]:  # noqa: ANN401  # JSON
        """The *value* of each rank."""
        if self.alone:
            return [value]
        self._say(name, value)
        return [value if each == self.rank else self._heard(each, name) for each in range(self.size)]

    def arrays_of_the_first(self, name: str, arrays: dict[str, NDArray[Any]] | None = None) -> dict[str, NDArray[Any]]:
        """The *arrays* of rank 0, which all ranks are told."""
        if arrays is not None and self.rank == 0:
            if not self.alone:
                path = self._staged()
                with path.open("wb") as target:
                    np.savez(target, **arrays)  # type: ignore[arg-type]  # its own words are none of our names
                self._put(f"{name}.0", path)
            return arrays
        with (
            tempfile.TemporaryDirectory(dir=self.scratch) as folder,
            np.load(self._got(f"{name}.0", Path(folder) / "0"), allow_pickle=False) as stored,
        ):
            return {key: stored[key] for key in stored.files}

    def _said_by(self, rank: int, name: str, value: Any) -> Any:  # noqa: ANN401
        if rank != self.rank:
            return self._heard(rank, name)
        self._say(name, value)
        return value

    def _say(self, name: str, value: Any) -> None:  # noqa: ANN401
        path = self._staged()
        path.write_text(json.dumps(value))
        self._put(f"{name}.{self.rank}", path)

    def _heard(self, rank: int, name: str) -> Any:  # noqa: ANN401
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            return json.loads(self._got(f"{name}.{rank}", Path(folder) / "0").read_text())

    # --- where they meet ---

    def _staged(self) -> Path:
        with tempfile.NamedTemporaryFile(dir=self.scratch, prefix="said-", delete=False) as made:
            return Path(made.name)

    def _put(self, name: str, path: Path, *, own: bool = False) -> None:
        """There it is whole or not at all. *own*: nobody else reads it."""
        if own:
            path.replace(self._kept(name))
            return
        files, folder = fsspec.core.url_to_fs(self.folder, use_listings_cache=False)
        files.makedirs(folder, exist_ok=True)
        if "file" in files.protocol:
            staged = Path(folder) / f".{name}"
            shutil.move(path, staged)
            staged.replace(Path(folder) / name)
            return
        files.put_file(str(path), f"{folder}/{name}")
        path.unlink()

    def _got(self, name: str, target: Path, *, own: bool = False, take: bool = False) -> Path:
        """At *target*, or where it lies already. *take*: nobody else reads it, so it need not lie there any more."""
        if own:
            return self._kept(name).replace(target)
        files, folder = fsspec.core.url_to_fs(self.folder, use_listings_cache=False)
        if "file" in files.protocol:
            there = self._there(Path(folder) / name)
            return Path(shutil.move(there, target)) if take else there
        while True:
            try:
                files.get_file(f"{folder}/{name}", str(target))
            except FileNotFoundError:
                time.sleep(FAR_LOOK_SECONDS)
            else:
                return target

    @staticmethod
    def _there(path: Path) -> Path:
        while not path.exists():
            time.sleep(LOOK_SECONDS)
        return path

    def _kept(self, name: str) -> Path:
        return self.scratch / f"own-{name}"
